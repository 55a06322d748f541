"""Opening a dataset of any layout: of the Hub, a local folder or memory."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets import Dataset, Image

from ..utils.files import reading_inside, warn_of_other_images
from ..utils.progress import progress
from .arguments import DataArguments
from .completeness import reader_with_completeness, without_classes
from .dataset import ROW, SegmentationDataset, roots_of, without_decoding
from .joined import join
from .labels import Labels, describe_difference, read_labels
from .layouts.folder import FolderSplit, leave_out_missing
from .layouts.registry import find_layout
from .loading import LABEL_COLUMNS, OTHER_COLUMNS, first_column, load_split
from .segments import Reader
from .splits import divide, of_one
from .tables import FILE_VOID, has_targets, read_instance_map, read_objects, read_panoptic, read_semantic

logger = logging.getLogger(__name__)
OBJECTS = ("objects",)


def open_dataset(
    args: DataArguments,
    split: str,
    max_samples: int | None = None,
    labels: Labels | None = None,
    drop_empty: bool = False,
    sample_seed: int | None = None,
) -> SegmentationDataset:
    """Load a split of a dataset, or of several ones as one.

    Args:
        args: the datasets and how to read them.
        split: name of the split.
        max_samples: use only the first images of each dataset, or as many drawn by `sample_seed`.
        labels: classes, if they were read from another split; default: read from this one.
        drop_empty: leave out images without any object.
        sample_seed: draw `max_samples` images at random.

    Raises:
        ValueError: a dataset or the split does not exist, its columns do not fit the task, or the classes of this split
            are not `labels`.
    """
    if args.join:
        names = (args.dataset_name, *args.join)
        parts = [open_dataset(of_one(args, name), split, max_samples, None, drop_empty, sample_seed) for name in names]
        joined = join(parts, args)
        if labels is not None and joined.labels.names != labels.names:
            raise ValueError(
                f"The classes of split {split!r} are not those of {args.train_split!r}: "
                f"{describe_difference(joined.labels, labels)}."
            )
        return joined
    divided = args.validation_share is not None and split in (args.train_split, args.eval_split)
    source = args.train_split if divided else split
    folder = open_folder(args, source)
    if folder is not None:
        rows, image_column, label_column = folder.rows, "image", ""
        categories = folder.categories
    else:
        rows, image_column = load_split(args, source)
        label_column, categories = find_label_column(args, rows, image_column), None
        used = (image_column, label_column, *OTHER_COLUMNS)  # others are not opened
        rows = rows.select_columns([name for name in rows.column_names if name in used])
    if labels is None or categories is not None:
        own = without_classes(
            read_labels(args, rows, label_column, categories), args.ignore_labels, args.task == "semantic"
        )
    else:
        own = labels
    if labels is not None and not same_classes(own, labels, args):
        raise ValueError(
            f"The categories of split {split!r} of {args.dataset_name} are not those of {args.train_split!r}: "
            f"{describe_difference(own, labels)}."
        )
    labels = own  # from all images, before some are dropped
    if folder is not None:
        description, reader = folder.description, folder.read
    else:
        description, reader = choose_reader(args, rows, image_column, label_column, labels)
    read = reader_with_completeness(args, labels, reader)
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
        problems = folder.problems if folder else []
        for error in problems:
            logger.warning("Left out: %s", error)
        dataset.skipped += problems
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
        void = {"do_reduce_labels", "void_label"} & set(without_effect)
        remedy = (
            "name the class that is void with --ignore_labels" if void else "write parquet files (mpformer prepare)"
        )
        raise ValueError(
            f"{args.dataset_name} is {layout.name}, which cannot be read with {', '.join(without_effect)}: leave it "
            f"out, or {remedy}."
        )
    warn_of_other_images(Path(args.dataset_name))
    folder = layout.read(Path(args.dataset_name), split, args.task, args.dataset_config_name)
    folder = leave_out_missing(folder, args.skip_bad_images)
    return replace(folder, description=folder.description or layout.name)


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
        return "panoptic id map with segments_info", partial(read_panoptic, column=label_column)
    if args.task == "semantic":
        given = (labels.before_ignoring or labels).category_to_class
        if args.void_label != FILE_VOID and args.void_label - args.do_reduce_labels in given:
            raise ValueError(f"void_label {args.void_label} is the id of a class.")
        read = partial(read_semantic, reduce_labels=args.do_reduce_labels, void=args.void_label)
        return "semantic label map", partial(read, column=label_column)
    if is_objects(rows, label_column):
        return "COCO objects", partial(read_objects, image_column=image_column, column=label_column)
    return "instance map", partial(read_instance_map, column=label_column, reduce_labels=args.do_reduce_labels)


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
