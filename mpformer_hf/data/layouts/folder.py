"""What all folder layouts have in common."""

import logging
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import Dataset, Features, Image, Value

from ...utils.files import IMAGE_SUFFIXES, read_text
from ..dataset import without_decoding
from ..segments import Reader
from ..split_names import names_of_split, words_of

logger = logging.getLogger(__name__)
MISSING_LISTED = 5
COLUMNS = {
    "image": Image(),  # path
    "size": [Value("int64")],  # height, width as the dataset states them
    "file_name": Value("string"),  # as the dataset names the image
    "label": Image(),
    "instances": Image(),
    "annotated_classes": [Value("int64")],  # category ids
    "complete": Value("bool"),
}


@dataclass
class FolderSplit:
    """A split of a folder.

    Attributes:
        rows: `image` and what `read` needs; `image_id` and `file_name` where the dataset has its own.
        categories: `id`, `name` and, if the dataset says it, `isthing` of each category; `void` is true for categories
            that are not classes. None: the names are not part of the layout.
        read: reader of the rows. It is a function of a module, so that loader workers of any start method have it.
        score: official average precision of the dataset: `coco` or `cityscapes`.
        description: the layout in the log, if it is not the name of the layout alone.
        problems: sentences about the images that are not among the rows, since they or their labels are invalid or do
            not exist.
    """

    rows: Dataset
    categories: list[dict] | None
    read: Reader
    score: str = "coco"
    description: str = ""
    problems: list[str] = field(default_factory=list)


class FolderLayout(ABC):
    """A layout of files. `folder` is the root that a user names; `task` is semantic, instance or panoptic."""

    name: str
    tasks: tuple[str, ...] = ("semantic", "instance", "panoptic")
    versions: tuple[str, ...] = ()  # values of dataset_config_name
    reduces_labels: bool = False  # whether do_reduce_labels says what the layout does anyway

    @abstractmethod
    def parts(self, folder: Path) -> dict[str, bool]:
        """What a folder of this layout has, and whether it is there; the layout is recognised if all parts are."""

    @abstractmethod
    def source(self, folder: Path, split: str, task: str) -> Path:
        """File or folder that a split is read from.

        Raises:
            ValueError: there is no such split.
        """

    @abstractmethod
    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        """Read a split.

        Raises:
            ValueError: there is no such split, or files are missing.
        """


def folder_of_split(parent: Path, split: str) -> Path:
    """The folder in `parent` that is named after a split.

    Raises:
        ValueError: there is none, or more than one.
    """
    return path_of_split([path for path in parent.iterdir() if path.is_dir()], split, f"{parent} must have one folder")


def path_of_split(paths: list[Path], split: str, requirement: str) -> Path:
    """The path that is named after a split.

    Raises:
        ValueError: there is none, or more than one; the message begins with `requirement`.
    """
    found = [path for path in paths if path.stem == split] or [
        path for path in paths if words_of(path.stem) & names_of_split(split)
    ]
    if len(found) != 1:
        names = ", ".join(sorted(path.name for path in found or paths)) or "none"
        raise ValueError(f"{requirement} for split {split!r}, it has {names}.")
    return found[0]


def images_in(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted."""
    files = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def read_lines(file: Path) -> list[str]:
    """Lines of a text file that are not empty, without spaces around them."""
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def warn_left_out(annotations: Path, images: int, used: int) -> None:
    """Log that a file has no annotation of some images."""
    if used < images:
        logger.warning("%s: %d images have no annotation and are left out.", annotations, images - used)


def pair_by_stem(images: Path, labels: Path, ending: str = "") -> list[tuple[Path, Path]]:
    """Images and label images of the same name, without suffix and with `ending` added. Label images may be missing.

    Raises:
        ValueError: there is no image, or a label is there twice.
    """
    found: dict[str, Path] = {}
    for path in images_in(labels):
        if path.stem in found:
            raise ValueError(f"{path} and {found[path.stem].name} are labels of one name.")
        found[path.stem] = path
    pairs = []
    for image in images_in(images):
        missing = labels / f"{image.stem}{ending}.png"  # is noticed with all others, see `leave_out_missing`
        stem = image.stem + ending
        pairs.append((image, found.pop(stem if stem in found else image.name, missing)))
    if not pairs:
        raise ValueError(f"{images} has no image.")
    if found:
        logger.warning("%s has no image in %s; there are %d of these.", next(iter(found.values())), images, len(found))
    return pairs


def leave_out_missing(folder: FolderSplit, skip: bool) -> FolderSplit:
    """The rows whose files all exist, with a sentence for each of the others.

    Args:
        folder: a split.
        skip: whether images may be left out.

    Raises:
        ValueError: images are invalid or files are missing and may not be, or all are.
    """
    rows = folder.rows
    if folder.problems and not skip:
        number, shown = len(folder.problems), "; ".join(folder.problems[:MISSING_LISTED])
        more = "; ..." if number > MISSING_LISTED else ""
        total = len(rows) + number
        raise ValueError(f"{number} of {total} images are invalid: {shown}{more}; --skip_bad_images leaves them out.")
    columns = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    kept, missing = [], []
    for index, row in enumerate(without_decoding(rows.select_columns(columns))):
        paths = [value["path"] for value in row.values() if value and value["bytes"] is None]
        lost = next((path for path in paths if not os.path.isfile(path)), None)
        if lost is None:
            kept.append(index)
        else:
            missing.append(lost)
    if not missing:
        return folder
    shown = ", ".join(missing[:MISSING_LISTED]) + (", ..." if len(missing) > MISSING_LISTED else "")
    if not skip or not kept:
        hint = "" if skip else "; --skip_bad_images leaves out their images"
        raise ValueError(f"{len(missing)} of {len(rows)} images or labels do not exist: {shown}{hint}.")
    problems = [*folder.problems, *(f"{path} does not exist." for path in missing)]
    return replace(folder, rows=rows.select(kept), problems=problems)


def make_rows(rows: list[dict], **features) -> Dataset:
    """Rows of paths and values. Columns that are not in `COLUMNS` need a feature. Ids of images are integers, or texts
    if not all are integers; where two images would have one id or name, both are paths from their common folder."""
    if any(len({row[name] for row in rows}) < len(rows) for name in ("image_id", "file_name")):
        paths = [path_of_row(row) for row in rows]
        root = os.path.commonpath([path.parent for path in paths])
        for row, path in zip(rows, paths, strict=True):
            row["image_id"] = row["file_name"] = path.relative_to(root).as_posix()
    numbers = all(isinstance(row["image_id"], int) for row in rows)
    known = {**COLUMNS, "image_id": Value("int64" if numbers else "string"), **features}
    rows = rows if numbers else [{**row, "image_id": str(row["image_id"])} for row in rows]
    try:
        return Dataset.from_list(rows, features=Features({name: known[name] for name in rows[0]}))
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object!a} is no name in UTF-8; rename the file.") from error


def path_of_row(row: dict) -> Path:
    """File of the image of a row, or that of its text if the image is in it."""
    image = row["image"] if isinstance(row["image"], str) else row["image"]["path"]
    return Path(image or row["text"])


def row_of(image: Path, **columns) -> dict:
    """A row of an image whose id is the name of its file without suffix."""
    texts = {name: str(value) if isinstance(value, Path) else value for name, value in columns.items()}
    return {"image": str(image), "image_id": image.stem, "file_name": image.name, **texts}
