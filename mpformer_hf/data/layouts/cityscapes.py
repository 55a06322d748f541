"""Cityscapes as downloaded: `leftImg8bit` and `gtFine`."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..labels import Labels
from ..releases import categories_of
from ..segments import Segments, read_map
from ..tables import read_semantic
from .coco import read_panoptic_split
from .folder import FolderLayout, FolderSplit, folder_of_split, make_rows, row_of

IMAGE, LABEL = "_leftImg8bit.png", "_gtFine_"
INSTANCE = 1000  # instanceIds: label id * 1000 + number; smaller values are label ids of pixels without an instance
CLASSES = {row["id"]: row for row in categories_of("cityscapes")}
THINGS = {category for category, row in CLASSES.items() if row["isthing"]}
NUM_LABELS = 34  # label ids 0..33; those that are not classes are void
CATEGORIES = [CLASSES.get(i, {"id": i, "name": f"void {i}", "isthing": 0, "void": True}) for i in range(NUM_LABELS)]


def read_instances(row: dict, labels: Labels, things_only: bool) -> Segments:
    """Maps of instanceIds. A group of a thing class is a crowd; in panoptic segmentation stuff has one segment a
    class."""
    map_ = read_map(row["label"])
    segments = Segments(torch.from_numpy(map_), {}, ignored=frozenset(range(NUM_LABELS)) - set(CLASSES))
    for value in np.unique(map_).tolist():
        category = value // INSTANCE if value >= INSTANCE else value
        if category not in CLASSES:
            continue
        if category not in THINGS:
            if not things_only:
                segments.classes[value] = labels.category_to_class[category]
        elif value < INSTANCE:
            segments.crowds[value] = labels.category_to_class[category]
        else:
            segments.classes[value] = labels.category_to_class[category]
    return segments


class Cityscapes(FolderLayout):
    """Fine annotations; for panoptic segmentation `cityscapes_panoptic_SPLIT.json` of createPanopticImgs if it is
    there, else the same from instanceIds. Coarse annotations are not read."""

    name = "Cityscapes (leftImg8bit, gtFine)"

    def parts(self, folder: Path) -> dict[str, bool]:
        return {f"{part}/": (folder / part).is_dir() for part in ("leftImg8bit", "gtFine")}

    def source(self, folder: Path, split: str, task: str) -> Path:
        return folder_of_split(folder / "leftImg8bit", split)

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        images = self.source(folder, split, task)
        files = sorted(file for file in images.glob(f"*/*{IMAGE}") if not file.name.startswith("."))
        if not files:
            raise ValueError(f"{images} has no images CITY/*{IMAGE}.")
        prepared = folder / "gtFine" / f"cityscapes_panoptic_{images.name}.json"
        if task == "panoptic" and prepared.is_file():
            panoptic = read_panoptic_split(self, prepared, prepared.with_suffix(""), files, CATEGORIES, "_gtFine")
            return replace(panoptic, score="cityscapes")
        kind = "labelIds" if task == "semantic" else "instanceIds"
        found = (folder / "gtFine" / images.name).glob(f"*/*{LABEL}{kind}.png")
        labels = {file for file in found if not file.name.startswith(".")}
        rows = []
        for file in files:
            base = file.name.removesuffix(IMAGE)
            label = folder / "gtFine" / images.name / file.parent.name / f"{base}{LABEL}{kind}.png"
            if label not in labels:
                raise ValueError(f"{file} has no label {label}.")
            labels.remove(label)
            rows.append({**row_of(file, label=label), "image_id": base})
        if labels:
            raise ValueError(f"{min(labels)} has no image in {images}; there are {len(labels)} of these.")
        read = read_semantic if task == "semantic" else partial(read_instances, things_only=task == "instance")
        return FolderSplit(make_rows(rows), CATEGORIES, read, "cityscapes", f"{self.name}, {kind}")
