"""What the layouts of annotation tools have in common whose files hold objects in another form than COCO's JSON."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...model.images import read_size
from ..coco_checks import mark_bad_images
from .coco import Coco
from .finding import FileFinder

logger = logging.getLogger(__name__)
NO_AREA = "shapes without an area (points, lines) are ignored"
BOX = "rectangles are read as masks that fill them"
CIRCLE = np.linspace(0, 2 * np.pi, 65)[:-1]


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> list[float]:
    """Polygon of an ellipse with the centre (x, y), turned clockwise by `turn` (radians)."""
    along, across = rx * np.cos(CIRCLE), ry * np.sin(CIRCLE)
    columns, rows = along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)
    return np.stack((x + columns, y + rows), 1).flatten().tolist()


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def turned(polygon: list[float], degrees: float, x: float, y: float) -> list[float]:
    """A polygon after a clockwise turn about (x, y)."""
    if not degrees:
        return polygon
    angle = np.deg2rad(float(degrees))
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return ((np.array(polygon).reshape(-1, 2) - (x, y)) @ matrix + (x, y)).flatten().tolist()


class Collected:
    """Images, objects and classes in the form of COCO's JSON, as they are read.

    Args:
        file: for messages.
    """

    def __init__(self, file: Path):
        self.file = file
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.classes: dict[str, int] = {}
        self.notes: Counter[str] = Counter()  # what is logged, with its number
        self.of_split = False  # whether other splits were left out

    def add_image(self, name: str, size: tuple[int, int] | None = None) -> int:
        """Add an image; returns its id. `size`: (height, width)."""
        stated = {} if size is None else {"height": size[0], "width": size[1]}
        self.images.append({"id": len(self.images), "file_name": name, **stated})
        return len(self.images) - 1

    def add_object(self, image: int, label: str, segmentation: Any, is_box: bool = False) -> None:
        """Add an object: polygons or an RLE."""
        self.notes[BOX] += is_box
        category = self.classes.setdefault(label, len(self.classes))
        number = len(self.annotations)
        self.annotations.append(
            {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0}
        )

    def mark_bad(self, image: int, error: Exception) -> None:
        """Mark an image as invalid, see `mark_bad_images`."""
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        self.images[image].setdefault("problem", f"{kind}{error}")

    def content(self, classes: Iterable[str]) -> dict:
        """All of it, checked; see `mark_bad_images`.

        Args:
            classes: of all files of the dataset, in their order.

        Raises:
            ValueError: something is invalid.
        """
        names = list(dict.fromkeys([*classes, *sorted(self.classes)]))
        order = {old: names.index(name) for name, old in self.classes.items()}
        annotations = [{**row, "category_id": order[row["category_id"]]} for row in self.annotations]
        categories = [{"id": i, "name": name, "by_name": True} for i, name in enumerate(names)]
        content: dict[str, Any] = {"images": self.images, "annotations": annotations, "categories": categories}
        content |= {"of_split": True} if self.of_split else {}
        mark_bad_images(content, self.file)
        for text, number in self.notes.items():
            if number:
                logger.warning("%s: %s: %d.", self.file, text, number)
        return content


UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)  # of values of any form


class ToolLayout(Coco):
    """A layout of an annotation tool: `collect` reads a file."""

    tasks = ("semantic", "instance")

    def collect(self, folder: Path, file: Path, split: str | None) -> Collected:
        """Content of a file; of all splits if `split` is None."""
        raise NotImplementedError

    def size_of(self, finder: FileFinder, image: dict) -> tuple[int, int] | None:
        """(height, width) of an image, None if it does not exist or cannot be read, which is reported later."""
        try:
            width, height = read_size(finder.find(image["file_name"], is_map=False))
        except ValueError:
            return None
        return height, width

    def check_size(self, real: tuple[int, int] | None, image: dict) -> None:
        """Compare the size that a file states, if it does, with that of its image, before masks of it are decoded.

        Raises:
            ValueError: they differ.
        """
        stated = image.get("height"), image.get("width")
        if real is not None and None not in stated and stated != real:
            sizes = ["x".join(map(str, shape)) for shape in (real, stated)]
            raise ValueError(f"the image is {sizes[0]}, but {sizes[1]} in the annotations (height x width)")

    def load(self, folder: Path, files: list[Path], split: str) -> list[dict]:
        """The classes are those of all files of the folder, in alphabetical order, so that all splits have the same."""
        classes = {name for file in self.files(folder) for name in self.collect(folder, file, None).classes}
        return [self.collect(folder, file, split).content(sorted(classes)) for file in files]


def unreadable(file: Path, what: str, error: Exception) -> ValueError:
    """An error about a part of a file."""
    return ValueError(f"{file}: {what} cannot be read ({type(error).__name__}: {error}).")
