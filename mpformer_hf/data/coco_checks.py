"""Checks of the content of COCO files, before any image is read."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path

LARGEST_SIDE = 1 << 20  # pixels
LISTED = 10  # problems that are named; the others are counted


def check_coco(content, file: Path, masks_required: bool = True) -> None:
    """Check instance or panoptic annotations.

    Args:
        content: the parsed JSON.
        file: its path, for the message.
        masks_required: whether an annotation must have a mask.

    Raises:
        ValueError: there are problems; the message has their number and the first ten.
    """
    refuse(file, [*find_problems(content), *(text for _, text in find_annotation_problems(content, masks_required))])


def mark_bad_images(content, file: Path) -> None:
    """Check annotations. Images that have invalid ones lose all of them and get a text `problem`.

    Raises:
        ValueError: there are problems that are not of one image's annotations, or no image has valid ones.
    """
    refuse(file, list(find_problems(content)))
    problems: dict = {image["id"]: [image["problem"]] for image in content["images"] if "problem" in image}
    for image, text in find_annotation_problems(content):
        problems.setdefault(image, []).append(text)
    for image in content["images"]:
        if image["id"] in problems:
            image["problem"] = "; ".join(problems[image["id"]][:LISTED])
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] not in problems]
    if not content["annotations"]:
        refuse(file, [text for texts in problems.values() for text in texts])


def refuse(file: Path, problems: list[str]) -> None:
    """Raise a ValueError that has the number of problems and the first ten, if there are any."""
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError(f"{file} has {number}: {'; '.join(problems[:LISTED])}{more}.")


def find_problems(content) -> Iterator[str]:
    """Yield a description of each problem that is not of an image's annotations."""
    if not isinstance(content, dict):
        yield "it is not a mapping of images, annotations and categories"
        return
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        yield f"it has no list of {', '.join(missing)}"
        return
    for key in ("images", "annotations", "categories"):
        invalid = [index for index, row in enumerate(content[key]) if not isinstance(row, dict)]
        if invalid:
            yield f"{key}[{invalid[0]}] is not a mapping"
            return
    yield from find_category_problems(content["categories"])
    yield from find_image_problems(content["images"])
    images = {row.get("id") for row in content["images"] if is_hashable(row.get("id"))}
    mixed = any("segments_info" in row for row in content["annotations"])
    for index, row in enumerate(content["annotations"]):
        if not is_hashable(row.get("image_id")) or row.get("image_id") not in images:
            yield f"annotations[{index}] has image_id {row.get('image_id')!r}, which is not in images"
        if mixed and "segments_info" not in row:
            yield f"annotations[{index}] has no segments_info, but other annotations have"
    ids = [row.get("image_id") for row in content["annotations"] if "segments_info" in row]
    panoptic = Counter(value for value in ids if is_hashable(value))
    yield from (f"image {value!r} has {n} panoptic annotations" for value, n in panoptic.items() if n > 1)


def find_annotation_problems(content, masks_required: bool = True) -> Iterator[tuple[int | str, str]]:
    """Yield the image id and a description of each problem of an annotation; none of what is not lists of mappings."""
    lists = [content.get(key) if isinstance(content, dict) else None for key in ("annotations", "categories")]
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in lists):
        return
    categories = {row.get("id") for row in content["categories"] if is_id(row.get("id"))}
    for index, row in enumerate(content["annotations"]):
        name = f"annotations[{index}]"
        if "segments_info" in row:
            problems = find_panoptic_problems(row, index, categories)
        else:
            problems = find_object_problems(row, name, categories)
            if row.get("segmentation") is None and masks_required:
                problems = itertools.chain(problems, [f"{name} has no segmentation"])
            elif isinstance(row.get("segmentation"), list) and (masks_required or row["segmentation"]):
                found = (f"{name} has {text}" for text in find_polygon_problems(row["segmentation"]))
                problems = itertools.chain(problems, found)
        yield from ((row.get("image_id"), text) for text in problems)


def check_coordinates(content: dict, file: Path) -> None:
    """Check that the polygons of checked annotations are in pixels.

    Raises:
        ValueError: all coordinates are between 0 and 1.
    """
    masks = [row for row in content["annotations"] if isinstance(row.get("segmentation"), list) and row["segmentation"]]
    largest = [[max(max(polygon[axis::2]) for polygon in row["segmentation"]) for axis in (0, 1)] for row in masks]
    if largest and max(map(max, largest)) <= 1:
        raise ValueError(f"{file} has coordinates between 0 and 1, expected pixels; multiply them by the sides.")


def find_category_problems(categories: list[dict]) -> Iterator[str]:
    """Ids that are not unique integers, names that are not unique texts, `isthing` that is not 0 or 1 or
    that some categories do not have."""
    for index, row in enumerate(categories):
        if not is_id(row.get("id")):
            yield f"categories[{index}] has id {row.get('id')!r}, expected an integer"
        if not isinstance(row.get("name"), str):
            yield f"categories[{index}] has name {row.get('name')!r}, expected a text"
        if "isthing" not in row and any("isthing" in other for other in categories):
            yield f"categories[{index}] has no isthing, but other categories have"
        if "isthing" in row and not is_flag(row["isthing"]):
            yield f"categories[{index}] has isthing {row['isthing']!r}, expected 0 or 1"
    for key in ("id", "name"):
        values = Counter(row[key] for row in categories if is_hashable(row.get(key)))
        yield from (f"categories have the {key} {value!r} {n} times" for value, n in values.items() if n > 1)


def find_image_problems(images: list[dict]) -> Iterator[str]:
    """Missing file names, ids that are not unique, sizes that are not positive integers."""
    for index, row in enumerate(images):
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            yield f"images[{index}] has no file_name"
        for key in ("height", "width"):
            if row.get(key) is not None and not (is_id(row[key]) and 0 < row[key] < LARGEST_SIDE):
                yield f"images[{index}] has {key} {row[key]!r}, expected a positive integer"
    ids = [row.get("id") for row in images]
    for index, value in enumerate(ids):
        if value is None or not is_hashable(value):
            yield f"images[{index}] has no id"
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            yield f"images[{index}] has the id {value}, which has more than 64 bits"
    names = [row.get("file_name") for row in images]
    for key, values in (("id", ids), ("file_name", names)):
        counts = Counter(value for value in values if value is not None and is_hashable(value))
        yield from (f"images have the {key} {value!r} {n} times" for value, n in counts.items() if n > 1)


def find_panoptic_problems(annotation: dict, index: int, categories: set) -> Iterator[str]:
    """Missing file names, invalid segments, segment ids that are 0 (void) or not unique."""
    if not isinstance(annotation.get("file_name"), str) or not annotation["file_name"]:
        yield f"annotations[{index}] has no file_name"
    segments = annotation["segments_info"]
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        yield f"annotations[{index}] has segments_info that is not a list of mappings"
        return
    for position, segment in enumerate(segments):
        name = f"annotations[{index}].segments_info[{position}]"
        if not is_id(segment.get("id")) or segment["id"] <= 0:
            yield f"{name} has id {segment.get('id')!r}, expected a positive integer (0 is void)"
        yield from find_object_problems(segment, name, categories)
    counts = Counter(segment["id"] for segment in segments if is_id(segment.get("id")))
    yield from (f"annotations[{index}] has the segment id {value} {n} times" for value, n in counts.items() if n > 1)


def find_polygon_problems(polygons: list) -> Iterator[str]:
    """Polygons that are not lists of numbers, at least three points; their extent is checked when they are drawn."""
    if not polygons:
        yield "an empty segmentation, as boxes have"
    for polygon in polygons:
        if not isinstance(polygon, list):
            yield "a segmentation that is neither polygons nor RLE"
            return
        if not set(map(type, polygon)) <= {int, float}:
            yield "a polygon of other values than numbers"
            return
        if len(polygon) < 6 or len(polygon) % 2:
            yield f"a polygon of {len(polygon)} coordinates, expected an even number of at least 6"


def find_object_problems(row: dict, name: str, categories: set) -> Iterator[str]:
    """A category that is missing or unknown, `iscrowd` that is not 0 or 1."""
    if not is_id(row.get("category_id")) or row["category_id"] not in categories:
        yield f"{name} has category_id {row.get('category_id')!r}, which is not in categories"
    if "iscrowd" in row and not is_flag(row["iscrowd"]):
        yield f"{name} has iscrowd {row['iscrowd']!r}, expected 0 or 1"
    area = None if ".segments_info" in name else row.get("area")  # not used of segments
    if area is not None and (type(area) not in (int, float) or not 0 <= area < math.inf):
        yield f"{name} has area {area!r}, expected a number of at least 0"


def is_id(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_flag(value) -> bool:
    return isinstance(value, (bool, Integral)) and value in (0, 1)


def is_hashable(value) -> bool:
    return isinstance(value, (int, str))
