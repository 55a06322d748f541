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
    mirror = struct.pack(">9i", -1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "mirror.mp4").write_bytes(content[:place] + mirror + content[place + len(mirror) :])
    (_, mirrored), *_ = read_frames(tmp_path / "mirror.mp4", every=1)
    expected = Image.fromarray(np.array(lying)[:, ::-1])
    assert np.abs(np.array(mirrored).astype(int) - np.array(expected)).max() < 10


def test_damaged_packets_are_left_out_and_counted(tmp_path, caplog):
    pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), dtype=np.uint8)
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for file, frame in zip(files, noise, strict=True):
        Image.fromarray(frame).save(file)
    write_video(files, tmp_path / "video.mp4", 5)
    content = bytearray((tmp_path / "video.mp4").read_bytes())
    data = content.index(b"mdat")
    middle = (data + content.index(b"moov")) // 2
    content[middle : middle + 9000] = b"\0" * 9000
    (tmp_path / "damaged.mp4").write_bytes(bytes(content))
    frames = list(read_frames(tmp_path / "damaged.mp4", every=1))
    assert 0 < len(frames) < 8 and "damaged packets were left out" in caplog.text
    assert [number for number, _ in frames] == list(range(len(frames)))
    (tmp_path / "empty.mp4").write_bytes(content[:data])
    with pytest.raises(ValueError, match="cannot be read as a video"):
        list(read_frames(tmp_path / "empty.mp4", every=1))
