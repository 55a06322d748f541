"""Reading frames of a video, and writing pictures as a video, with PyAV."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from PIL import Image


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


def read_frames(path: Path, every: int) -> Iterator[tuple[int, Image.Image]]:
    """Every n-th frame of a video, rotated as players show it, with its number.

    Raises:
        ValueError: PyAV is missing, or the file cannot be read.
    """
    av = require_av()
    try:
        with av.open(str(path)) as video:
            for index, frame in enumerate(video.decode(video=0)):
                if index % every == 0:
                    yield index, frame.to_image().rotate(frame.rotation, expand=True)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def frame_rate(path: Path) -> Fraction:
    """Frames per second of a video; 25 if it does not say.

    Raises:
        ValueError: PyAV is missing, or the file cannot be read.
    """
    av = require_av()
    try:
        with av.open(str(path)) as video:
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
