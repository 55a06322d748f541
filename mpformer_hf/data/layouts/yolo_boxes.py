"""YOLO labels of detection as COCO annotations, for `mpformer refine`."""

import logging
import os
from pathlib import Path

from ...model.images import read_size
from ...utils.files import IMAGE_SUFFIXES, check_inside, files_below, read_text, read_yaml
from .yolo import names_of, polygon_of, read_labels_lines

logger = logging.getLogger(__name__)


def read_class_names(labels: Path) -> dict[int, str] | None:
    """Names by class: of `data.yaml` or `classes.txt` in the folder of labels or up to two folders above; None if there
    is neither.

    Raises:
        ValueError: a file has no valid names, or is a link that leads out of its folder.
    """
    for folder in (labels, labels.parent, labels.parent.parent):
        for file, read in ((folder / "data.yaml", names_of_yaml), (folder / "classes.txt", names_of_lines)):
            if file.is_file():
                check_inside(file, (os.path.realpath(folder),), hint="")
                return read(file)
    return None


def names_of_yaml(file: Path) -> dict[int, str]:
    """Names of `data.yaml`, see `names_of`."""
    return names_of(read_yaml(file), file)


def names_of_lines(file: Path) -> dict[int, str]:
    """Names of `classes.txt`, a line each."""
    return dict(enumerate(line.strip() for line in read_text(file).strip().splitlines()))


def size_of(file: Path) -> tuple[int, int]:
    """(width, height) of an image, turned as its EXIF data says.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return read_size(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}.") from error


def read_yolo_boxes(labels: Path, images: Path, names: dict[int, str]) -> dict:
    """Images of a folder, and the annotations of the text files of the same names in the folder of labels, in the form
    of a COCO file; `category_id` is YOLO's class.

    A line is a box, `class x y width height`, with the centre relative to the image, or a polygon; perhaps with a
    confidence at its end, as detectors write it.

    Raises:
        ValueError: there is no image or no file of labels, two images have the same, or a line is invalid.
    """
    files = [file for file in sorted(files_below(images)) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise ValueError(f"{images} has no image.")
    texts = [(labels / file.relative_to(images)).with_suffix(".txt") for file in files]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise ValueError(f"Two images of {images} have the labels {twice}.")
    without = sorted(file for file in files_below(labels) if file.suffix == ".txt" and file not in {*texts})
    without = [file for file in without if file.name != "classes.txt"]
    if without:
        logger.warning("%s has no image; there are %d of these.", without[0], len(without))
    rows: list[dict] = []
    annotations: list[dict] = []
    for image_id, (file, text) in enumerate(zip(files, texts, strict=True)):
        name = file.relative_to(images)
        width, height = size_of(file)
        rows.append({"id": image_id, "file_name": name.as_posix(), "height": height, "width": width})
        for number, category, values in read_labels_lines(text) if text.is_file() else ():
            if category not in names:
                raise ValueError(f"line {number} of {text} has class {category}; the classes are {sorted(names)}.")
            row: dict = {"id": len(annotations), "image_id": image_id, "category_id": category}
            if len(values) in (4, 5):
                x, y, w, h = (value * side for value, side in zip(values, (width, height) * 2, strict=False))
                row["bbox"] = [x - w / 2, y - h / 2, w, h]
            else:
                coordinates = values[:-1] if len(values) > 6 and len(values) % 2 else values  # without a confidence
                row["segmentation"] = [polygon_of(coordinates, number, text, height, width)]
            annotations.append(row)
    if not annotations:
        raise ValueError(f"{labels} has no labels of the images in {images}, such as {files[0].stem}.txt.")
    categories = [{"id": i, "name": name} for i, name in names.items()]
    return {"images": rows, "annotations": annotations, "categories": categories}
