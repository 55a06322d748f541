"""YOLO labels of detection as COCO annotations, for `mpformer refine`."""

from pathlib import Path

import yaml
from PIL import Image

from ...files import IMAGE_SUFFIXES, files_below
from ...images import displayed_size, image_errors
from .yolo import polygon_of, read_labels_lines


def read_class_names(labels: Path) -> dict[int, str] | None:
    """Names by class: of `data.yaml` in the folder of labels or up to two folders above, or of `classes.txt` beside the
    labels; None if there is neither.

    Raises:
        ValueError: data.yaml has no names.
    """
    for file in (folder / "data.yaml" for folder in (labels, labels.parent, labels.parent.parent)):
        if file.is_file():
            try:
                names = yaml.safe_load(file.read_text(encoding="utf-8"))["names"]
                pairs = names.items() if isinstance(names, dict) else enumerate(names)
                return {int(i): str(name) for i, name in pairs}
            except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
                raise ValueError(f"{file} has no names, a list or a mapping of ids to names.") from error
    file = labels / "classes.txt"
    return dict(enumerate(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else None


def read_yolo_boxes(labels: Path, images: Path, names: dict[int, str]) -> dict:
    """Images of a folder, and the annotations of the text files of the same names in the folder of labels, in the form
    of a COCO file; `category_id` is YOLO's class.

    A line is a box, `class x y width height`, with the centre relative to the image, perhaps with a confidence as
    detectors write it; or a polygon.

    Raises:
        ValueError: there is no image or no file of labels, or a line is invalid.
    """
    files = [file for file in sorted(files_below(images)) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise ValueError(f"{images} has no image.")
    rows, annotations = [], []
    for image_id, file in enumerate(files):
        name = file.relative_to(images)
        with image_errors(), Image.open(file) as image:
            width, height = displayed_size(image)
        rows.append({"id": image_id, "file_name": name.as_posix(), "height": height, "width": width})
        text = (labels / name).with_suffix(".txt")
        for number, category, values in read_labels_lines(text) if text.is_file() else ():
            if category not in names:
                raise ValueError(f"line {number} of {text} has class {category}; the classes are {sorted(names)}.")
            row = {"id": len(annotations), "image_id": image_id, "category_id": category}
            if len(values) in (4, 5):
                x, y, w, h = (value * side for value, side in zip(values, (width, height) * 2, strict=False))
                row["bbox"] = [x - w / 2, y - h / 2, w, h]
            else:
                row["segmentation"] = [polygon_of(values, number, text, height, width)]
            annotations.append(row)
    if not annotations:
        raise ValueError(f"{labels} has no labels of the images in {images}, such as {files[0].stem}.txt.")
    categories = [{"id": i, "name": name} for i, name in names.items()]
    return {"images": rows, "annotations": annotations, "categories": categories}
