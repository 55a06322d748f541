"""Any dataset as parquet files in the Hub's layout, which are read faster than polygons and can be streamed."""

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from ..model.label_maps import compress_counts
from ..utils.progress import progress
from ..utils.threads import in_threads
from .completeness import COLUMNS, stated_by
from .dataset import SegmentationDataset
from .labels import Labels
from .segments import Segments, as_png

VOID = 255
SHARD_BYTES = 300 << 20
SEGMENT = dict.fromkeys(("id", "category_id", "isthing", "iscrowd", "area"), datasets.Value("int64"))
LABELS = {
    "semantic": {"label": datasets.Image()},
    "instance": {"objects": datasets.Value("string")},
    "panoptic": {"label": datasets.Image(), "segments_info": [SEGMENT]},
}


def ids_in_files(labels: Labels, task: str) -> list[int]:
    """Category ids of the classes: the dataset's, or where label maps cannot hold these, as colours, the class ids."""
    ids = labels.category_ids
    return ids if task != "semantic" or (max(ids) < 1 << 16 and VOID not in ids) else list(range(len(ids)))


def label_columns(segments: Segments, task: str, category_ids: list[int], things: set[int]) -> dict:
    """Columns of the labels, with the category ids of `ids_in_files`."""
    if task == "semantic":
        map_ = segments.map.numpy()
        values = np.full(map_.shape, VOID, dtype=np.uint8 if max(category_ids) < VOID else np.uint16)
        for segment, label in segments.classes.items():
            values[map_ == segment] = category_ids[label]
        return {"label": as_png(values)}
    known = [(i, label, i in segments.crowds) for i, label in (segments.classes | segments.crowds).items()]
    rows: list[dict] = []
    if task == "panoptic":
        ids = np.zeros(segments.map.shape, dtype=np.uint32)
        for number, (segment, label, crowd) in enumerate(known, start=1):
            mask = (segments.map == segment).numpy()
            ids[mask] = number
            row = {"id": number, "category_id": category_ids[label], "isthing": int(label in things)}
            rows.append({**row, "iscrowd": int(crowd), "area": int(mask.sum())})
        rgb = np.stack((ids & 255, ids >> 8 & 255, ids >> 16), -1).astype(np.uint8)
        return {"label": as_png(rgb), "segments_info": rows}
    for (segment, label, crowd), rle in zip(known, segments.rles([segment for segment, *_ in known]), strict=True):
        rle["counts"] = compress_counts(rle["counts"])
        area = {"area": segments.areas[segment]} if segment in segments.areas else {}
        rows.append({"category_id": category_ids[label], "segmentation": rle, "iscrowd": int(crowd), **area})
    return {"objects": json.dumps(rows)}


def make_row(
    dataset: SegmentationDataset, task: str, columns: Sequence[str], category_ids: list[int], index: int
) -> dict:
    """A row of the parquet file.

    Raises:
        ValueError: the image or its annotation is invalid.
    """
    row = dataset.rows[index]
    _, segments = dataset.decode(row, index)
    image_id, file_name, _ = dataset.identity(index)
    source = dataset.source(row[dataset.image_column])
    content = source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()
    image = {"bytes": content, "path": Path(file_name).name}
    labels = label_columns(segments, task, category_ids, dataset.labels.things)
    stated = stated_by(row, segments, dataset.labels, columns)
    return {"image": image, "image_id": image_id, "file_name": file_name, **labels, **stated}


def write_parquet(
    dataset: SegmentationDataset,
    task: str,
    folder: Path,
    split: str,
    workers: int,
    category_ids: list[int],
    columns: Sequence[str] = (),
) -> None:
    """Write a split as parquet files of about 300 MB in `folder/data`, with further `columns`, of completeness.
    `category_ids` are the ids in the file of class names, which all splits share.

    Raises:
        ValueError: an image or its annotation is invalid.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    numbers = isinstance(dataset.identity(0)[0], int)
    identity = {"image_id": datasets.Value("int64" if numbers else "string"), "file_name": datasets.Value("string")}
    stated = {name: COLUMNS[name] for name in columns}
    features = datasets.Features({"image": datasets.Image(), **identity, **LABELS[task], **stated})
    files: list[Path] = []
    rows: list[dict] = []
    size = 0

    def flush() -> None:
        files.append(folder / "data" / f"{split}-{len(files):05d}.parquet")
        datasets.Dataset.from_list(rows, features=features).to_parquet(files[-1])
        rows.clear()

    made = in_threads(partial(make_row, dataset, task, columns, category_ids), range(len(dataset)), workers)
    for _, row in progress(made, f"prepare {split}", len(dataset), unit="image"):
        rows.append(row.result())
        size += len(rows[-1]["image"]["bytes"])
        if size >= SHARD_BYTES:
            flush()
            size = 0
    if rows:
        flush()
    for file in files:
        file.rename(file.with_name(f"{file.stem}-of-{len(files):05d}.parquet"))


def describe_categories(dataset: SegmentationDataset, task: str) -> dict[str, object]:
    """Files of class names, by name."""
    labels = dataset.labels
    rows = list(zip(ids_in_files(labels, task), labels.names, strict=True))
    if labels.palette is None and (task == "instance" or not labels.things):
        return {"id2label.json": {str(category): name for category, name in rows}}
    things = [int(label in labels.things) for label in range(len(rows))]
    categories = [{"id": i, "name": name, "isthing": thing} for (i, name), thing in zip(rows, things, strict=True)]
    for category, color in zip(categories, labels.palette or (), strict=labels.palette is not None):
        category["color"] = list(color)
    return {"panoptic_categories.json": categories}
