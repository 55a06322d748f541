"""CVAT for images: XML files of annotations."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np

from ...model.label_maps import encode_rle
from ...utils.files import file_start, files_below, read_text
from ..split_names import names_of_split, words_of
from .finding import FileFinder
from .tools import NO_AREA, UNREADABLE, Collected, ToolLayout, ellipse, rectangle, turned, unreadable

LARGEST = 1 << 30  # pixels of an image


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
    """CVAT for images 1.1: `annotations.xml`, or other XML files with `<annotations>`. The split of an
    image is its subset, its folder, or the folder of the file. Shapes with a higher z_order are in front. Classes are
    those of the task, in its order."""

    name = "CVAT (annotations.xml)"
    needs = "annotations.xml"

    def files(self, folder: Path) -> list[Path]:
        files = (file for file in files_below(folder) if file.suffix == ".xml")
        return sorted(file for file in files if file.name == "annotations.xml" or "<annotations>" in file_start(file))

    def load(self, folder: Path, files: list[Path], split: str) -> list[dict]:
        roots = [read_xml(file) for file in self.files(folder)]
        listed = [str(label.findtext("name")) for root in roots for label in root.iterfind(".//labels/label")]
        if not listed:
            return super().load(folder, files, split)
        return [self.collect(folder, file, split).content(dict.fromkeys(listed)) for file in files]

    def collect(self, folder: Path, file: Path, split: str | None) -> Collected:
        root, finder = read_xml(file), FileFinder(folder, file)
        if root.find("track") is not None:
            raise ValueError(f"{file} has tracks of a video: export it as CVAT for images.")
        images = root.findall("image")
        collected, names = Collected(file), Counter(image.get("name") for image in images)
        if split is not None and {image.get("subset") for image in images} - {None, "", "default"}:
            images = [image for image in images if words_of(image.get("subset") or "") & names_of_split(split)]
            collected.of_split = True
        for image in images:
            subset = image.get("subset") if names[image.get("name")] > 1 else None  # the folder of one of equal names
            try:
                name = f"{subset}/{image.attrib['name']}" if subset else image.attrib["name"]
                number = collected.add_image(name, (int(image.attrib["height"]), int(image.attrib["width"])))
            except UNREADABLE as error:
                raise unreadable(file, f"the image {image.get('name')}", error) from error
            try:
                self.check_size(self.size_of(finder, collected.images[number]), collected.images[number])
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
                collected.notes[NO_AREA] += 1

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
