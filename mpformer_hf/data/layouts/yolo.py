"""YOLO segmentation: `data.yaml`, and one text file of polygons per image."""

import logging
from pathlib import Path

import numpy as np
from datasets import Value

from ...model.images import displayed_size
from ...utils.files import IMAGE_SUFFIXES, ROOTS, check_inside, files_below, read_text, read_yaml
from ..coco_masks import decode_part
from ..labels import Labels
from ..segments import ObjectMask, Segments, from_objects
from ..split_names import names_of_split
from .folder import FolderLayout, FolderSplit, make_rows, read_lines, row_of

logger = logging.getLogger(__name__)
OUTSIDE = 0.01  # coordinates may leave the image by this share of its side, since tools round


def read_labels_lines(file: Path) -> list[tuple[int, int, list[float]]]:
    """Number, class and numbers after it of each line that is not empty.

    Raises:
        ValueError: the file is not text, a line is not numbers, or its class is not an integer.
    """
    lines = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            category, *values = (float(word) for word in line.split())
            lines.append((number, int(category), values))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"line {number} of {file} is not numbers") from error
        if category != int(category):
            raise ValueError(f"line {number} of {file} has class {category:g}, expected an integer")
    return lines


def polygon_of(values: list[float], number: int, file: Path, height: int, width: int) -> list[float]:
    """Coordinates x1 y1 x2 y2 ... of a line, relative to width and height, in pixels.

    Raises:
        ValueError: these are not at least three points in the image.
    """
    if len(values) % 2:
        raise ValueError(f"line {number} of {file} has {len(values)} coordinates, an odd number: x or y is missing")
    if len(values) < 6:
        raise ValueError(f"line {number} of {file} has {len(values)} coordinates, expected at least three points")
    if not all(-OUTSIDE <= value <= 1 + OUTSIDE for value in values):
        raise ValueError(f"line {number} of {file} has coordinates outside of 0 to 1")
    return (np.array(values).clip(0, 1).reshape(-1, 2) * (width, height)).flatten().tolist()


def read_labels_file(file: Path, height: int, width: int) -> list[ObjectMask]:
    """The object of each line `class x1 y1 x2 y2 ...`, relative to width and height; its label is the class.

    Raises:
        ValueError: a line is a box or not such numbers.
    """
    objects = []
    for number, category, values in read_labels_lines(file):
        if len(values) == 4:
            raise ValueError(f"line {number} of {file} is a box, expected a polygon: class x1 y1 x2 y2 x3 y3 ...")
        polygon = polygon_of(values, number, file, height, width)
        mask, top, left = decode_part([polygon], height, width)
        objects.append(ObjectMask(mask, category, top=top, left=left))
    return objects


def read_polygons(row: dict, labels: Labels) -> Segments:
    """Text files of polygons. No file or an empty one is an image without objects."""
    width, height = displayed_size(row["image"])
    file = Path(row["text"])
    objects = read_labels_file(file, height, width) if file.is_file() else []
    for item in objects:
        if item.label not in labels.category_to_class:
            raise ValueError(f"{file} has class {item.label}, which is not in data.yaml")
        item.label = labels.category_to_class[item.label]
    return from_objects(objects, height, width)


def labels_path(image: Path) -> Path:
    """Text file of an image: the last folder `images` (or `Images`) becomes `labels` (or `Labels`)."""
    parts = list(image.parts)
    position = max((i for i, part in enumerate(parts[:-1]) if part.lower() == "images"), default=None)
    if position is not None:
        parts[position] = {"images": "labels", "Images": "Labels"}.get(parts[position], "LABELS")
    return Path(*parts).with_suffix(".txt")


def names_of(content, file: Path) -> dict[int, str]:
    """Class names by id of the content of `data.yaml`, a list or a mapping.

    Raises:
        ValueError: there are no names, or they are not texts and numbers by ids of at least 0.
    """
    names = content.get("names") if isinstance(content, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{file} has no names, a list or a mapping of ids to names.")
    if wrong := [i for i in names if not str(i).isdecimal()]:
        raise ValueError(f"{file} must have names by numbers of at least 0, it has {str(wrong[0])[:40]!r}.")
    if wrong := [name for name in names.values() if isinstance(name, (list, dict)) or name is None]:
        raise ValueError(f"{file}: the names of classes must be texts.")
    if wrong := [name for name in names.values() if isinstance(name, bool)]:
        raise ValueError(f"{file} has a class that YAML reads as {wrong[0]}: put quotes around yes, no, on or off.")
    return {int(i): str(name) for i, name in names.items()}


def find_image(line: Path, folders: tuple[Path, ...]) -> Path:
    """The file that a line of a list names, or the end of its path, as it may be of another machine; the line itself if
    there is none."""
    for first in range(len(line.parts)):
        for folder in folders:
            if (path := folder.joinpath(*line.parts[first:])).is_file():
                return path
    return line


class Yolo(FolderLayout):
    """`data.yaml` with `train`, `val` and `test` (folders, text files of paths, or lists of these) and `names`."""

    name = "YOLO segmentation (data.yaml, labels/*.txt)"
    tasks = ("instance",)

    def configuration(self, folder: Path) -> Path | None:
        """`data.yaml`, or the only yaml file."""
        files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
        named = [file for file in files if file.stem in ("data", "dataset")]
        return (named or files)[0] if len(named or files) == 1 else None

    def parts(self, folder: Path) -> dict[str, bool]:
        file = self.configuration(folder)
        root = self.root(folder) if file is not None else folder
        labels = any(any(place.glob(pattern)) for place in {root, folder} for pattern in ("[lL]abels", "*/[lL]abels"))
        return {"data.yaml": file is not None, "labels/": labels}

    def root(self, folder: Path) -> Path:
        """The folder that paths are relative to: `path` of the yaml file, or its own."""
        try:
            return folder / (self.content(folder).get("path") or "")
        except ValueError:
            return folder  # reported when the dataset is read

    def content(self, folder: Path) -> dict:
        """Content of the yaml file.

        Raises:
            ValueError: it is invalid.
        """
        file = self.configuration(folder) or folder / "data.yaml"
        content = read_yaml(file)
        if not isinstance(content, dict):
            raise ValueError(f"{file} is not a mapping with names, train and val.")
        if not isinstance(content.get("path") or "", str):
            raise ValueError(f"{file}: path must be the name of a folder.")
        return content

    def source(self, folder: Path, split: str, task: str) -> Path:
        return self.sources(folder, split)[0]

    def sources(self, folder: Path, split: str) -> list[Path]:
        """Folders and lists of a split. Paths are relative to `path` or to the yaml file; exports of Roboflow begin
        with a `..` too many."""
        file, content = self.configuration(folder), self.content(folder)
        keys = [split] if content.get(split) else sorted(names_of_split(split) & {k for k, v in content.items() if v})
        if not keys:
            named = ", ".join(k for k in ("train", "val", "test") if content.get(k)) or "none"
            raise ValueError(f"{file} has no split {split!r}, it has {named}.")
        entries = content[keys[0]] if isinstance(content[keys[0]], list) else [content[keys[0]]]
        if not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"{file}: {keys[0]} must be a path or a list of paths.")
        roots = [self.root(folder), folder]
        found = []
        for entry in entries:
            entry = entry.replace("\\", "/")
            names = [entry, entry.removeprefix("../").removeprefix("./")]
            if entry.startswith("/") or entry[1:2] == ":":  # of another machine
                names += ["/".join(entry.split("/")[-parts:]) for parts in (3, 2)]
            places = [root / name for root in roots for name in names]
            place = next((place for place in places if place.is_dir() or place.is_file()), None)
            if place is None:
                raise ValueError(f"{file}: {keys[0]} is {entry}, which does not exist.")
            found.append(place)
        return found

    def images(self, place: Path, folder: Path) -> list[Path]:
        """Images of a folder, or of a text file of paths."""
        if place.is_dir():
            below = files_below(place / "images" if (place / "images").is_dir() else place)
            return sorted(file for file in below if file.suffix.lower() in IMAGE_SUFFIXES)
        lines = [Path(line) for line in read_lines(place)]
        files = [find_image(line, (place.parent, folder)) for line in lines]
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            raise ValueError(f"{place} names {missing}, which does not exist.")
        return files

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        if "kpt_shape" in self.content(folder):
            raise ValueError(f"{self.configuration(folder)} has kpt_shape: its labels are poses, expected polygons.")
        places = self.sources(folder, split)
        images = [image for place in places for image in self.images(place, folder)]
        if not images:
            check_inside(places[0], ROOTS.get())
            raise ValueError(f"{places[0]} has no image.")
        files = [labels_path(image) for image in images]
        if not any(file.is_file() for file in files):
            raise ValueError(f"{places[0]} has {len(images)} images, but none has labels such as {files[0]}.")
        without = sorted({file for path in {f.parent for f in files} for file in path.glob("*.txt")} - set(files))
        without = [file for file in without if file.name != "classes.txt"]
        if without:
            logger.warning("%s has no image; there are %d of these.", without[0], len(without))
        names = names_of(self.content(folder), self.configuration(folder) or folder / "data.yaml")
        rows = [row_of(image, text=file) for image, file in zip(images, files, strict=True)]
        categories = [{"id": i, "name": name, "isthing": 1} for i, name in names.items()]
        return FolderSplit(make_rows(rows, text=Value("string")), categories, read_polygons)
