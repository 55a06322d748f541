"""Pascal VOC, and other datasets in its layout."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ...utils.files import IMAGE_SUFFIXES, files_below
from ..labels import Labels
from ..segments import Segments, read_map
from ..tables import read_semantic
from .class_tables import COLORS, VALUES, codes_of, find_table, read_colored, read_colors, read_values, voc_color
from .folder import FolderLayout, FolderSplit, make_rows, path_of_split, read_lines, row_of

logger = logging.getLogger(__name__)
NAMES = ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]
NAMES += ["diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
VOID = 255


def read_instances(row: dict, labels: Labels, read_ids: Callable = read_map) -> Segments:
    """Maps of objects, whose classes are in the map of classes; 0 = no object, 255 = void."""
    classes, objects = read_ids(row["label"]), read_ids(row["instances"])
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


class PascalVoc(FolderLayout):
    """Palette PNGs; splits are lists of names, and without lists all label images are of one. Classes are those of
    `labelmap.txt` (CVAT, colours), of `labels.txt` or `class_names.txt` (a name a line), of `id2label.json`, or else of
    Pascal VOC."""

    name = "Pascal VOC (JPEGImages, SegmentationClass)"
    tasks = ("semantic", "instance")

    def parts(self, folder: Path) -> dict[str, bool]:
        parts = ("JPEGImages", "SegmentationClass")
        return {f"{part}/": (folder / part).is_dir() for part in parts}

    def source(self, folder: Path, split: str, task: str) -> Path:
        lists = folder / "ImageSets" / "Segmentation"
        if not lists.is_dir():
            return folder
        files = [file for file in lists.glob("*.txt") if not file.name.startswith(".")]
        if [file.name for file in files] == ["default.txt"]:  # of CVAT, where images have no subset
            return files[0]
        return path_of_split(files, split, f"{lists} must have one list")

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        list_ = self.source(folder, split, task)
        folders = {"label": "SegmentationClass"} | ({"instances": "SegmentationObject"} if task == "instance" else {})
        images = names_in(folder / "JPEGImages")
        names = read_lines(list_) if list_.is_file() else sorted(names_in(folder / "SegmentationClass"))
        rows, problems = [], []
        for name in names:
            maps = {column: folder / part / f"{name}.png" for column, part in folders.items()}
            missing = [path for path in maps.values() if not path.is_file()]
            if name not in images:
                missing.append(folder / "JPEGImages" / name)
            if missing:
                problems.append(f"{list_} names {name}, but {missing[0]} is missing")
                continue
            rows.append(row_of(images[name], **maps))
        if not rows:
            raise ValueError(f"{problems[0] if problems else f'{list_} names no image'}.")
        colors, values = find_table(folder, COLORS), find_table(folder, VALUES)
        if colors is not None:
            # also where maps of colours have a palette
            read = partial(read_instances, read_ids=codes_of) if task == "instance" else read_colored
            return FolderSplit(make_rows(rows), read_colors(colors), read, problems=problems)
        read = read_instances if task == "instance" else read_semantic
        if values is not None:
            named = [row | {"color": voc_color(row["id"])} for row in read_values(values)]
            return FolderSplit(make_rows(rows), named, read, problems=problems)
        own_names = (folder / "id2label.json").is_file()
        if not own_names:
            logger.info("%s has no names of classes (class_names.txt), so they are those of Pascal VOC.", folder)
        return FolderSplit(make_rows(rows), None if own_names else VOC, read, problems=problems)


def names_in(folder: Path) -> dict[str, Path]:
    """Image files at any depth below a folder, by their paths from it without suffix."""
    files = (file for file in files_below(folder) if file.suffix.lower() in IMAGE_SUFFIXES)
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


VOC = [
    {"id": i, "name": name, "isthing": int(i > 0), "color": voc_color(i), "default": True}
    for i, name in enumerate(NAMES)
]
