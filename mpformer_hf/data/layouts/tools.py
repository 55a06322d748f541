"""Files of annotation tools that hold objects in another form than COCO's JSON: VIA, Label Studio and CVAT's XML."""

import logging
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...model.label_maps import encode_rle
from ...utils.files import files_below, read_json
from ..coco_checks import check_coco
from .coco import Coco, FileFinder, tool_of
from .folder import names_of_split, words_of

logger = logging.getLogger(__name__)
CIRCLE = np.linspace(0, 2 * np.pi, 65)[:-1]
CLASS_ATTRIBUTES = ("class", "label", "name", "category", "type")  # of VIA, where a region has several
UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files


def ellipse(x: float, y: float, rx: float, ry: float) -> list[float]:
    """Polygon of an ellipse with the centre (x, y)."""
    return np.stack((x + rx * np.cos(CIRCLE), y + ry * np.sin(CIRCLE)), 1).flatten().tolist()


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


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
        self.boxes = self.ignored = 0

    def add_image(self, name: str, size: tuple[int, int] | None = None) -> int:
        """Add an image; returns its id. `size`: (height, width)."""
        stated = {} if size is None else {"height": size[0], "width": size[1]}
        self.images.append({"id": len(self.images), "file_name": name, **stated})
        return len(self.images) - 1

    def add_object(self, image: int, label: str, segmentation: Any, is_box: bool = False) -> None:
        """Add an object: polygons or an RLE."""
        self.boxes += is_box
        category = self.classes.setdefault(label, len(self.classes))
        number = len(self.annotations)
        self.annotations.append(
            {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0}
        )

    def content(self, classes: Iterable[str] = ()) -> dict:
        """All of it, checked; `classes` that the tool lists come first, the others in alphabetical order.

        Raises:
            ValueError: something is invalid.
        """
        names = [*dict.fromkeys([*classes, *sorted(self.classes)])]
        order = {old: names.index(name) for name, old in self.classes.items()}
        annotations = [{**row, "category_id": order[row["category_id"]]} for row in self.annotations]
        categories = [{"id": i, "name": name} for i, name in enumerate(names)]
        content = {"images": self.images, "annotations": annotations, "categories": categories}
        check_coco(content, self.file)
        if self.ignored:
            logger.warning("%s: %d shapes without an area (points, lines) are ignored.", self.file, self.ignored)
        if self.boxes:
            logger.warning("%s: %d rectangles are read as masks that fill them.", self.file, self.boxes)
        return content


# --- VGG Image Annotator ---


class Via(Coco):
    """`via_region_data.json` or a project of VIA 1 and 2. Classes are the values of the attribute of the regions, in
    alphabetical order."""

    name = "VIA (VGG Image Annotator, via_region_data.json)"
    tasks = ("semantic", "instance")
    needs = "a JSON of VIA"
    tool = "VGG Image Annotator"

    def files(self, folder: Path) -> list[Path]:
        return sorted(f for f in files_below(folder) if f.suffix == ".json" and tool_of(f) == self.tool)

    def load(self, file: Path, split: str) -> dict:
        content = read_json(file)
        metadata = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
        rows = metadata.values() if isinstance(metadata, dict) else ()
        if not all(isinstance(row, dict) and isinstance(row.get("filename"), str) for row in rows):
            raise ValueError(f"{file} is not of VIA: its images must be mappings with filename and regions.")
        collected = Collected(file)
        for row in rows:
            image = collected.add_image(row["filename"])
            regions = row.get("regions") or []
            for region in regions.values() if isinstance(regions, dict) else regions:
                shape, where = region.get("shape_attributes", {}), f"{file}, {row['filename']}"
                polygon = self.polygon(shape, where)
                if polygon is None:
                    collected.ignored += 1
                else:
                    label = self.label(region.get("region_attributes") or {}, where)
                    collected.add_object(image, label, [polygon], shape["name"] == "rect")
        return collected.content()

    def polygon(self, shape: dict, where: str) -> list[float] | None:
        """Polygon of a region; None if it has no area."""
        try:
            if shape["name"] in ("polygon", "polyline"):
                points = np.stack((shape["all_points_x"], shape["all_points_y"]), 1).astype(float)
                closed = len(points) > 3 and (points[0] == points[-1]).all()
                return points.flatten().tolist() if shape["name"] == "polygon" or closed else None
            if shape["name"] == "rect":
                return rectangle(shape["x"], shape["y"], shape["width"], shape["height"])
            if shape["name"] == "circle":
                return ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])
            if shape["name"] == "ellipse":
                return ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"])
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{where} has a shape that cannot be read: {error}.") from error
        return None

    def label(self, attributes: dict, where: str) -> str:
        """Class of a region.

        Raises:
            ValueError: it has none, or several attributes of which none is named as a class.
        """
        given = {name: value for name, value in attributes.items() if value not in ("", None, {})}
        named = next((name for name in CLASS_ATTRIBUTES for key in given if key.lower() == name), None)
        keys = [key for key in given if key.lower() == named] if named else list(given)
        if not keys:
            return "object"
        if len(keys) > 1:
            raise ValueError(f"{where} has the attributes {', '.join(keys)}; name the one of the classes `class`.")
        value = given[keys[0]]
        chosen = [name for name, on in value.items() if on] if isinstance(value, dict) else [str(value)]
        return " ".join(chosen) or "object"


# --- Label Studio ---


class Bits:
    """Reads numbers of any number of bits from bytes.

    Args:
        values: bytes as numbers.
    """

    def __init__(self, values: list[int]):
        self.bits, self.at = np.unpackbits(np.array(values, dtype=np.uint8)), 0

    def read(self, size: int) -> int:
        part = self.bits[self.at : self.at + size]
        if len(part) < size:
            raise ValueError("the brush mask is truncated")
        self.at += size
        return int("".join(map(str, part.tolist())), 2)


def decode_brush(values: list[int], height: int, width: int) -> np.ndarray:
    """Mask of Label Studio's brush: RGBA values in runs, of which alpha is the mask.

    The header has the number of values (32 bits), the bits of a value - 1 (5), and the bits of the lengths of runs - 1
    (four of 4). A run begins with a bit that says whether its values are equal, and 2 bits that choose the bits of its
    length - 1.

    Returns:
        bool `[height, width]`.

    Raises:
        ValueError: it is of another size or truncated.
    """
    bits = Bits(values)
    number, word = bits.read(32), bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    if number != 4 * height * width:
        raise ValueError(f"the brush mask has {number} values, expected 4 x {height} x {width}")
    found, done = np.zeros(number, dtype=np.uint8), 0
    while done < number:
        equal, length = bits.read(1), bits.read(lengths[bits.read(2)]) + 1
        found[done : done + length] = bits.read(word) if equal else [bits.read(word) for _ in range(length)]
        done += length
    return found.reshape(height, width, 4)[..., 3] > 127


class LabelStudio(Coco):
    """Label Studio's own JSON (an export of tasks): polygons, brushes, ellipses and rectangles of the first annotation
    of each task that was not cancelled. Classes are in alphabetical order."""

    name = "Label Studio (JSON of tasks)"
    tasks = ("semantic", "instance")
    needs = "a JSON of Label Studio"
    tool = "Label Studio"

    def files(self, folder: Path) -> list[Path]:
        return sorted(f for f in files_below(folder) if f.suffix == ".json" and tool_of(f) == self.tool)

    def load(self, file: Path, split: str) -> dict:
        content = read_json(file)
        if not isinstance(content, list) or not all(
            isinstance(t, dict) and isinstance(t.get("data"), dict) for t in content
        ):
            raise ValueError(f"{file} is not an export of Label Studio: a list of tasks with data and annotations.")
        finder, collected = FileFinder(file.parent, file), Collected(file)
        for task in content:
            annotations = [row for row in task.get("annotations") or [] if not row.get("was_cancelled")]
            if not annotations:
                continue
            names = [value for value in task["data"].values() if isinstance(value, str) and "." in value]
            if not names:
                raise ValueError(f"{file}, task {task.get('id')}: data names no image file.")
            image = collected.add_image(self.file_name(names[0], finder))
            for result in annotations[0].get("result") or []:
                try:
                    self.add(result, image, collected)
                except (KeyError, ValueError, TypeError) as error:
                    raise ValueError(f"{file}, task {task.get('id')}: a result cannot be read: {error}.") from error
        return collected.content()

    def file_name(self, name: str, finder: FileFinder) -> str:
        """Name of the image of a task; an upload may have got 8 digits before it, which the photo does not have."""
        name = PurePosixPath(name.split("?d=")[-1].split("://")[-1]).name
        return name if name in finder.below or not UPLOAD.match(name) else UPLOAD.sub("", name)

    def add(self, result: dict, image: int, collected: Collected) -> None:
        """Add an object. Coordinates are percents of the sides."""
        value = result.get("value") or {}
        labels = next((value[key] for key in value if key.endswith("labels") and value[key]), None)
        if labels is None:
            return
        width, height = result["original_width"], result["original_height"]
        if value.get("rotation"):
            raise ValueError("a shape is rotated, which is not read; draw a polygon")
        kind, sides = result["type"].removesuffix("labels"), np.array([width, height]) / 100
        if kind == "polygon":
            collected.add_object(image, labels[0], [(np.array(value["points"]) * sides).flatten().tolist()])
        elif kind == "brush":
            collected.add_object(image, labels[0], encode_rle(decode_brush(value["rle"], height, width)))
        elif kind in ("rectangle", "ellipse"):
            names = ("x", "y", "width", "height") if kind == "rectangle" else ("x", "y", "radiusX", "radiusY")
            numbers = (np.array([value[name] for name in names]).reshape(2, 2) * sides).flatten().tolist()
            make = rectangle if kind == "rectangle" else ellipse
            collected.add_object(image, labels[0], [make(*numbers)], kind == "rectangle")
        else:
            collected.ignored += 1


# --- CVAT ---


class CvatXml(Coco):
    """CVAT for images 1.1: `annotations.xml`. Images have subsets, or files lie in folders of splits; later shapes and
    those with a higher z_order are in front. Classes are those of the task, in its order."""

    name = "CVAT (annotations.xml)"
    tasks = ("semantic", "instance")
    needs = "annotations.xml"

    def files(self, folder: Path) -> list[Path]:
        return sorted(file for file in files_below(folder) if file.name == "annotations.xml")

    def load(self, file: Path, split: str) -> dict:
        text = file.read_text(encoding="utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError(f"{file} has a document type, which CVAT does not write.")
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ValueError(f"{file} cannot be read as XML: {error}.") from error
        if root.find("track") is not None:
            raise ValueError(f"{file} has tracks of a video: export it as CVAT for images.")
        images = root.findall("image")
        subsets = {image.get("subset") for image in images} - {None, "", "default"}
        of_split = [image for image in images if words_of(image.get("subset") or "") & names_of_split(split)]
        collected = Collected(file)
        for image in of_split if subsets else images:
            try:
                self.add(image, collected)
            except (KeyError, ValueError) as error:
                raise ValueError(f"{file}, {image.get('name')}: a shape cannot be read: {error}.") from error
        return collected.content(str(label.findtext("name")) for label in root.iterfind(".//labels/label"))

    def add(self, image: ElementTree.Element, collected: Collected) -> None:
        """Add an image and its shapes."""
        number = collected.add_image(image.attrib["name"], (int(image.attrib["height"]), int(image.attrib["width"])))
        for shape in sorted(image, key=lambda shape: int(shape.get("z_order") or 0)):
            given = shape.attrib
            if float(given.get("rotation") or 0):
                raise ValueError("a shape is rotated, which is not read; draw a polygon")
            if shape.tag == "polygon":
                points = [float(value) for pair in given["points"].split(";") for value in pair.split(",")]
                collected.add_object(number, given["label"], [points])
            elif shape.tag == "box":
                x0, y0, x1, y1 = (float(given[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
                collected.add_object(number, given["label"], [rectangle(x0, y0, x1 - x0, y1 - y0)], is_box=True)
            elif shape.tag == "ellipse":
                numbers = (float(given[name]) for name in ("cx", "cy", "rx", "ry"))
                collected.add_object(number, given["label"], [ellipse(*numbers)])
            elif shape.tag == "mask":
                collected.add_object(number, given["label"], self.mask(given, image.attrib))
            elif shape.tag != "tag":
                collected.ignored += 1

    def mask(self, shape: dict, image: dict) -> dict:
        """RLE of a mask, whose runs fill its box row by row, from 0 on."""
        left, top, width, height = (int(shape[name]) for name in ("left", "top", "width", "height"))
        runs = [int(run) for run in shape["rle"].split(",")]
        if sum(runs) != width * height:
            raise ValueError(f"a mask has {sum(runs)} pixels, its box {width * height}")
        values = np.zeros(len(runs), dtype=bool)
        values[1::2] = True
        whole = np.zeros((int(image["height"]), int(image["width"])), dtype=bool)
        part = whole[top : top + height, left : left + width]
        if part.shape != (height, width):
            raise ValueError("a mask reaches beyond the image")
        part[:] = np.repeat(values, runs).reshape(height, width)
        return encode_rle(whole)
