"""Pascal VOC, and other datasets in its layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..labels import Labels
from ..segments import Reader, Segments, read_map
from ..tables import semantic_reader
from .folder import FolderLayout, FolderSplit, images_in, make_rows, path_of_split, read_lines, row_of

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
    """Palette PNGs; splits are lists of names. Classes are those of Pascal VOC, of `labels.txt` (a name a line), or of
    CVAT's `labelmap.txt` (colours)."""

    name = "Pascal VOC (JPEGImages, SegmentationClass)"
    tasks = ("semantic", "instance")

    def parts(self, folder: Path) -> dict[str, bool]:
        parts = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
        return {f"{part}/": (folder / part).is_dir() for part in parts}

    def source(self, folder: Path, split: str, task: str) -> Path:
        lists = folder / "ImageSets" / "Segmentation"
        files = [file for file in lists.glob("*.txt") if not file.name.startswith(".")]
        return path_of_split(files, split, f"{lists} must have one list")

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        list_ = self.source(folder, split, task)
        folders = {"label": "SegmentationClass"} | ({"instances": "SegmentationObject"} if task == "instance" else {})
        images = {path.stem: path for path in images_in(folder / "JPEGImages")}
        rows = []
        for name in read_lines(list_):
            maps = {column: folder / part / f"{name}.png" for column, part in folders.items()}
            missing = [path for path in maps.values() if not path.is_file()]
            if name not in images:
                missing.append(folder / "JPEGImages" / name)
            if missing:
                raise ValueError(f"{list_} names {name}, but {missing[0]} is missing.")
            rows.append(row_of(images[name], **maps))
        if not rows:
            raise ValueError(f"{list_} names no image.")
        colors = folder / "labelmap.txt"
        categories = read_labelmap(colors) if colors.is_file() else read_names(folder / "labels.txt")
        make_reader = instance_reader if task == "instance" else lambda labels: semantic_reader("label", labels, False)
        return FolderSplit(make_rows(rows), categories, with_colors(make_reader) if colors.is_file() else make_reader)


def read_names(file: Path) -> list[dict]:
    """Categories of `labels.txt`, where labelme's `__ignore__` has no id, or else of Pascal VOC."""
    names = [name for name in read_lines(file) if name != "__ignore__"] if file.is_file() else NAMES
    return [{"id": i, "name": name, "isthing": int(i > 0), "color": voc_color(i)} for i, name in enumerate(names)]


def voc_color(label_id: int) -> tuple[int, int, int]:
    """RGB of a class in Pascal VOC's palette: bits 0, 3, 6 of the id are the highest bits of red, from the highest on;
    bits 1, 4, 7 those of green, and bits 2, 5 those of blue."""
    red, green, blue = (
        sum((label_id >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
    )
    return red, green, blue


def read_labelmap(file: Path) -> list[dict]:
    """Categories of CVAT's `labelmap.txt` (`name:red,green,blue:...`); ids are R + 256 G + 65536 B of the colours.

    Raises:
        ValueError: a line has no colour.
    """
    categories = []
    for line in read_lines(file):
        if line.startswith("#"):
            continue
        try:
            name, color = line.split(":")[:2]
            red, green, blue = (int(value) for value in color.split(","))
        except ValueError as error:
            raise ValueError(f"{file} has the line {line!r}, expected name:red,green,blue.") from error
        code = red + 256 * green + 65536 * blue
        isthing = int(name != "background")
        categories.append({"id": code, "name": name, "isthing": isthing, "color": (red, green, blue)})
    return categories


def with_colors(make_reader: Callable[[Labels], Reader]) -> Callable[[Labels], Reader]:
    """Readers of maps whose colours are ids, also where they have a palette."""

    def make(labels: Labels) -> Reader:
        read = make_reader(labels)
        columns = ("label", "instances")
        return lambda row: read({k: v.convert("RGB") if k in columns else v for k, v in row.items()})

    return make
