"""Reading frames of a video, and writing pictures as a video, with PyAV."""

import logging
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from PIL import Image

logger = logging.getLogger(__name__)
CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg")  # names of FFmpeg


def require_av():
    """The package PyAV.

    Raises:
        ValueError: it is missing.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError('Videos need PyAV: pip install "mpformer-hf[video]".') from error
    return av


def open_video(path: Path):
    """A video, opened by PyAV. Formats that may name other files, such as lists of files, are not read.

    Raises:
        ValueError: PyAV is missing, or it is no file.
    """
    av = require_av()
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file.")
    return av.open(str(path), options={"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"})


def read_frames(path: Path, every: int) -> Iterator[tuple[int, Image.Image]]:
    """Every n-th frame of a video, turned and mirrored as players show it, with its number. Damaged packets are left
    out, and counted in the log.

    Raises:
        ValueError: PyAV is missing, or the file cannot be read.
    """
    av = require_av()
    index = damaged = 0
    try:
        with open_video(path) as video:
            for packet in video.demux(video=0):
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    damaged += 1
                    continue
                for frame in frames:
                    if index % every == 0:
                        yield index, displayed(frame)
                    index += 1
    except (av.FFmpegError, IndexError) as error:
        if not index:
            raise ValueError(f"{path} cannot be read as a video: {error}") from error
        logger.warning("%s ends after %d frames: %s", path, index, error)
    if damaged:
        logger.warning("%s: %d damaged packets were left out; their frames are missing.", path, damaged)
    if not index:
        raise ValueError(f"{path} cannot be read as a video: it has no frame")


def displayed(frame) -> Image.Image:
    """A frame turned and mirrored as its display matrix says, of which PyAV gives the turn."""
    image = frame.to_image()
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is not None:
        a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
        if a * d < b * c:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image.rotate(frame.rotation, expand=True)


def frame_rate(path: Path) -> Fraction:
    """Frames per second of a video; 25 if it does not say.

    Raises:
        ValueError: PyAV is missing, or the file cannot be read.
    """
    av = require_av()
    try:
        with open_video(path) as video:
            return Fraction(video.streams.video[0].average_rate or 25)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def write_video(pictures: list[Path], path: Path, rate: Fraction) -> None:
    """Write pictures as an MP4 (H.264). They may be of different sizes, as legends are: all have the same upper left
    corner, and the rest is white.

    Args:
        pictures: image files in order.
        path: the video.
        rate: pictures per second.
    """
    av = require_av()
    sizes = []
    for file in pictures:
        with Image.open(file) as image:
            sizes.append(image.size)
    size = tuple(side + side % 2 for side in map(max, zip(*sizes, strict=True)))  # H.264 needs even sides
    with av.open(str(path), "w", format="mp4") as video:
        stream = video.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for file in pictures:
            canvas = Image.new("RGB", size, "white")
            with Image.open(file) as image:
                canvas.paste(image.convert("RGB"), (0, 0))
            video.mux(stream.encode(av.VideoFrame.from_image(canvas)))
        video.mux(stream.encode())
