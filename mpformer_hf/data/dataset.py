"""A split as images with segments."""

import io
import logging
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub.constants import HF_HUB_CACHE
from torch import Tensor

from ..model.images import as_displayed, open_image, orientation_of, read_size, to_rgb
from ..utils.files import check_inside
from .arguments import DataArguments
from .labels import Labels
from .result_names import result_name, result_names
from .segments import Segments

logger = logging.getLogger(__name__)

ROW = "row_of_split"  # column: number of a row before some were left out
ROW_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)  # of annotations of any form


@dataclass
class SegmentationDataset:
    """A split that yields images with segments.

    Attributes:
        rows: the split.
        image_column: column of the images.
        read: reader of the annotation layout, from a row to segments; it can be pickled, for loader workers.
        labels: the classes.
        score: official average precision of the dataset, `coco` or `cityscapes`.
        from_files: whether the images are files of a local folder.
        skipped: errors of the rows that `skip_bad_images` left out.
        told_of_empty: whether it was logged that segments cover no pixel.
        roots: folders that the files of the dataset may be in; None: any.
        sources: names of the datasets that it joins.
    """

    rows: Dataset
    image_column: str
    read: Callable[[dict], Segments]
    labels: Labels
    score: str = "coco"
    from_files: bool = False
    skipped: list[str] = field(default_factory=list)
    told_of_empty: bool = False
    roots: tuple[str, ...] | None = None
    sources: tuple[str, ...] = ()

    def source_of(self, index: int) -> str | None:
        """Which of `sources` an image is of."""
        return None

    def source(self, value: dict) -> io.BytesIO | str:
        """What an image is read from, see `image_source`."""
        return image_source(value, self.roots)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Segments]:
        """uint8 image `[3, H, W]` and its segments.

        Raises:
            ValueError: the row is invalid; the message has its index.
        """
        return self.decode(self.rows[index], index)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, after the rotation of its EXIF data; (0, 0) if it cannot be read."""
        try:
            return read_size(self.source(self.rows[index][self.image_column]))[::-1]
        except ValueError:
            return 0, 0

    def identity(self, index: int) -> tuple[int | str, str, str]:
        """The dataset's id of an image (else its number), its file name, and a name for result files, which is that of
        the file where all have one."""
        row = self.rows.select_columns(self.identity_columns)[index]
        number = row.get(ROW, index)
        image_id = row.get("image_id", number)
        file = row.get("file_name") or file_name(row[self.image_column])
        if self.names is not None:
            return image_id, row["file_name"], self.names[index]
        name = result_name(file or str(image_id))
        unique = not file and name == str(image_id)
        return image_id, Path(file).name if file else f"{name}.png", name if unique else f"{name}_{number}"

    @cached_property
    def identity_columns(self) -> list[str]:
        """Columns that say which image it is."""
        return [c for c in (self.image_column, "image_id", "file_name", ROW) if c in self.rows.column_names]

    @cached_property
    def names(self) -> list[str] | None:
        """Names of the result files of all images; None if not all images have a file name."""
        files: Any = self.rows["file_name"] if "file_name" in self.rows.column_names else [None]
        return result_names(list(files)) if all(files) else None

    def decode(self, row: dict, index: int) -> tuple[Tensor, Segments]:
        """Image and segments of a row, see `__getitem__`."""
        file = None
        try:
            opened = {}
            for column, value in row.items():
                file = file_name(value)
                opened[column] = open_image(self.source(value)) if is_file(value) else value
                if is_file(value) and column != self.image_column:
                    opened[column] = as_displayed(opened[column])
                for path in [value] if column == "text" else value if column == "masks" else ():
                    check_inside(path, self.roots)
            file = file_name(row[self.image_column])
            image = to_rgb(opened[self.image_column])
            file = None
            segments = self.read(opened)
            file = row.get("file_name") or file_name(row[self.image_column])
            declared = row.get("size")
            is_turned = orientation_of(opened[self.image_column]) != 1
            turned = (
                "; its EXIF data turn the image: if the labels are of the pixels as stored, remove its orientation"
                if is_turned
                else ""
            )
            if declared and list(image.shape[1:]) != list(declared):
                sizes = ["x".join(map(str, shape)) for shape in (image.shape[1:], declared)]
                raise ValueError(f"the image is {sizes[0]}, but {sizes[1]} in the annotations (height x width){turned}")
            if segments.map.shape[-2:] != image.shape[1:]:
                sizes = ["x".join(map(str, shape)) for shape in (segments.map.shape[-2:], image.shape[1:])]
                raise ValueError(f"the label map is {sizes[0]}, the image {sizes[1]} (height x width){turned}")
            if segments.empty and not self.told_of_empty:
                self.told_of_empty = True
                name = row.get("file_name") or file_name(row[self.image_column]) or "no file name"
                text = "Row %d (%s): %d segments cover no pixel; later rows are not named."
                logger.warning(text, row.get(ROW, index), name, segments.empty)
        except ROW_ERRORS as error:
            text = str(error)
            if not isinstance(error, ValueError):
                text = f"the annotation is invalid ({type(error).__name__}: {error})"
            number = row.get(ROW, index)
            raise ValueError(f"Row {number}{f' ({file})' if file else ''}: {' '.join(text.split())}.") from error
        return image, segments


def is_file(value) -> bool:
    """Whether a value is the file of an image, of a column that is not decoded: `{"bytes": ..., "path": ...}`."""
    return isinstance(value, dict) and set(value) == {"bytes", "path"}


def file_name(value) -> str | None:
    """Path of an image of a column that is not decoded, if it has one; of an image in a zip file the path in it."""
    path = value["path"] if is_file(value) else None
    return path and path.partition("::")[0].removeprefix("zip://")


def image_source(value: dict, roots: tuple[str, ...] | None) -> io.BytesIO | str:
    """What an image of a column that is not decoded is read from.

    Raises:
        ValueError: it is a file outside of the dataset, see `check_inside`.
    """
    if value["bytes"] is not None:
        return io.BytesIO(value["bytes"])
    path, _, archive = value["path"].partition("::")
    check_inside(archive or path, roots)
    if not archive:
        return path
    if not path.startswith("zip://") or "::" in archive:
        raise ValueError(f"{value['path']} is in an archive that is not read; unpack it")
    try:
        with zipfile.ZipFile(archive) as opened:
            return io.BytesIO(opened.read(path.removeprefix("zip://")))
    except (zipfile.BadZipFile, RuntimeError, zlib.error, KeyError) as error:
        raise ValueError(f"{value['path']} cannot be read: {error}") from error


def roots_of(args: DataArguments) -> tuple[str, ...] | None:
    """Real paths of the folders that the files of a dataset may be in: its own, or the caches of Hub datasets; None if
    any file may be read."""
    if args.allow_outside_files:
        return None
    own = [args.dataset_name] if os.path.isdir(args.dataset_name) else []
    return tuple(os.path.realpath(folder) for folder in (*own, HF_DATASETS_CACHE, HF_HUB_CACHE))


def without_decoding(rows: Dataset) -> Dataset:
    """A split whose images are decoded by `SegmentationDataset`, which reports errors with row and file."""
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows
