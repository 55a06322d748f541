"""Small datasets in the Hub's layout."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from scripts.make_shapes_dataset import write_dataset

SEGMENT = {name: Value("int64") for name in ("id", "category_id", "isthing", "iscrowd")}


def shapes(folder: Path, train: int = 6, validation: int = 3) -> Path:
    """The quickstart's dataset, small."""
    write_dataset(folder, {"train": train, "validation": validation}, size=64, seed=0)
    return folder


def photo(height: int = 40, width: int = 60, mode: str = "RGB") -> PILImage.Image:
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PILImage.fromarray(values).convert(mode)


def write(folder: Path, rows: list[dict], features: dict, side_files: dict[str, object]) -> Path:
    """One parquet split, `train`, and json files beside it."""
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    for name, content in side_files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def semantic(
    folder: Path, maps: list[np.ndarray], images=None, names=("road", "car", "sky"), columns=("image", "label")
):
    """A semantic dataset of given maps."""
    images = images or [photo(*map_.shape[:2]) for map_ in maps]
    labels = [PILImage.fromarray(map_) for map_ in maps]
    rows = [dict(zip(columns, pair, strict=True)) for pair in zip(images, labels, strict=True)]
    side = {"id2label.json": dict(enumerate(names))} if names else {}
    return write(folder, rows, dict.fromkeys(columns, Image()), side)


def panoptic(folder: Path, ids: np.ndarray, segments: list[dict], names=("road", "car", "sky"), categories=None):
    """A panoptic dataset of one image."""
    rgb = np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8)
    row = {"image": photo(*ids.shape), "label": PILImage.fromarray(rgb), "segments_info": segments}
    keys = {key: SEGMENT[key] for key in segments[0]}
    side = {"id2label.json": dict(enumerate(names))}
    if categories:
        side = {"panoptic_categories.json": categories}
    return write(folder, [row], {"image": Image(), "label": Image(), "segments_info": [keys]}, side)
