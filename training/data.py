"""Datasets of the Hub, and COCO folders, as images with segments."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, load_dataset
from torch import Tensor

from mpformer_hf.images import to_rgb

from .adapters import (
    Adapter,
    Segments,
    has_targets,
    instance_map_adapter,
    objects_adapter,
    panoptic_adapter,
    semantic_adapter,
)
from .arguments import DataArguments
from .coco_folder import is_coco_folder, read_coco_folder
from .labels import Labels, read_labels

logger = logging.getLogger(__name__)

TASKS = ("semantic", "instance", "panoptic")
IMAGE_COLUMNS = ("image", "pixel_values")
LABEL_COLUMNS = ("label", "annotation", "segmentation", "semantic_segmentation")


@dataclass
class SegmentationDataset:
    """A split that yields images with segments.

    Attributes:
        rows: the split.
        image_column: column of the images.
        read: the layout's adapter, from a row to segments.
        labels: the classes.
    """

    rows: Dataset
    image_column: str
    read: Adapter
    labels: Labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Segments]:
        """uint8 image `[3, H, W]` and its segments.

        Raises:
            ValueError: the row cannot be used; the message names it.
        """
        return self.decode(self.rows[index], index)

    def decode(self, row: dict, index: int) -> tuple[Tensor, Segments]:
        """A row of any source, see `__getitem__`."""
        try:
            image, segments = to_rgb(row[self.image_column]), self.read(row)
            if segments.map.shape[-2:] != image.shape[1:]:
                mask, frame = ("x".join(map(str, x)) for x in (segments.map.shape[-2:], image.shape[1:]))
                raise ValueError(f"the label map is {mask}, the image {frame} (height x width)")
        except ValueError as error:
            raise ValueError(f"Row {index}: {error}.") from error
        return image, segments


# --- Opening a dataset ---


def open_dataset(
    args: DataArguments,
    split: str,
    max_samples: int | None = None,
    labels: Labels | None = None,
    drop_empty: bool = False,
) -> SegmentationDataset:
    """Load a split and choose the adapter of its layout.

    Args:
        args: the dataset and how to read it.
        split: its name.
        max_samples: use only the first images.
        labels: classes of another split of the dataset; default: as this one has them.
        drop_empty: leave out images without any object.

    Raises:
        ValueError: no dataset, no such split, or columns that do not fit the task.
    """
    if args.task not in TASKS:
        raise ValueError(f"task must be {', '.join(TASKS)}, got {args.task!r}.")
    categories = None
    if args.dataset_name and is_coco_folder(Path(args.dataset_name)):
        rows, categories = read_coco_folder(Path(args.dataset_name), split, args.task)
        image_column = "image"
    else:
        rows, image_column = load_split(args, split)
    if args.label_column:
        label_column = args.label_column
    else:
        usual = ("objects", *LABEL_COLUMNS) if args.task == "instance" else LABEL_COLUMNS
        label_column = first_of(usual, rows, args.dataset_name)
    for column in (image_column, label_column):
        if column not in rows.column_names:
            raise ValueError(f"{args.dataset_name} has no column {column!r}, only {', '.join(rows.column_names)}.")
    check_layout(args, rows, label_column)
    labels = labels or read_labels(args, rows, label_column, categories)  # of all images, before the rest is left out
    if drop_empty:
        rows = without_empty(rows, labels)
    if max_samples is not None:
        rows = rows.take(max_samples) if args.streaming else rows.select(range(min(max_samples, len(rows))))
    if "segments_info" in rows.column_names:
        layout, read = "panoptic id map with segments_info", panoptic_adapter(label_column, labels)
    elif args.task == "semantic":
        layout, read = "semantic map", semantic_adapter(label_column, labels, args.do_reduce_labels, args.void_label)
    elif label_column == "objects":
        layout, read = "COCO objects", objects_adapter(image_column, labels)
    else:
        layout, read = "instance map", instance_map_adapter(label_column, labels, args.do_reduce_labels)
    count = "a stream of" if args.streaming else len(rows)
    logger.info("%s[%s]: %s images, %s, %d classes", args.dataset_name, split, count, layout, len(labels.names))
    return SegmentationDataset(rows, image_column, read, labels)


def without_empty(rows: Dataset, labels: Labels) -> Dataset:
    """The rows with something to train on; only the list of objects is read.

    Raises:
        ValueError: the dataset has no such list.
    """
    for column in ("segments_info", "objects"):
        if column in rows.column_names:
            return rows.filter(lambda objects: has_targets(objects, labels), input_columns=[column])
    raise ValueError(f"drop_empty needs a column objects or segments_info, there are {', '.join(rows.column_names)}.")


def materialise(dataset: SegmentationDataset) -> SegmentationDataset:
    """A streamed split as one that is at hand, image by image."""
    rows = Dataset.from_list(list(dataset.rows), features=dataset.rows.features)
    return replace(dataset, rows=rows)


def check_layout(args: DataArguments, rows: Dataset, label_column: str) -> None:
    """
    Raises:
        ValueError: the columns do not fit the task.
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
    """A split as it is, and the name of its image column.

    Raises:
        ValueError: no dataset, no such split, or no column of images.
    """
    if not args.dataset_name:
        raise ValueError("--dataset_name is missing: a Hub name or a local folder.")
    check_folder(args.dataset_name)
    try:
        rows = load_dataset(args.dataset_name, args.dataset_config_name, split=split, streaming=args.streaming)
    except (ValueError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Cannot load split {split!r} of {args.dataset_name}: {reason}") from error
    return rows, args.image_column or first_of(IMAGE_COLUMNS, rows, args.dataset_name)


def check_folder(name: str) -> None:
    """
    Raises:
        ValueError: a local folder that `load_dataset` would misread or not read.
    """
    folder = Path(name)
    if not folder.exists():
        if name.startswith((".", "/", "~")):
            raise ValueError(f"There is no folder {name}.")
        return  # a Hub name
    if not folder.is_dir():
        raise ValueError(f"{name} is a file, expected a folder in the Hub's layout.")
    if not [
        file for file in folder.rglob("*") if file.suffix in (".parquet", ".arrow", ".jsonl", ".csv", ".zip", ".tar")
    ]:
        raise ValueError(f"{name} is no dataset: it holds no parquet, arrow, jsonl, csv, zip or tar file.")


def first_of(names: tuple[str, ...], rows: Dataset, dataset: str) -> str:
    """The first of some usual column names.

    Raises:
        ValueError: none is there.
    """
    for name in names:
        if name in rows.column_names:
            return name
    raise ValueError(f"{dataset} has none of the columns {', '.join(names)}, only {', '.join(rows.column_names)}.")
