"""Annotation layouts of tables: one reader per layout, from a row of the dataset to `Segments`."""

import json
from collections import Counter

import numpy as np
import torch

from ..model.images import displayed_size
from ..model.label_maps import count_ids
from .coco_checks import is_flag
from .coco_masks import decode_part
from .labels import Labels, as_rows
from .segments import ObjectMask, Segments, from_objects, read_map

FILE_VOID = 255
SIGNED_VOID = (-1, -100)  # in maps of signed integers: what libraries ignore


def read_semantic(
    row: dict, labels: Labels, column: str = "label", reduce_labels: bool = False, void: int = FILE_VOID
) -> Segments:
    """Label maps of class ids. `void`, -1 and -100 are void, and so is 255 unless the dataset has such a class. Each
    class is one segment."""
    ids = {category + reduce_labels for category in labels.category_to_class}
    void_ids = (
        {void, FILE_VOID, *SIGNED_VOID} | {category + reduce_labels for category in labels.ignored_categories}
    ) - ids
    map_ = read_map(row[column])
    present = np.array(list(count_ids(map_)))
    grey = present // 65536
    was_grey = present.max() > 255 and (present == grey * 65793).all() and not ids & set(present[1:].tolist())
    if was_grey:
        map_, present = map_ // 65793, grey  # a grey image that was saved as RGB: R = G = B
    if reduce_labels:
        present = present[present != 0]
    red = present.size and present.max() == FILE_VOID and not set(present.tolist()) - {0, FILE_VOID}
    colored = row[column].mode in ("RGB", "RGBA") and (present.max(initial=0) > 255 or red)  # then 255 is red
    present = present[~np.isin(present, sorted(void_ids - {FILE_VOID} if colored else void_ids))]
    classes = {int(i): int(i) - reduce_labels for i in present}
    unknown = sorted(i for i, c in classes.items() if c not in labels.category_to_class)
    if unknown and colored:
        code = unknown[-1] * 65793 if was_grey else unknown[-1]
        color = (code & 255, code >> 8 & 255, code >> 16)
        raise ValueError(
            f"{column} is an image with colours such as {color}, not class ids: put a table beside the images, "
            "class_dict.csv with a line name,r,g,b for each class"
        )
    if unknown:
        known = sorted(ids)
        shown = f"{known[0]}..{known[-1]}" if known == list(range(known[0], known[-1] + 1)) else str(known[:20])
        soft = "; if the mask is soft, or of 0 and 255 or 65535, write 0 and 1" if len(ids) == 2 else ""
        raise ValueError(f"{column} has ids {unknown[:5]} that are not in id2label ({shown}){soft}")
    return Segments(torch.from_numpy(map_), {i: labels.category_to_class[c] for i, c in classes.items()})


def read_panoptic(row: dict, labels: Labels, column: str = "label") -> Segments:
    """RGB maps of segment ids and `segments_info`; 0 = void. Crowds and the categories that `labels` leaves out are not
    targets."""
    map_ = read_map(row[column])
    classes: dict[int, int] = {}
    crowds: dict[int, int] = {}
    ignored_categories: set[int] = set()
    present = set(count_ids(map_))
    segments = as_rows(row["segments_info"])
    if not isinstance(segments, list):
        raise ValueError(f"segments_info is {segments!r}, expected a list")
    twice = [i for i, n in Counter(segment["id"] for segment in segments).items() if n > 1 or i <= 0]
    if twice:
        raise ValueError(f"segments_info has the id {twice[0]}, which must be positive (0 is void) and occur once")
    for segment in segments:
        category = segment["category_id"]
        if category in labels.ignored_categories:
            ignored_categories.add(segment["id"])
            continue
        if category not in labels.category_to_class:
            raise ValueError(f"segment {segment['id']} has category_id {category}, which is not in id2label")
        (crowds if is_crowd(segment) else classes)[segment["id"]] = labels.category_to_class[category]
    unknown = present - set(classes) - set(crowds) - ignored_categories - {0}
    if unknown:
        raise ValueError(f"{column} has segment ids {sorted(unknown)[:5]} that are not in segments_info")
    empty = sum(segment["id"] not in present for segment in segments)
    return Segments(torch.from_numpy(map_), classes, crowds, empty=empty)


def instance_ids(image, name: str) -> np.ndarray:
    """RGB image to int32 `[H, W]`: 256 * class, in red, + number of the instance, in green; 0 where that is 0.

    Raises:
        ValueError: it has one channel.
    """
    values = np.array(image)
    if values.ndim != 3 or values.shape[2] < 2:
        raise ValueError(f"{name} has shape {values.shape}, expected classes in red and instances in green")
    values = values.astype(np.int32)
    return np.where(values[..., 1] > 0, 256 * values[..., 0] + values[..., 1], 0)


def read_instance_map(row: dict, labels: Labels, column: str, reduce_labels: bool) -> Segments:
    """RGB label images with the class in the red channel and the instance number in the green one, 0 = no instance."""
    map_, classes = instance_ids(row[column], column), {}
    for segment in np.unique(map_[map_ > 0]).tolist():
        category = segment // 256
        if (category == FILE_VOID and category - reduce_labels not in labels.category_to_class) or (
            reduce_labels and category == 0
        ):
            continue
        if category - reduce_labels not in labels.category_to_class:
            raise ValueError(f"{column} has class {category}, which is not in id2label")
        classes[segment] = labels.category_to_class[category - reduce_labels]
    return Segments(torch.from_numpy(map_), classes)


def read_objects(row: dict, labels: Labels, image_column: str = "image", column: str = "objects") -> Segments:
    """COCO objects: polygons or RLE, which may overlap. Crowds are not targets."""
    objects = row[column]
    objects = as_rows(json.loads(objects) if isinstance(objects, str) else objects)
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise ValueError(f"{column} is {str(objects)[:60]!r}, expected a list of mappings")
    width, height = displayed_size(row[image_column])
    cut = 0

    def decode(number: int, item: dict) -> ObjectMask:
        nonlocal cut
        try:
            category = first_value(item, ("category_id", "category", "label"))
            if category not in labels.category_to_class:
                raise ValueError(f"has category {category}, which is not in id2label")
            segmentation = first_value(item, ("segmentation", "mask"))
            mask, top, left = decode_part(segmentation, height, width)
            cut += bool(mask.any()) and reaches_beyond(segmentation, height, width)
        except ValueError as error:
            raise ValueError(f"object {number} {error}") from error
        return ObjectMask(mask, labels.category_to_class[category], is_crowd(item), item.get("area"), top, left)

    segments = from_objects((decode(number, item) for number, item in enumerate(objects)), height, width)
    segments.cut = cut
    return segments


def reaches_beyond(segmentation, height: int, width: int) -> bool:
    """Whether polygons exceed the right or bottom border by more than 2 % of the side plus one pixel."""
    if not isinstance(segmentation, list) or not segmentation or not isinstance(segmentation[0], list):
        return False
    ends = [max(max(polygon[axis::2]) for polygon in segmentation) for axis in (0, 1)]
    return any(end > 1.02 * side + 1 for end, side in zip(ends, (width, height), strict=True))


def has_targets(objects: str | list[dict] | dict[str, list], labels: Labels) -> bool:
    """Whether `objects` or `segments_info` of a row has a segment to train on."""
    for item in as_rows(json.loads(objects) if isinstance(objects, str) else objects):
        category = first_value(item, ("category_id", "category", "label"))
        if category not in labels.ignored_categories and not is_crowd(item):
            return True
    return False


def is_crowd(item: dict) -> bool:
    """Whether a segment is a crowd.

    Raises:
        ValueError: `iscrowd` is neither 0 nor 1.
    """
    value = item.get("iscrowd", item.get("is_crowd", 0))
    if not is_flag(value):
        raise ValueError(f"iscrowd is {value!r}, expected 0 or 1")
    return bool(value)


def first_value(item: dict, names: tuple[str, ...]):
    """Value of the first of several keys that the object has.

    Raises:
        ValueError: it has none of them.
    """
    for name in names:
        if name in item:
            return item[name]
    raise ValueError(f"has none of {', '.join(names)}")
