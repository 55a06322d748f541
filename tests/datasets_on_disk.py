"""Small datasets in the Hub's layout."""

import json
import pickle
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import SegmentationDataset
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.model.label_maps import encode_rle
from scripts.datasets.generated_dataset import write_dataset
from scripts.datasets.make_shapes_dataset import NAMES, NUM_THINGS, draw_scene

SEGMENT = {name: Value("int64") for name in ("id", "category_id", "isthing", "iscrowd")}


def shapes(folder: Path, train: int = 6, validation: int = 3) -> Path:
    """Generated shapes, few and small."""
    counts = {"train": train, "validation": validation}
    write_dataset(folder, draw_scene, NAMES, NUM_THINGS, "Shapes", counts, size=64, seed=0)
    return folder


def opened(folder: Path, task: str = "instance", split: str = "train", **fields) -> SegmentationDataset:
    """A split, as a loader worker that is not forked gets it."""
    dataset = open_dataset(DataArguments(dataset_name=str(folder), task=task, **fields), split)
    return pickle.loads(pickle.dumps(dataset))


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


def overlapping_objects(folder: Path, column: str = "objects") -> Path:
    """Two images of instances that overlap: polygons, run lengths, a crowd."""
    square = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    mask = np.zeros((40, 60), dtype=bool)
    mask[20:36, 20:50] = True
    objects = [
        {"category": 0, "segmentation": square, "iscrowd": 0},
        {"category": 1, "segmentation": encode_rle(mask), "iscrowd": 0},
        {"category": 1, "segmentation": [[0.0, 0.0, 8.0, 0.0, 8.0, 8.0]], "iscrowd": 1},
    ]
    rows = [{"image": photo(), column: json.dumps(objects)}, {"image": photo(), column: "[]"}]
    names = {"id2label.json": {"0": "cat", "1": "dog"}}
    return write(folder, rows, {"image": Image(), column: Value("string")}, names)


def polygons(folder: Path) -> Path:
    """Objects as a column of structures, with the names in the features."""
    objects = {"category": [1, 0], "segmentation": [[[1.0, 1.0, 20.0, 1.0, 20.0, 20.0, 1.0, 20.0]]] * 2}
    features = {
        "image": Image(),
        "objects": {
            "category": List(ClassLabel(names=["cat", "dog"])),
            "segmentation": List(List(List(Value("float")))),
        },
    }
    return write(folder, [{"image": photo(), "objects": objects}], features, {})


def instance_maps(folder: Path) -> Path:
    """Classes in red, instances in green, and `semantic_class_to_id` in each row; class 0 is background."""
    values = np.zeros((40, 60, 3), dtype=np.uint8)
    values[:20, :30] = 1, 1, 0
    values[:20, 30:] = 1, 2, 0
    values[30:, 10:50] = 2, 3, 0
    ids = {"background": 0, "cat": 1, "dog": 2}
    features = {"image": Image(), "annotation": Image(), "semantic_class_to_id": {name: Value("int64") for name in ids}}
    row = {"image": photo(), "annotation": PILImage.fromarray(values), "semantic_class_to_id": ids}
    return write(folder, [row], features, {})


def coco_instances(folder: Path) -> Path:
    """A folder as COCO's instances are distributed, two splits."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / f"{split}2017").mkdir()
        photo().save(folder / f"{split}2017" / f"{split}.jpg")
        content = {
            "images": [{"id": 7, "file_name": f"{split}.jpg", "height": 40, "width": 60}],
            "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}],
            "annotations": [
                {"image_id": 7, "category_id": 18, "iscrowd": 0, "segmentation": [[1, 1, 20, 1, 20, 20, 1, 20]]}
            ],
        }
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        (folder / "annotations" / f"person_keypoints_{split}2017.json").write_text(json.dumps(content))
        (folder / "annotations" / f"captions_{split}2017.json").write_text("{}")
    return folder


def coco_panoptic(folder: Path) -> Path:
    """A folder as COCO's panoptic labels are distributed."""
    (folder / "panoptic").mkdir(parents=True)
    (folder / "images").mkdir()
    photo().save(folder / "images" / "one.jpg")
    values = np.zeros((40, 60, 3), dtype=np.uint8)
    values[:20, :, 1], values[20:, :, 0] = 1, 5
    PILImage.fromarray(values).save(folder / "panoptic" / "one.png")
    segments = [{"id": 256, "category_id": 3, "iscrowd": 0}, {"id": 5, "category_id": 90, "iscrowd": 0}]
    content = {
        "images": [{"id": 1, "file_name": "one.jpg"}],
        "categories": [{"id": 3, "name": "cat", "isthing": 1}, {"id": 90, "name": "sky", "isthing": 0}],
        "annotations": [{"image_id": 1, "file_name": "one.png", "segments_info": segments}],
    }
    (folder / "panoptic.json").write_text(json.dumps(content))
    return folder
