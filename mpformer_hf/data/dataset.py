"""Datasets of the Hub and COCO folders as images with segments."""

import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, load_dataset
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub.constants import HF_HUB_CACHE
from torch import Tensor

from ..model.images import open_image, read_size, to_rgb
from ..utils.files import IMAGE_SUFFIXES, check_inside, reading_inside
from ..utils.progress import progress
from .arguments import MEMORY, DataArguments
from .completeness import complete_reader, without_classes
from .labels import Labels, describe_difference, read_labels
from .layouts.folder import FolderSplit, leave_out_missing
from .layouts.registry import find_layout
from .memory import find_split
from .result_names import result_name, result_names
from .segments import Reader, Segments
from .splits import divide
from .tables import FILE_VOID, has_targets, instance_map_reader, objects_reader, panoptic_reader, semantic_reader

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "pixel_values")
WEBDATASET = {  # columns of tar files, which are endings of file names; the first one of each row is used
    "image_id": ("__key__",),
    "label": ("label.png", "mask.png", "label.tif", "png"),
    "image": ("jpg", "jpeg", "webp", "image.jpg", "image.png", "png"),
    "segments_info": ("segments_info.json",),
    "objects": ("objects.json",),
}
ROW = "row_of_split"  # column: number of a row before some were left out
ROW_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)  # of annotations of any form
OBJECTS = ("objects",)
LABEL_COLUMNS = ("label", "annotation", "segmentation", "semantic_segmentation")


@dataclass
class SegmentationDataset:
    """A split that yields images with segments.

    Attributes:
        rows: the split.
        image_column: column of the images.
        read: reader of the annotation layout, from a row to segments.
        labels: the classes.
        score: official average precision of the dataset, `coco` or `cityscapes`.
        from_files: whether the images are files of a local folder.
        skipped: errors of the rows that `skip_bad_images` left out.
        told_of_empty: whether it was logged that segments cover no pixel.
        roots: folders that the files of the dataset may be in; None: any.
    """

    rows: Dataset
    image_column: str
    read: Reader
    labels: Labels
    score: str = "coco"
    from_files: bool = False
    skipped: list[str] = field(default_factory=list)
    told_of_empty: bool = False
    roots: tuple[str, ...] | None = None

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
                for path in [value] if column == "text" else value if column == "masks" else ():
                    check_inside(path, self.roots)
            file = file_name(row[self.image_column])
            image = to_rgb(opened[self.image_column])
            file = None
            segments = self.read(opened)
            declared = row.get("size")
            if declared and list(image.shape[1:]) != list(declared):
                sizes = ["x".join(map(str, shape)) for shape in (image.shape[1:], declared)]
                raise ValueError(f"the image is {sizes[0]}, but {sizes[1]} in the annotations (height x width)")
            if segments.map.shape[-2:] != image.shape[1:]:
                sizes = ["x".join(map(str, shape)) for shape in (segments.map.shape[-2:], image.shape[1:])]
                raise ValueError(f"the label map is {sizes[0]}, the image {sizes[1]} (height x width)")
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
    """Path of an image of a column that is not decoded, if it has one."""
    return value["path"] if is_file(value) else None


def image_source(value: dict, roots: tuple[str, ...] | None) -> io.BytesIO | str:
    """What an image of a column that is not decoded is read from.

    Raises:
        ValueError: it is a file outside of the dataset, see `check_inside`.
    """
    if value["bytes"] is not None:
        return io.BytesIO(value["bytes"])
    check_inside(value["path"], roots)
    return value["path"]


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


# --- Opening a dataset ---


def open_dataset(
    args: DataArguments,
    split: str,
    max_samples: int | None = None,
    labels: Labels | None = None,
    drop_empty: bool = False,
    sample_seed: int | None = None,
) -> SegmentationDataset:
    """Load a split and choose the reader of its annotation layout.

    Args:
        args: the dataset and how to read it.
        split: name of the split.
        max_samples: use only the first images, or as many drawn by `sample_seed`.
        labels: classes, if they were read from another split; default: read from this one.
        drop_empty: leave out images without any object.
        sample_seed: draw `max_samples` images at random.

    Raises:
        ValueError: the dataset or the split does not exist, or the columns do not fit the task.
    """
    divided = args.validation_share is not None and split in (args.train_split, args.eval_split)
    source = args.train_split if divided else split
    folder = open_folder(args, source)
    if folder is not None:
        rows, image_column, label_column = folder.rows, "image", ""
        categories = folder.categories
    else:
        rows, image_column = load_split(args, source)
        label_column, categories = find_label_column(args, rows, image_column), None
    if labels is None or categories is not None:
        own = without_classes(read_labels(args, rows, label_column, categories), args.ignore_labels)
    else:
        own = labels
    if labels is not None and not same_classes(own, labels, args):
        raise ValueError(
            f"The categories of split {split!r} of {args.dataset_name} are not those of {args.train_split!r}: "
            f"{describe_difference(own, labels)}."
        )
    labels = own  # from all images, before some are dropped
    if folder is not None:
        description, read = folder.description, folder.make_reader(labels.full or labels)
    else:
        description, read = choose_reader(args, rows, image_column, label_column, labels.full or labels)
    read = complete_reader(args, labels, read)
    if divided or drop_empty or sample_seed is not None:
        rows = rows if args.streaming else rows.add_column(ROW, list(range(len(rows))))  # for messages
    if divided:
        rows = divide(rows, args.validation_share or 0.0)[split == args.eval_split]
    score = folder.score if folder else "coco"
    dataset = SegmentationDataset(
        without_decoding(rows), image_column, read, labels, score, folder is not None, roots=roots_of(args)
    )
    if drop_empty:
        dataset = without_empty(dataset)
    if max_samples is not None:
        rows = dataset.rows if sample_seed is None else dataset.rows.shuffle(seed=sample_seed)
        rows = rows.take(max_samples) if args.streaming else rows.select(range(min(max_samples, len(rows))))
        dataset = replace(dataset, rows=rows)
    if not args.streaming and len(dataset) == 0:
        raise ValueError(
            f"Split {split!r} of {args.dataset_name} has no image{' with an object' if drop_empty else ''}."
        )
    count = "a stream of" if args.streaming else len(dataset)
    logger.info("%s[%s]: %s images, %s, %d classes", args.dataset_name, split, count, description, len(labels.names))
    if args.skip_bad_images:
        dataset = without_bad_images(dataset)
        missing = folder.missing if folder else []
        for error in missing:
            logger.warning("Left out: %s", error)
        dataset.skipped += missing
    return dataset


def same_classes(own: Labels, other: Labels, args: DataArguments) -> bool:
    """Whether two splits have the same classes. With `id2label` their categories may have other ids."""
    same_ids = own.category_to_class == other.category_to_class
    return own.names == other.names and (same_ids or args.id2label is not None)


def open_folder(args: DataArguments, split: str) -> FolderSplit | None:
    """A split of a local folder in a layout of its own; None for datasets in the Hub's layout.

    Raises:
        ValueError: the folder cannot be read, or flags have no effect on its layout.
    """
    if not args.dataset_name:
        raise ValueError("DATA is missing: a Hub name or a local folder.")
    with reading_inside(roots_of(args)):
        return read_folder(args, split)


def read_folder(args: DataArguments, split: str) -> FolderSplit | None:
    """See `open_folder`."""
    layout = find_layout(args.dataset_name, args.task)
    if layout is None:
        return None
    flags = ["streaming", "image_column", "label_column", *(["do_reduce_labels"] * (not layout.reduces_labels))]
    without_effect = [name for name in flags if getattr(args, name)]
    if args.void_label != FILE_VOID:
        without_effect.append("void_label")
    if args.dataset_config_name and args.dataset_config_name not in layout.versions:
        without_effect.append("dataset_config_name")
    if without_effect:
        raise ValueError(
            f"{args.dataset_name} is {layout.name}, which cannot be read with {', '.join(without_effect)}: leave it "
            "out, or write it in the Hub's layout first (mpformer prepare)."
        )
    folder = layout.read(Path(args.dataset_name), split, args.task, args.dataset_config_name)
    rows, missing = leave_out_missing(folder.rows, args.skip_bad_images)
    return replace(folder, rows=rows, missing=missing, description=folder.description or layout.name)


def find_label_column(args: DataArguments, rows: Dataset, image_column: str) -> str:
    """Column of the labels of a table.

    Raises:
        ValueError: there is none, or the columns do not fit the task.
    """
    candidates = ("objects", *LABEL_COLUMNS) if args.task == "instance" else LABEL_COLUMNS
    column = args.label_column or first_column(candidates, rows, args.dataset_name)
    for name in (image_column, column):
        if name not in rows.column_names:
            raise ValueError(f"{args.dataset_name} has no column {name!r}, only {', '.join(rows.column_names)}.")
    check_layout(args, rows, column)
    return column


def choose_reader(
    args: DataArguments, rows: Dataset, image_column: str, label_column: str, labels: Labels
) -> tuple[str, Reader]:
    """Description of the layout of a table, and its reader."""
    if "segments_info" in rows.column_names:
        return "panoptic id map with segments_info", panoptic_reader(label_column, labels)
    if args.task == "semantic":
        read = semantic_reader(label_column, labels, args.do_reduce_labels, args.void_label)
        return "semantic label map", read
    if is_objects(rows, label_column):
        return "COCO objects", objects_reader(image_column, labels, label_column)
    return "instance map", instance_map_reader(label_column, labels, args.do_reduce_labels)


def is_objects(rows: Dataset, column: str) -> bool:
    """Whether a column has lists of objects, perhaps as JSON, and no images."""
    return column in OBJECTS or not isinstance((rows.features or {}).get(column, Image()), Image)


def without_bad_images(dataset: SegmentationDataset) -> SegmentationDataset:
    """Read every row, and leave out those that are invalid; `skipped` has their errors.

    Raises:
        ValueError: all are.
    """

    def error_of(index: int) -> str | None:
        try:
            dataset[index]
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        errors = list(progress(pool.map(error_of, range(len(dataset))), "check", len(dataset), leave=False))
    skipped = [error for error in errors if error]
    if len(skipped) == len(dataset):
        raise ValueError(f"All {len(dataset)} images are invalid; the first one: {skipped[0]}")
    for error in skipped:
        logger.warning("Left out: %s", error)
    rows = dataset.rows.select([index for index, error in enumerate(errors) if not error])
    return replace(dataset, rows=rows, skipped=skipped)


def without_empty(dataset: SegmentationDataset) -> SegmentationDataset:
    """Leave out rows without a segment to train on. Where no column lists the segments, every image is read."""
    for column in ("segments_info", *OBJECTS):
        if column in dataset.rows.column_names:
            rows = dataset.rows.filter(lambda objects: has_targets(objects, dataset.labels), input_columns=[column])
            return replace(dataset, rows=rows)
    if not isinstance(dataset.rows, Dataset):
        raise ValueError("drop_empty needs a column objects or segments_info in a streamed dataset.")
    indices = progress(range(len(dataset)), "find images with objects", leave=False)
    return replace(dataset, rows=dataset.rows.select([index for index in indices if dataset[index][1].classes]))


def materialize_stream(dataset: SegmentationDataset) -> SegmentationDataset:
    """Download a streamed split into memory."""
    rows = Dataset.from_list(list(dataset.rows), features=dataset.rows.features)
    return replace(dataset, rows=rows)


def check_layout(args: DataArguments, rows: Dataset, label_column: str) -> None:
    """Check the columns.

    Raises:
        ValueError: they do not fit the task.
    """
    has_segments = "segments_info" in rows.column_names
    if args.task == "panoptic" and not has_segments:
        raise ValueError(
            f"task panoptic needs a column segments_info; {args.dataset_name} has {', '.join(rows.column_names)}."
        )
    if args.void_label != FILE_VOID and args.task != "semantic":
        raise ValueError(f"void_label is for semantic label maps, and has no effect for the task {args.task}.")
    if args.task == "semantic" and has_segments:
        raise ValueError(
            f"task semantic needs class ids in {label_column!r}; {args.dataset_name} has segments_info, "
            "so its maps hold segment ids: use --task panoptic."
        )
    if args.do_reduce_labels and (has_segments or is_objects(rows, label_column)):
        raise ValueError("do_reduce_labels is for label maps of class ids; this dataset has lists of segments.")


def load_split(args: DataArguments, split: str) -> tuple[Dataset, str]:
    """Load a split of a table with `datasets`; returns it and the name of its image column.

    Raises:
        ValueError: the dataset, the split or the image column does not exist.
    """
    if args.dataset_name.startswith((".", "/", "~")) and not Path(args.dataset_name).exists():
        raise ValueError(f"Folder {args.dataset_name} does not exist.")
    if args.dataset_name.startswith(MEMORY):
        rows = find_split(args.dataset_name, split)
        return rows, args.image_column or first_column(IMAGE_COLUMNS, rows, args.dataset_name)
    try:
        rows = load_dataset(args.dataset_name, args.dataset_config_name, split=split, streaming=args.streaming)
    except (ValueError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Cannot load split {split!r} of {args.dataset_name}: {reason}") from error
    if "__key__" in rows.column_names:
        # a stream that is decoded before it is renamed is encoded again, as JPEG
        rows = without_decoding(rows).rename_columns(webdataset_names(rows.column_names))
    image_column = args.image_column or first_column(IMAGE_COLUMNS, rows, args.dataset_name)
    if Path(args.dataset_name).is_dir():
        rows = read_paths(rows, args.dataset_name)
    return rows, image_column


def read_paths(rows: Dataset, folder: str) -> Dataset:
    """A table of a local folder whose columns of paths of images, relative to it, are columns of images."""
    texts = [
        name
        for name, feature in (rows.features or {}).items()
        if getattr(feature, "dtype", None) in ("string", "large_string") and name != "file_name"
    ]
    first: dict = next(iter(rows.select_columns(texts)), {}) if texts else {}
    for name, value in first.items():
        if value is not None and value.lower().endswith(IMAGE_SUFFIXES):
            absolute = rows.map(partial(with_folder, folder=folder, name=name))
            rows = absolute.cast_column(name, Image(decode=False))
    return rows


def with_folder(row: dict, folder: str, name: str) -> dict:
    """The path of an image with its folder before it."""
    value = row[name]
    if value is None:
        return {name: None}
    value = value.replace("\\", "/")
    return {name: os.path.join(folder, value)} | ({} if "file_name" in row else {"file_name": value})


def webdataset_names(columns: list[str]) -> dict[str, str]:
    """New names of the columns of tar files. `KEY.png` is the label beside a JPEG, and the image beside another
    label."""
    names: dict[str, str] = {}
    for new, candidates in WEBDATASET.items():
        old = next((name for name in candidates if name in columns and name not in names), None)
        if old is not None:
            names[old] = new
    return names


def first_column(names: tuple[str, ...], rows: Dataset, dataset: str) -> str:
    """The first of several names that is a column.

    Raises:
        ValueError: none is.
    """
    for name in names:
        if name in rows.column_names:
            return name
    flag = "image_column" if names == IMAGE_COLUMNS else "label_column"
    found = ", ".join(rows.column_names)
    raise ValueError(f"{dataset} has none of the columns {', '.join(names)}, only {found}; name it with --{flag}.")
