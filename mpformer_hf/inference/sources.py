"""Images to segment: a folder, a glob, a video or a dataset."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..data.result_names import result_names
from ..model.images import fetch_image, open_image, read_image, to_rgb
from ..utils.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_below, warn_of_other_images
from .video import read_frames


@dataclass
class SourceImage:
    """An image to segment.

    Attributes:
        name: unique name without suffix, for result files.
        image_id: the dataset's id of the image, or its number in the source.
        file_name: of the image, relative to the source.
        read: returns the image, uint8 `[3, H, W]`; raises ValueError if it cannot be read.
    """

    name: str
    image_id: int | str
    file_name: str
    read: Callable[[], Tensor]


def list_images(source: str, split: str | None, every: int, output: Path | None = None) -> Iterable[SourceImage]:
    """Images of a source in a fixed order: a list, or for videos, whose number of frames is unknown, an iterator.

    Args:
        source: folder, image file, URL, glob, video file, or dataset (Hub name, or folder of parquet files).
        split: split of a dataset, by default test; other sources have none.
        every: yield every n-th image or frame only.
        output: folder of results, whose files are not images of the source.

    Raises:
        ValueError: the source has no images, or has no splits and one is given.
    """
    if source.lower().startswith(("http://", "https://")):
        name = Path(source.split("?")[0]).name or "image"
        (unique,) = result_names([name])
        return [SourceImage(unique, 0, name, lambda: to_rgb(fetch_image(source)))]
    if "://" in source:
        raise ValueError(f"{source} is a stream, which is not read; give a video file.")
    if source.isdecimal():
        raise ValueError(f"{source} is the number of a camera, which is not read; give a video file.")
    path = Path(source)
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
        return video_images(path, every)
    if path.is_dir():
        files = sorted(file for file in files_below(path) if file.suffix.lower() in IMAGE_SUFFIXES)
        root = path
        warn_of_other_images(path)
    elif path.is_file():
        files, root = [path], path.parent
    else:
        files = sorted(Path(file) for file in glob.glob(source, recursive=True) if Path(file).is_file())
        root = None
    if output is not None:
        files = [file for file in files if output.resolve() not in file.resolve().parents]
    files = [file for file in files if not is_prediction(file)]
    tables = path.is_dir() and any(file.suffix == ".parquet" for file in files_below(path))
    if files and tables:
        raise ValueError(f"{source} has parquet files and {len(files)} images; give the folder of one of them.")
    if files and split is not None:
        raise ValueError(f"{source} has images, not splits, so --split has no effect: give the folder of the split.")
    if files:
        root = root or Path(os.path.commonpath([file.parent for file in files]))
        relative = [file.relative_to(root).as_posix() for file in files]
        names = result_names(relative)
        rows = list(enumerate(zip(files, names, relative, strict=True)))[::every]
        return [
            SourceImage(name, index, file_name, partial(read_image, file)) for index, (file, name, file_name) in rows
        ]
    if path.is_dir() and not tables:
        videos = any(file.suffix.lower() in VIDEO_SUFFIXES for file in files_below(path))
        hint = "; give one of its videos itself" if videos else ""
        raise ValueError(f"{source} has no image ({', '.join(IMAGE_SUFFIXES)}){hint}.")
    if glob.has_magic(source):
        raise ValueError(f"No file matches {source}.")
    if not path.is_dir() and (source.endswith("/") or path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)):
        raise ValueError(f"{source} is not a file or folder that can be read.")
    return dataset_images(source, split or "test", every)


def is_prediction(file: Path) -> bool:
    """Whether a picture is of an earlier run of `mpformer predict`."""
    return any((folder / "settings.json").is_file() and (folder / "results").is_dir() for folder in file.parents[1:4])


def video_images(path: Path, every: int) -> Iterator[SourceImage]:
    """Frames of a video, see `read_frames`."""
    for index, image in read_frames(path, every):
        name = f"{path.stem}_{index:06d}"
        yield SourceImage(name, index, f"{name}.png", partial(to_rgb, image))


def dataset_images(source: str, split: str, every: int) -> list[SourceImage]:
    """Images of a dataset.

    Raises:
        ValueError: the package `datasets` is missing, or the dataset cannot be loaded.
    """
    try:
        from ..data.arguments import DataArguments
        from ..data.dataset import image_source, roots_of, without_decoding
        from ..data.loading import load_split
    except ImportError as error:
        raise ValueError(f'Datasets need {error.name}: pip install "mpformer-hf[data]".') from error
    args = DataArguments(dataset_name=source)
    rows, column = load_split(args, split)
    known = [name for name in ("image_id", "file_name") if name in rows.column_names]
    rows = without_decoding(rows.select_columns([column, *known]))

    def read(index: int) -> Tensor:
        return to_rgb(open_image(image_source(rows[index][column], roots_of(args))))

    images = []
    for index in range(0, len(rows), every):
        name, row = f"{split}_{index:06d}", rows.select_columns(known)[index] if known else {}
        image_id, file = row.get("image_id", index), row.get("file_name", f"{name}.png")
        images.append(SourceImage(name, image_id, file, partial(read, index)))
    return images
