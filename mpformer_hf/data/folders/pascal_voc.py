"""Pascal VOC, and other datasets in its layout."""

from pathlib import Path

import numpy as np
import torch

from ..labels import Labels
from ..layouts import semantic_reader
from ..segments import Reader, Segments, read_map
from .folder import FolderLayout, FolderSplit, make_rows, names_of_split, row_of, words_of

NAMES = ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]
NAMES += ["diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
VOID = 255


def instance_reader(labels: Labels) -> Reader:
    """Maps of objects, whose classes are in the map of classes; 0 = no object, 255 = void."""

    def read(row: dict) -> Segments:
        classes, objects = read_map(row["label"]), read_map(row["instances"])
        if classes.shape != objects.shape:
            raise ValueError(f"the map of classes is {classes.shape}, that of objects {objects.shape} (height, width)")
        segments = Segments(torch.from_numpy(objects), {})
        for value in np.unique(objects).tolist():
            if value in (0, VOID):
                continue
            found, counts = np.unique(classes[objects == value], return_counts=True)
            category = int(found[counts.argmax()])
            if category not in labels.category_to_class:
                raise ValueError(f"object {value} has class {category}, which is no thing")
            segments.classes[value] = labels.category_to_class[category]
        return segments

    return read


class PascalVoc(FolderLayout):
    """Palette PNGs; splits are lists of names. Classes are those of Pascal VOC, or of `labels.txt` (a name a line)."""

    name = "Pascal VOC (JPEGImages, SegmentationClass)"
    tasks = ("semantic", "instance")

    def parts(self, folder: Path) -> dict[str, bool]:
        parts = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
        return {f"{part}/": (folder / part).is_dir() for part in parts}

    def source(self, folder: Path, split: str, task: str) -> Path:
        lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
        found = [file for file in lists if file.stem == split] or [
            file for file in lists if words_of(file.stem) & names_of_split(split)
        ]
        if len(found) != 1:
            names = ", ".join(file.name for file in found or lists) or "none"
            raise ValueError(f"{folder}/ImageSets/Segmentation must have one list for split {split!r}, it has {names}.")
        return found[0]

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        list_ = self.source(folder, split, task)
        folders = {"label": "SegmentationClass"} | ({"instances": "SegmentationObject"} if task == "instance" else {})
        rows = []
        for name in list_.read_text().split():
            image = next((p for p in (folder / "JPEGImages").glob(f"{name}.*")), None)
            maps = {column: folder / part / f"{name}.png" for column, part in folders.items()}
            missing = [path for path in maps.values() if not path.is_file()]
            if image is None or missing:
                raise ValueError(
                    f"{list_} names {name}, but {missing[0] if missing else 'JPEGImages/' + name} is missing."
                )
            rows.append(row_of(image, **maps))
        if not rows:
            raise ValueError(f"{list_} names no image.")
        own = folder / "labels.txt"
        names = own.read_text().split("\n") if own.is_file() else NAMES
        categories = [{"id": i, "name": name, "isthing": int(i > 0)} for i, name in enumerate(filter(None, names))]
        make_reader = instance_reader if task == "instance" else lambda labels: semantic_reader("label", labels, False)
        return FolderSplit(make_rows(rows), categories, make_reader)
