"""Mapillary Vistas, versions 1.2 and 2.0, as downloaded."""

from pathlib import Path

import numpy as np
import torch

from ...utils.files import read_json
from ..labels import Labels
from ..releases import categories_of
from ..segments import Segments, read_map
from ..tables import read_semantic
from .coco import read_panoptic_split
from .folder import FolderLayout, FolderSplit, folder_of_split, images_in, make_rows, pair_by_stem, row_of

INSTANCE = 256  # instances: label id * 256 + number


def read_instances(row: dict, labels: Labels) -> Segments:
    """Maps of instances; labels that are not things are left out."""
    map_ = read_map(row["label"])
    segments = Segments(torch.from_numpy(map_), {})
    for value in np.unique(map_).tolist():
        category = value // INSTANCE
        if category in labels.category_to_class:
            segments.classes[value] = labels.category_to_class[category]
        elif category not in labels.ignored_categories:
            raise ValueError(f"the instance map has label {category}, which is not in the configuration")
    return segments


class Mapillary(FolderLayout):
    """Label maps, 16-bit instance maps and panoptic JSON. Version 2.0 has a folder `v1.2` and `v2.0` in each split;
    `dataset_config_name` chooses, by default v1.2, which the releases use."""

    name = "Mapillary Vistas (training/images, training/labels)"
    versions = ("v1.2", "v2.0")

    def parts(self, folder: Path) -> dict[str, bool]:
        splits = [folder / "training", folder / "validation"]
        labels = ("labels", "v1.2/labels", "v2.0/labels")
        return {
            "config*.json": any(folder.glob("config*.json")),
            "training/ or validation/": any(split.is_dir() for split in splits),
            "training/images/": any((split / "images").is_dir() for split in splits),
            "training/labels/, or v1.2/labels/ or v2.0/labels/ in training/": any(
                (split / part).is_dir() for split in splits for part in labels
            ),
        }

    def source(self, folder: Path, split: str, task: str) -> Path:
        return folder_of_split(folder, split)

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        split_folder = self.source(folder, split, task)
        root = split_folder if (split_folder / "labels").is_dir() else split_folder / (version or self.versions[0])
        if not root.is_dir():
            raise ValueError(f"{split_folder} has neither labels/ nor {root.name}/; see --dataset_config_name.")
        if task == "panoptic":
            files = sorted(root.glob("panoptic/panoptic_*.json"))
            if len(files) != 1:
                raise ValueError(f"{root / 'panoptic'} must have one panoptic_*.json, it has {len(files)}.")
            return read_panoptic_split(self, files[0], root / "panoptic", images_in(split_folder / "images"), None)
        labels = root / ("labels" if task == "semantic" else "instances")
        if not labels.is_dir():
            raise ValueError(f"{root} has no {labels.name}/, which task {task} needs.")
        rows = [row_of(image, label=label) for image, label in pair_by_stem(split_folder / "images", labels)]
        categories = self.categories(folder, root.name if root != split_folder else version or self.versions[0])
        read = read_instances if task == "instance" else read_semantic
        return FolderSplit(make_rows(rows), categories, read, description=f"{self.name}, {root.name} {labels.name}")

    def categories(self, folder: Path, version: str) -> list[dict]:
        """Labels of the configuration, or of version 1.2 if there is none; those that are not evaluated are void.

        Raises:
            ValueError: version 2.0 has no configuration.
        """
        file = next((folder / n for n in (f"config_{version}.json", "config.json") if (folder / n).is_file()), None)
        if file is None and version != "v1.2":
            raise ValueError(f"{folder} has no config_{version}.json, which has the names of the labels.")
        if file is None:
            rows = categories_of("mapillary")
            return [*rows, {"id": len(rows), "name": "Unlabeled", "isthing": 0, "void": True}]
        content = read_json(file)
        try:
            return [
                {
                    "id": i,
                    "name": row["readable"],
                    "isthing": int(row["instances"]),
                    "void": not row["evaluate"],
                    "color": row.get("color"),
                }
                for i, row in enumerate(content["labels"])
            ]
        except (LookupError, TypeError) as error:
            raise ValueError(f"{file} has no labels with readable, instances and evaluate.") from error
