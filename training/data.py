"""Datasets of the Hub as images with segments: one adapter per layout.

Every layout becomes the same thing: a map of segment ids and a table of their classes. Pixels whose id is not in the
table are void. Class ids are 0..K-1.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, load_dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import Tensor

from mpformer_hf.images import to_rgb

from .arguments import DataArguments

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "pixel_values")
LABEL_COLUMNS = ("label", "annotation", "segmentation")
VOID_CLASS = 255


@dataclass
class Segments:
    """One image's ground truth.

    Attributes:
        map: int32 `[H, W]`, segment ids.
        classes: class of each id; ids that are not in it are void.
        crowds: ids of crowd segments, which are in no table of classes to train on.
    """

    map: Tensor
    classes: dict[int, int]
    crowds: dict[int, int] = field(default_factory=dict)


@dataclass
class Labels:
    """Classes of a dataset.

    Attributes:
        names: class names, by class id 0..K-1.
        of_category: class id of each category id that annotations use.
        things: class ids that are things.
    """

    names: list[str]
    of_category: dict[int, int]
    things: set[int]

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def stuff(self) -> list[int]:
        return sorted(set(range(len(self.names))) - self.things)


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
    read: Callable[[dict], Segments]
    labels: Labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Segments]:
        """uint8 image `[3, H, W]` and its segments.

        Raises:
            ValueError: the row cannot be used; the message names it.
        """
        row = self.rows[index]
        try:
            image, segments = to_rgb(row[self.image_column]), self.read(row)
            if segments.map.shape != image.shape[1:]:
                mask, frame = ("x".join(map(str, x)) for x in (segments.map.shape, image.shape[1:]))
                raise ValueError(f"the label map is {mask}, the image {frame} (height x width)")
        except ValueError as error:
            raise ValueError(f"Row {index}: {error}.") from error
        return image, segments


# --- Adapters ---


def read_map(image) -> np.ndarray:
    """A label image as int32 `[H, W]`: one channel as it is, RGB as id = R + 256 G + 65536 B."""
    values = np.array(image)
    if values.ndim == 3 and values.shape[2] >= 3:
        values = values.astype(np.int32)
        return values[..., 0] + 256 * values[..., 1] + 65536 * values[..., 2]
    if values.ndim != 2:
        raise ValueError(f"the label has shape {values.shape}, expected (height, width) or three channels")
    return values.astype(np.int32)


def semantic_adapter(column: str, labels: Labels, reduce_labels: bool) -> Callable[[dict], Segments]:
    """Maps of class ids, 255 = void; each class is one segment."""

    def read(row: dict) -> Segments:
        map_ = read_map(row[column])
        present = np.unique(map_)
        if reduce_labels:
            present = present[present != 0]
        present = present[present != VOID_CLASS]
        classes = {int(i): int(i) - reduce_labels for i in present}
        strange = sorted(i for i, c in classes.items() if c not in labels.of_category)
        if strange:
            raise ValueError(f"{column} has ids {strange[:5]} that are not in id2label (0..{len(labels.names) - 1})")
        return Segments(torch.from_numpy(map_), {i: labels.of_category[c] for i, c in classes.items()})

    return read


def as_rows(segments: list[dict] | dict[str, list]) -> list[dict]:
    """`segments_info` as a list of dicts; some datasets hold a dict of lists."""
    if isinstance(segments, dict):
        return [dict(zip(segments, values, strict=True)) for values in zip(*segments.values(), strict=True)]
    return segments


def panoptic_adapter(column: str, labels: Labels) -> Callable[[dict], Segments]:
    """RGB maps of segment ids and `segments_info`; 0 = void, crowds are no targets."""

    def read(row: dict) -> Segments:
        map_ = read_map(row[column])
        found = {True: {}, False: {}}
        for segment in as_rows(row["segments_info"]):
            category = segment["category_id"]
            if category not in labels.of_category:
                raise ValueError(f"segment {segment['id']} has category_id {category}, which is not in id2label")
            found[bool(segment.get("iscrowd"))][segment["id"]] = labels.of_category[category]
        nameless = set(np.unique(map_).tolist()) - set(found[True]) - set(found[False]) - {0}
        if nameless:
            raise ValueError(f"{column} has segment ids {sorted(nameless)[:5]} that are not in segments_info")
        return Segments(torch.from_numpy(map_), classes=found[False], crowds=found[True])

    return read


# --- Opening a dataset ---


def open_dataset(args: DataArguments, split: str, max_samples: int | None = None) -> SegmentationDataset:
    """Load a split and choose the adapter of its layout.

    Raises:
        ValueError: no dataset, no such split, or columns that do not fit the task.
    """
    if args.task not in ("semantic", "panoptic"):
        raise ValueError(f"task must be semantic or panoptic, got {args.task!r}.")
    rows, image_column = load_split(args, split)
    label_column = args.label_column or first_of(LABEL_COLUMNS, rows, args.dataset_name)
    for column in (image_column, label_column):
        if column not in rows.column_names:
            raise ValueError(f"{args.dataset_name} has no column {column!r}, only {', '.join(rows.column_names)}.")
    if max_samples is not None:
        rows = rows.select(range(min(max_samples, len(rows))))
    if args.task == "panoptic" and "segments_info" not in rows.column_names:
        raise ValueError(
            f"task panoptic needs a column segments_info; {args.dataset_name} has {', '.join(rows.column_names)}."
        )
    labels = read_labels(args, rows, label_column)
    if args.task == "panoptic":
        layout, read = "panoptic id map with segments_info", panoptic_adapter(label_column, labels)
    else:
        if "segments_info" in rows.column_names:
            raise ValueError(
                f"task semantic needs class ids in {label_column!r}; {args.dataset_name} has segments_info, "
                "so its maps hold segment ids: use --task panoptic."
            )
        layout, read = "semantic map", semantic_adapter(label_column, labels, args.do_reduce_labels)
    logger.info("%s[%s]: %d images, %s, %d classes", args.dataset_name, split, len(rows), layout, len(labels.names))
    return SegmentationDataset(rows, image_column, read, labels)


def load_split(args: DataArguments, split: str) -> tuple[Dataset, str]:
    """A split as it is, and the name of its image column.

    Raises:
        ValueError: no dataset, no such split, or no column of images.
    """
    if not args.dataset_name:
        raise ValueError("--dataset_name is missing: a Hub name or a local folder.")
    check_folder(args.dataset_name)
    try:
        rows = load_dataset(args.dataset_name, args.dataset_config_name, split=split)
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
    if list(folder.glob("*.json")) and list(folder.rglob("*.png")) and not list(folder.rglob("*.parquet")):
        raise ValueError(f"{name} looks like a COCO folder (json and png), which is not supported; convert it first.")
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


def read_side_file(dataset: str, name: str):
    """Content of a json file in the dataset's folder or Hub repository, or None."""
    if Path(dataset).is_dir():
        file = Path(dataset) / name
        return json.loads(file.read_text()) if file.is_file() else None
    try:
        return json.loads(Path(hf_hub_download(dataset, name, repo_type="dataset")).read_text())
    except (EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError):
        return None


def read_names(file: Path) -> dict:
    """A JSON file of class names by id.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    try:
        names = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"id2label: {file} is no JSON file that can be read.") from error
    if not isinstance(names, dict) or not all(str(key).isdigit() for key in names):
        raise ValueError(f'id2label: {file} must map class ids to names, like {{"0": "road"}}.')
    return names


def read_labels(args: DataArguments, rows: Dataset, label_column: str) -> Labels:
    """Class names: from `--id2label`, the dataset's `id2label.json`, its `panoptic_categories.json`, or its features.

    Things come from `panoptic_categories.json` or the `isthing` of all segments.

    Raises:
        ValueError: no names are to be found.
    """
    categories = read_side_file(args.dataset_name, "panoptic_categories.json")
    names = read_names(Path(args.id2label)) if args.id2label else read_side_file(args.dataset_name, "id2label.json")
    if names is None and categories is not None:
        names = {category["id"]: category["name"] for category in categories}
    feature = getattr(rows.features[label_column], "feature", rows.features[label_column])
    if names is None and isinstance(feature, ClassLabel):
        names = dict(enumerate(feature.names))
    if names is None:
        raise ValueError(f"{args.dataset_name} names no classes: give --id2label, a JSON file of id to name.")
    names = {int(category): name for category, name in names.items()}
    twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if twice:
        raise ValueError(f"{args.dataset_name} has two classes of one name: {', '.join(twice)}.")
    of_category = {category: index for index, category in enumerate(sorted(names))}
    if categories is not None:
        things = {category["id"] for category in categories if category.get("isthing")}
    elif args.task == "panoptic":
        columns = rows.select_columns("segments_info")
        segments = [segment for row in columns for segment in as_rows(row["segments_info"])]
        if any("isthing" not in segment for segment in segments):
            raise ValueError(
                f"{args.dataset_name} does not say what is a thing: it has neither panoptic_categories.json nor "
                "isthing in segments_info."
            )
        things = {segment["category_id"] for segment in segments if segment["isthing"]}
    else:
        things = set()
    return Labels(
        names=[names[category] for category in sorted(names)],
        of_category=of_category,
        things={of_category[category] for category in things if category in of_category},
    )
