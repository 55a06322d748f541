"""Files of annotation tools that hold objects in another form than COCO's JSON: VIA, Label Studio and CVAT's XML."""

import logging
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...model.images import read_size
from ...model.label_maps import encode_rle
from ...utils.files import IMAGE_SUFFIXES, files_below, read_json, read_text
from ..coco_checks import mark_bad_images
from ..split_names import names_of_split, words_of
from .coco import Coco, FileFinder, plain, tool_of

logger = logging.getLogger(__name__)
CIRCLE = np.linspace(0, 2 * np.pi, 65)[:-1]
LARGEST = 1 << 30  # pixels of an image
CLASS_ATTRIBUTES = ("class", "label", "category")  # of VIA, where regions have several; the first that is there
OTHER_CLASS_ATTRIBUTES = ("type", "name")  # if only one of them is there
UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files


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
        self.boxes = self.ignored = self.without_annotation = self.several = 0

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
        content = {"images": self.images, "annotations": annotations, "categories": categories}
        mark_bad_images(content, self.file)
        if self.ignored:
            logger.warning("%s: %d shapes without an area (points, lines) are ignored.", self.file, self.ignored)
        if self.boxes:
            logger.warning("%s: %d rectangles are read as masks that fill them.", self.file, self.boxes)
        if self.without_annotation:
            logger.warning("%s: %d tasks have no annotation and are left out.", self.file, self.without_annotation)
        if self.several:
            text = "%s: %d tasks have several annotations; the ground truth is used, or else the first with regions."
            logger.warning(text, self.file, self.several)
        return content


UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)  # of values of any form


class ToolLayout(Coco):
    """A layout of an annotation tool: `collect` reads a file."""

    tasks = ("semantic", "instance")

    def collect(self, folder: Path, file: Path, split: str | None) -> Collected:
        """Content of a file; of all splits if `split` is None."""
        raise NotImplementedError

    def load(self, folder: Path, files: list[Path], split: str) -> list[dict]:
        """The classes are those of all files of the folder, in alphabetical order, so that all splits have the same."""
        classes = {name for file in self.files(folder) for name in self.collect(folder, file, None).classes}
        return [self.collect(folder, file, split).content(sorted(classes)) for file in files]


# --- VGG Image Annotator ---


class Via(ToolLayout):
    """`via_region_data.json` or a project of VIA 1 and 2. Classes are the values of one attribute of the regions: the
    only one, or the one that is called class, label or category, or else type or name."""

    name = "VIA (VGG Image Annotator, via_region_data.json)"
    needs = "a JSON of VIA"
    tool = "VGG Image Annotator"

    def files(self, folder: Path) -> list[Path]:
        return sorted(f for f in files_below(folder) if f.suffix == ".json" and tool_of(f) == self.tool)

    def regions(self, file: Path) -> tuple[dict, list[tuple[str, list[dict]]]]:
        """Content of a file, and the file name and the regions of each of its images.

        Raises:
            ValueError: it is not of VIA.
        """
        content = read_json(file)
        metadata = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
        rows = list(metadata.values()) if isinstance(metadata, dict) else []
        if not all(isinstance(row, dict) and isinstance(row.get("filename"), str) for row in rows):
            raise ValueError(f"{file} is not of VIA: its images must be mappings with filename and regions.")
        try:
            return content, [(row["filename"], list(regions_of(row))) for row in rows]
        except UNREADABLE as error:
            raise unreadable(file, "a region", error) from error

    def collect(self, folder: Path, file: Path, split: str | None) -> Collected:
        content, images = self.regions(file)
        collected, attribute = Collected(file), self.class_attribute(folder)
        options = (content.get("_via_attributes") or {}).get("region") or {}
        names = (options.get(attribute) or {}).get("options") or {}
        for file_name, found in images:
            image = collected.add_image(file_name)
            try:
                for region in found:
                    shape, polygon = region["shape_attributes"], via_polygon(region["shape_attributes"])
                    if polygon is None:
                        collected.ignored += 1
                        continue
                    collected.add_object(image, label_of(region, attribute, names), [polygon], shape["name"] == "rect")
            except UNREADABLE as error:
                collected.mark_bad(image, error)
        return collected

    def class_attribute(self, folder: Path) -> str | None:
        """Name of the attribute that has the classes in all files of a folder; None if regions have none.

        Raises:
            ValueError: there are several attributes, and none or several are named as a class.
        """
        found = [region for file in self.files(folder) for _, regions in self.regions(file)[1] for region in regions]
        attributes = [region.get("region_attributes") for region in found if isinstance(region, dict)]
        keys = list(dict.fromkeys(key for values in attributes if isinstance(values, dict) for key in values))
        named = [key for name in CLASS_ATTRIBUTES for key in keys if key.lower() == name] or [
            key for key in keys if key.lower() in OTHER_CLASS_ATTRIBUTES
        ]
        if len(keys) > 1 and (not named or (len(named) > 1 and named[0].lower() not in CLASS_ATTRIBUTES)):
            raise ValueError(f"{folder} has the attributes {', '.join(keys)}; name the one of the classes `class`.")
        return (named or keys or [None])[0]


def unreadable(file: Path, what: str, error: Exception) -> ValueError:
    """An error about a part of a file."""
    return ValueError(f"{file}: {what} cannot be read ({type(error).__name__}: {error}).")


def regions_of(row: dict) -> Iterable[dict]:
    """Regions of an image: a list, or in version 1 a mapping."""
    regions = row.get("regions") or []
    return regions.values() if isinstance(regions, dict) else regions


def label_of(region: dict, attribute: str | None, names: dict) -> str:
    """Class of a region.

    Raises:
        ValueError: it has none, though others have.
    """
    if attribute is None:
        return "object"
    value = (region.get("region_attributes") or {}).get(attribute)
    chosen = [key for key, on in value.items() if on] if isinstance(value, dict) else [value] if value else []
    if not chosen:
        raise ValueError(f"a region has no value of the attribute {attribute}")
    return " ".join(str(names.get(str(key)) or key) for key in chosen)


def via_polygon(shape: dict) -> list[float] | None:
    """Polygon of a region; None if it has no area."""
    kind = shape["name"]
    if kind in ("polygon", "polyline"):
        points = np.stack((shape["all_points_x"], shape["all_points_y"]), 1).astype(float)
        closed = len(points) > 3 and (points[0] == points[-1]).all()
        return points.flatten().tolist() if kind == "polygon" or closed else None
    if kind == "rect":
        return rectangle(shape["x"], shape["y"], shape["width"], shape["height"])
    if kind == "circle":
        return ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])
    if kind == "ellipse":
        return ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"], shape.get("theta") or 0.0)
    return None


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
    """Mask of Label Studio's brush: RGBA values in runs; alpha is the mask.

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


REGION = {"points", "rle", "radiusX", "width"}  # of the value of a result of Label Studio


def labels_of(result: dict) -> list[str]:
    """Labels of a result."""
    value = result.get("value") or {}
    return next((value[key] for key in value if key.endswith("labels") and value[key]), [])


def path_of(url: str) -> str:
    """Path of a file of a task: of a URL, perhaps signed, or behind `?d=` of a local file."""
    url, given, local = url.partition("?d=")
    plain_url = local if given else url.partition("?")[0] if "://" in url else url
    return urllib.parse.unquote(plain_url.partition("://")[2] or plain_url)


class LabelStudio(ToolLayout):
    """Label Studio's own JSON (an export of tasks): polygons, brushes, ellipses and rectangles. Of several annotations
    of a task that were not cancelled, the ground truth is used, or else the first that has regions."""

    name = "Label Studio (JSON of tasks)"
    needs = "a JSON of Label Studio"
    tool = "Label Studio"

    def files(self, folder: Path) -> list[Path]:
        return sorted(f for f in files_below(folder) if f.suffix == ".json" and tool_of(f) == self.tool)

    def collect(self, folder: Path, file: Path, split: str | None) -> Collected:
        content = read_json(file)
        tasks = content if isinstance(content, list) else []
        if not tasks or not all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tasks):
            raise ValueError(f"{file} is not an export of Label Studio: a list of tasks with data and annotations.")
        finder, collected = FileFinder(folder, file), Collected(file)
        for task in tasks:
            try:
                annotations = [row for row in task.get("annotations") or [] if not row.get("was_cancelled")]
                if not annotations:
                    collected.without_annotation += 1
                    continue
                collected.several += len(annotations) > 1
                chosen = max(annotations, key=lambda row: (bool(row.get("ground_truth")), bool(row.get("result"))))
                results = chosen.get("result") or []
                sized = next((row for row in results if "original_width" in row), None)
                size = sized and (sized["original_height"], sized["original_width"])
                image = collected.add_image(self.file_name(task["data"], finder), size)
                real = self.size_of(finder, collected.images[image]["file_name"])
            except UNREADABLE as error:
                raise unreadable(file, f"task {task.get('id')}", error) from error
            try:
                labelled = {result.get("id") for result in results if labels_of(result)} - {None}
                if size and real and tuple(size) != real:  # before brushes are decoded at the size that the file states
                    sizes = ["x".join(map(str, shape)) for shape in (real, size)]
                    raise ValueError(f"the image is {sizes[0]}, but {sizes[1]} in the annotations (height x width)")
                for result in results:
                    if labels_of(result) and real:
                        self.add(result, image, collected)
                    elif REGION & set(result.get("value") or {}) and result.get("id") not in labelled:
                        raise ValueError("a region has no label")
            except UNREADABLE as error:
                collected.mark_bad(image, error)
        return collected

    def file_name(self, data: dict, finder: FileFinder) -> str:
        """Path of the image of a task: the value `image`, or the only one that ends as an image. An upload may have got
        8 digits before its name, which the photo does not have."""
        paths = {key: path_of(str(value)) for key, value in data.items()}
        paths = {key: path for key, path in paths.items() if path.lower().endswith(IMAGE_SUFFIXES)}
        if "image" not in paths and len(paths) != 1:
            raise ValueError(f"data has {len(paths)} image files, and none is called image")
        path = paths.get("image") or next(iter(paths.values()))
        name = PurePosixPath(path).name
        if not path.lstrip("/").startswith("data/upload/"):
            return path.lstrip("/")
        return name if plain(name) in finder.below or not UPLOAD.match(name) else UPLOAD.sub("", name)

    def size_of(self, finder: FileFinder, name: str) -> tuple[int, int] | None:
        """(height, width) of an image, None if it does not exist or cannot be read, which is reported later."""
        try:
            width, height = read_size(finder.find(name, is_map=False))
        except ValueError:
            return None
        return height, width

    def add(self, result: dict, image: int, collected: Collected) -> None:
        """Add an object. Coordinates are percents of the sides. A shape with separate labels has two results;
        that of the labels has everything."""
        value, labels = result["value"], labels_of(result)
        if "rle" in value:
            size = result["original_height"], result["original_width"]
            collected.add_object(image, labels[0], encode_rle(decode_brush(value["rle"], *size)))
            return
        sides = np.array([result["original_width"], result["original_height"]]) / 100
        if "points" in value:
            collected.add_object(image, labels[0], [(np.array(value["points"]) * sides).flatten().tolist()])
        elif "radiusX" in value or ("height" in value and "x" in value):
            names = ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
            numbers = (np.array([value[name] for name in names]).reshape(2, 2) * sides).flatten().tolist()
            make = ellipse if "radiusX" in value else rectangle
            polygon = turned(
                make(*numbers), value.get("rotation") or 0, *numbers[:2]
            )  # about the centre, or the corner
            collected.add_object(image, labels[0], [polygon], make is rectangle)
        else:
            collected.ignored += 1


# --- CVAT ---


def read_xml(file: Path) -> ElementTree.Element:
    """Root of an XML file.

    Raises:
        ValueError: it is no XML, or has a document type, which could name other files.
    """
    text = read_text(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{file} has a document type, which CVAT does not write.")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} cannot be read as XML: {error}.") from error


class CvatXml(ToolLayout):
    """CVAT for images 1.1: `annotations.xml`. Images have subsets, or lie in folders of splits, or the files do; shapes
    with a higher z_order are in front. Classes are those of the task, in its order."""

    name = "CVAT (annotations.xml)"
    needs = "annotations.xml"

    def files(self, folder: Path) -> list[Path]:
        return sorted(file for file in files_below(folder) if file.name == "annotations.xml")

    def load(self, folder: Path, files: list[Path], split: str) -> list[dict]:
        roots = [read_xml(file) for file in self.files(folder)]
        listed = [str(label.findtext("name")) for root in roots for label in root.iterfind(".//labels/label")]
        if not listed:
            return super().load(folder, files, split)
        return [self.collect(folder, file, split).content(dict.fromkeys(listed)) for file in files]

    def collect(self, folder: Path, file: Path, split: str | None) -> Collected:
        root = read_xml(file)
        if root.find("track") is not None:
            raise ValueError(f"{file} has tracks of a video: export it as CVAT for images.")
        images = root.findall("image")
        if split is not None and {image.get("subset") for image in images} - {None, "", "default"}:
            images = [image for image in images if words_of(image.get("subset") or "") & names_of_split(split)]
        collected, names = Collected(file), Counter(image.get("name") for image in root.findall("image"))
        for image in images:
            subset = image.get("subset") if names[image.get("name")] > 1 else None  # the folder of one of equal names
            try:
                name = f"{subset}/{image.attrib['name']}" if subset else image.attrib["name"]
                number = collected.add_image(name, (int(image.attrib["height"]), int(image.attrib["width"])))
            except UNREADABLE as error:
                raise unreadable(file, f"the image {image.get('name')}", error) from error
            try:
                self.add(image, number, collected)
            except UNREADABLE as error:
                collected.mark_bad(number, error)
        return collected

    def add(self, image: ElementTree.Element, number: int, collected: Collected) -> None:
        """Add the shapes of an image."""
        for shape in sorted(image, key=lambda shape: int(shape.get("z_order") or 0)):
            given = shape.attrib
            degrees = float(given.get("rotation") or 0)
            if shape.tag == "polygon":
                points = [float(value) for pair in given["points"].split(";") for value in pair.split(",")]
                collected.add_object(number, given["label"], [points])
            elif shape.tag == "box":
                x0, y0, x1, y1 = (float(given[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
                box = turned(rectangle(x0, y0, x1 - x0, y1 - y0), degrees, (x0 + x1) / 2, (y0 + y1) / 2)
                collected.add_object(number, given["label"], [box], is_box=True)
            elif shape.tag == "ellipse":
                x, y, *radii = (float(given[name]) for name in ("cx", "cy", "rx", "ry"))
                collected.add_object(number, given["label"], [turned(ellipse(x, y, *radii), degrees, x, y)])
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
        if left < 0 or top < 0 or int(image["height"]) * int(image["width"]) > LARGEST:
            raise ValueError("a mask reaches beyond the image, or the image is too large")
        values = np.zeros(len(runs), dtype=bool)
        values[1::2] = True
        whole = np.zeros((int(image["height"]), int(image["width"])), dtype=bool)
        part = whole[top : top + height, left : left + width]
        if part.shape != (height, width):
            raise ValueError("a mask reaches beyond the image")
        part[:] = np.repeat(values, runs).reshape(height, width)
        return encode_rle(whole)
