"""ADE20K of the scene parsing benchmark (ADEChallengeData2016) as downloaded."""

from pathlib import Path

import numpy as np
import torch

from ..labels import Labels
from ..releases import RELEASES, categories_of
from ..segments import Segments, read_map
from ..split_names import words_of
from ..tables import instance_ids, read_semantic
from .coco import read_panoptic_split
from .folder import FolderLayout, FolderSplit, folder_of_split, images_in, make_rows, pair_by_stem, row_of

NAMES, THINGS = RELEASES["ade20k"]["names"], RELEASES["ade20k"]["things"]
PANOPTIC = categories_of("ade20k")
SEMANTIC = [{"id": 0, "name": "other", "void": True}]
SEMANTIC += [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]


def add_instances(segments: Segments, instances: np.ndarray, labels: Labels) -> None:
    """Add the instances of an instance map, in front of what is there.

    Raises:
        ValueError: a class is not 1..100.
    """
    for value in np.unique(instances[instances > 0]).tolist():
        number = value // 256
        if not 1 <= number <= len(THINGS):
            raise ValueError(f"the instance map has class {number}, expected 1 to {len(THINGS)}")
        segments.classes[value] = labels.category_to_class[THINGS[number - 1]]
    segments.map = torch.where(torch.from_numpy(instances > 0), torch.from_numpy(instances), segments.map)


def read_instances(row: dict, labels: Labels) -> Segments:
    """Instance maps, whose class numbers count the things in the order of their scene classes."""
    instances = instance_ids(row["instances"], "the instance map")
    segments = Segments(torch.zeros(instances.shape, dtype=torch.int32), {})
    add_instances(segments, instances, labels)
    return segments


def read_merged(row: dict, labels: Labels) -> Segments:
    """Panoptic segments: stuff of the semantic map, and the instances in front of it. A thing class of the semantic map
    without an instance is void."""
    stuff = set(range(len(NAMES))) - set(THINGS)
    map_, instances = read_map(row["label"]), instance_ids(row["instances"], "the instance map")
    if map_.shape != instances.shape:
        raise ValueError(f"the semantic map is {map_.shape}, the instance map {instances.shape} (height, width)")
    ids = np.where(np.isin(map_ - 1, sorted(stuff)), map_, 0)  # 1..150, below those of instances
    segments = Segments(torch.from_numpy(ids.astype(np.int32)), {})
    add_instances(segments, instances, labels)
    left = np.unique(segments.map.numpy())
    segments.classes |= {i: labels.category_to_class[i - 1] for i in left.tolist() if 0 < i <= len(NAMES)}
    return segments


class Ade20k(FolderLayout):
    """Semantic maps (0 = other, which is void, 1..150), and instance maps (`annotations_instance`, a second download)
    with the class 1..100 in red and the number in green. For panoptic segmentation `ade20k_panoptic_SPLIT.json` if it
    is there, else the same from both maps. The full ADE20K is another layout, which is not read."""

    name = "ADE20K (ADEChallengeData2016: images, annotations)"
    reduces_labels = True

    def parts(self, folder: Path) -> dict[str, bool]:
        return {
            f"{part}/training/": (folder / part / "training").is_dir() or (folder / part / "validation").is_dir()
            for part in ("images", "annotations")
        } | {"ADE_*.png in annotations/": any((folder / "annotations").glob("*/ADE_*.png"))}

    def source(self, folder: Path, split: str, task: str) -> Path:
        return folder_of_split(folder / "images", split)

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        images = self.source(folder, split, task)
        prepared = folder / f"ade20k_panoptic_{'train' if 'training' in words_of(images.name) else 'val'}.json"
        if task == "panoptic" and prepared.is_file():
            return read_panoptic_split(self, prepared, prepared.with_suffix(""), images_in(images), PANOPTIC)
        pairs = pair_by_stem(images, folder / "annotations" / images.name)
        rows = [row_of(image, label=label) for image, label in pairs]
        if task == "semantic":
            return FolderSplit(make_rows(rows), SEMANTIC, read_semantic)
        maps = folder / "annotations_instance" / images.name
        if not maps.is_dir():
            raise ValueError(f"{folder} has no {maps.relative_to(folder)}/, the second download, for task {task}.")
        pairs = pair_by_stem(images, maps)
        rows = [row | {"instances": str(label)} for row, (_, label) in zip(rows, pairs, strict=True)]
        return FolderSplit(make_rows(rows), PANOPTIC, read_merged if task == "panoptic" else read_instances)
