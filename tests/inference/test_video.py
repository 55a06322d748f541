"""Frames of videos."""

import struct

import numpy as np
import pytest
from PIL import Image

from mpformer_hf.inference.video import frame_rate, read_frames, write_video


def test_frames_are_rotated_as_players_show_them(tmp_path):
    """A phone that is held upright stores lying frames and a matrix that turns them by 90 degrees clockwise."""
    pytest.importorskip("av")
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = 255  # the left half is white: shown, the upper one
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    write_video([tmp_path / "frame.png"] * 3, tmp_path / "video.mp4", 5)
    content = (tmp_path / "video.mp4").read_bytes()
    place = content.index(b"tkhd") + 4 + 4 + 5 * 4 + 2 * 4 + 4 * 2  # ISO 14496-12, 8.3.2: the matrix of version 0
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    (tmp_path / "phone.mp4").write_bytes(content[:place] + matrix + content[place + len(matrix) :])
    assert frame_rate(tmp_path / "phone.mp4") == 5
    (_, lying), *_ = read_frames(tmp_path / "video.mp4", every=1)
    (_, shown), (number, _) = read_frames(tmp_path / "phone.mp4", every=2)
    assert lying.size == (96, 64) and shown.size == (64, 96) and number == 2
    assert np.array(shown)[:44].min() > 200 and np.array(shown)[52:].max() < 50
