"""Datasets of the Hub and COCO folders as images with segments."""

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import PIL.Image
from datasets import Dataset, Image, load_dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..files import TABLE_SUFFIXES, files_below
from ..images import displayed_size, image_errors, open_verified, to_rgb
from .arguments import DataArguments
from .coco import is_coco_folder, read_coco_folder
from .labels import Labels, read_labels
from .layouts import (
    Reader,
    Segments,
    has_targets,
    instance_map_reader,
    objects_reader,
    panoptic_reader,
    semantic_reader,
)
from .splits import divide

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "pixel_values")
ROW = "row_of_split"  # column: number of a row before some were left out
ROW_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)  # of annotations of any form
LABEL_COLUMNS = ("label", "annotation", "segmentation", "semantic_segmentation")


@dataclass
class SegmentationDataset:
    """A split that yields images with segments.

    Attributes:
        rows: the split.
        image_column: column of the images.
        read: reader of the annotation layout, from a row to segments.
        labels: the classes.
        skipped: errors of the rows that `skip_bad_images` left out.
    """

    rows: Dataset
    image_column: str
    read: Reader
    labels: Labels
    skipped: list[str] = field(default_factory=list)

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
            with image_errors():
                return displayed_size(open_image(self.rows[index][self.image_column]))[::-1]
        except ValueError:
            return 0, 0

    def decode(self, row: dict, index: int) -> tuple[Tensor, Segments]:
        """Image and segments of a row, see `__getitem__`."""
        file = None
        try:
            with image_errors():
                opened = {}
                for column, value in row.items():
                    file = file_name(value)
                    opened[column] = open_image(value)
                    if column == self.image_column:
                        image = to_rgb(opened[column])
                    elif isinstance(opened[column], PIL.Image.Image):
                        opened[column].load()
                file = None
                segments = self.read(opened)
            declared = row.get("size")
            if declared and list(image.shape[1:]) != list(declared):
                sizes = ["x".join(map(str, shape)) for shape in (image.shape[1:], declared)]
                raise ValueError(f"the image is {sizes[0]}, but {sizes[1]} in the annotations (height x width)")
            if segments.map.shape[-2:] != image.shape[1:]:
                sizes = ["x".join(map(str, shape)) for shape in (segments.map.shape[-2:], image.shape[1:])]
                raise ValueError(f"the label map is {sizes[0]}, the image {sizes[1]} (height x width)")
        except ROW_ERRORS as error:
            text = str(error)
            if not isinstance(error, ValueError):
                text = f"the annotation is invalid ({type(error).__name__}: {error})"
            number = row.get(ROW, index)
            raise ValueError(f"Row {number}{f' ({file})' if file else ''}: {' '.join(text.split())}.") from error
        return image, segments


def open_image(value):
    """The image of a column that is not decoded, `{"bytes": ..., "path": ...}`; other values as they are."""
    if not isinstance(value, dict) or set(value) != {"bytes", "path"}:
        return value
    return open_verified(io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"])


def file_name(value) -> str | None:
    """Path of an image of a column that is not decoded, if it has one."""
    return value["path"] if isinstance(value, dict) and set(value) == {"bytes", "path"} else None


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
    categories = None
    divided = args.validation_share is not None and split in (args.train_split, args.eval_split)
    source = args.train_split if divided else split
    if args.dataset_name and is_coco_folder(Path(args.dataset_name)):
        if args.streaming:
            raise ValueError(f"{args.dataset_name} is a COCO folder, which cannot be streamed: leave out streaming.")
        rows, categories = read_coco_folder(Path(args.dataset_name), source, args.task)
        image_column = "image"
    else:
        rows, image_column = load_split(args, source)
    if args.label_column:
        label_column = args.label_column
    else:
        candidates = ("objects", *LABEL_COLUMNS) if args.task == "instance" else LABEL_COLUMNS
        label_column = first_column(candidates, rows, args.dataset_name)
    for column in (image_column, label_column):
        if column not in rows.column_names:
            raise ValueError(f"{args.dataset_name} has no column {column!r}, only {', '.join(rows.column_names)}.")
    check_layout(args, rows, label_column)
    own = read_labels(args, rows, label_column, categories) if labels is None or categories is not None else labels
    if labels is not None and (own.names, own.category_to_class) != (labels.names, labels.category_to_class):
        raise ValueError(
            f"The categories of split {split!r} of {args.dataset_name} are not those of {args.train_split!r}."
        )
    labels = own  # from all images, before some are dropped
    if divided or drop_empty or sample_seed is not None:
        rows = rows if args.streaming else rows.add_column(ROW, list(range(len(rows))))  # for messages
    if divided:
        rows = divide(rows, args.validation_share)[split == args.eval_split]
    if drop_empty:
        rows = without_empty(rows, labels)
    if max_samples is not None:
        rows = rows if sample_seed is None else rows.shuffle(seed=sample_seed)
        rows = rows.take(max_samples) if args.streaming else rows.select(range(min(max_samples, len(rows))))
    if not args.streaming and len(rows) == 0:
        raise ValueError(
            f"Split {split!r} of {args.dataset_name} has no image{' with an object' if drop_empty else ''}."
        )
    if args.do_reduce_labels and ("segments_info" in rows.column_names or label_column == "objects"):
        raise ValueError("do_reduce_labels is for label maps of class ids; this dataset has lists of segments.")
    if "segments_info" in rows.column_names:
        layout, read = "panoptic id map with segments_info", panoptic_reader(label_column, labels)
    elif args.task == "semantic":
        layout, read = (
            "semantic label map",
            semantic_reader(label_column, labels, args.do_reduce_labels, args.void_label),
        )
    elif label_column == "objects":
        layout, read = "COCO objects", objects_reader(image_column, labels)
    else:
        layout, read = "instance map", instance_map_reader(label_column, labels, args.do_reduce_labels)
    count = "a stream of" if args.streaming else len(rows)
    logger.info("%s[%s]: %s images, %s, %d classes", args.dataset_name, split, count, layout, len(labels.names))
    dataset = SegmentationDataset(without_decoding(rows), image_column, read, labels)
    return without_bad_images(dataset, args) if args.skip_bad_images else dataset


def without_bad_images(dataset: SegmentationDataset, args: DataArguments) -> SegmentationDataset:
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

    with ThreadPoolExecutor(max(1, args.dataloader_num_workers)) as pool:
        errors = list(tqdm(pool.map(error_of, range(len(dataset))), "check", len(dataset), leave=False))
    skipped = [error for error in errors if error]
    if len(skipped) == len(dataset):
        raise ValueError(f"All {len(dataset)} images are invalid; the first one: {skipped[0]}")
    for error in skipped:
        logger.warning("Left out: %s", error)
    rows = dataset.rows.select([index for index, error in enumerate(errors) if not error])
    return replace(dataset, rows=rows, skipped=skipped)


def without_empty(rows: Dataset, labels: Labels) -> Dataset:
    """Rows that have a segment to train on. Only the list of objects is read, not the images.

    Raises:
        ValueError: the dataset has no list of objects.
    """
    for column in ("segments_info", "objects"):
        if column in rows.column_names:
            return rows.filter(lambda objects: has_targets(objects, labels), input_columns=[column])
    raise ValueError(
        f"drop_empty needs a column objects or segments_info; the columns are {', '.join(rows.column_names)}."
    )


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
    if args.task == "semantic" and has_segments:
        raise ValueError(
            f"task semantic needs class ids in {label_column!r}; {args.dataset_name} has segments_info, "
            "so its maps hold segment ids: use --task panoptic."
        )


def load_split(args: DataArguments, split: str) -> tuple[Dataset, str]:
    """Load a split with `datasets`; returns it and the name of its image column.

    Raises:
        ValueError: the dataset, the split or the image column does not exist.
    """
    if not args.dataset_name:
        raise ValueError("--dataset_name is missing: a Hub name or a local folder.")
    check_folder(args.dataset_name)
    try:
        rows = load_dataset(args.dataset_name, args.dataset_config_name, split=split, streaming=args.streaming)
    except (ValueError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Cannot load split {split!r} of {args.dataset_name}: {reason}") from error
    return rows, args.image_column or first_column(IMAGE_COLUMNS, rows, args.dataset_name)


def check_folder(name: str) -> None:
    """Check a local folder.

    Raises:
        ValueError: `load_dataset` could not read it, or would misread it.
    """
    folder = Path(name)
    if not folder.exists():
        if name.startswith((".", "/", "~")):
            raise ValueError(f"Folder {name} does not exist.")
        return  # a Hub name
    if not folder.is_dir():
        raise ValueError(f"{name} is a file, expected a folder in the Hub's layout.")
    if not any(file.suffix in TABLE_SUFFIXES for file in files_below(folder)):
        raise ValueError(f"{name} is not a dataset: it has no file of type {', '.join(TABLE_SUFFIXES)}.")


def first_column(names: tuple[str, ...], rows: Dataset, dataset: str) -> str:
    """The first of several names that is a column.

    Raises:
        ValueError: none is.
    """
    for name in names:
        if name in rows.column_names:
            return name
    raise ValueError(f"{dataset} has none of the columns {', '.join(names)}, only {', '.join(rows.column_names)}.")
