"""Removes duplicates, small parts and small holes. AP needs all instances, so evaluation does none of this; drawings,
files of annotation tools and the service remove duplicates by default."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .boxes import mask_boxes
from .ranges import check_range

DUPLICATE_IOU = 0.7  # of annotation tools, drawings and the service


def find_duplicates(masks: Tensor, labels: Sequence[int], scores: Sequence[float], iou: float) -> list[bool]:
    """Non-maximum suppression of masks within a class. An instance is a duplicate if its IoU with a kept instance of a
    higher score is at least `iou`; of equal scores the first is kept.

    Args:
        masks: bool `[n, H, W]`.
        labels, scores: of the instances.
        iou: in (0, 1].
    """
    boxes = mask_boxes(masks).tolist() if len(masks) else []
    areas = [int(mask[y0:y1, x0:x1].sum()) for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True)]
    duplicate = [False] * len(boxes)
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for other in kept:
            if labels[other] != labels[index]:
                continue
            x0, y0 = (max(a, b) for a, b in zip(boxes[index][:2], boxes[other][:2], strict=True))
            x1, y1 = (min(a, b) for a, b in zip(boxes[index][2:], boxes[other][2:], strict=True))
            if x0 >= x1 or y0 >= y1:
                continue
            both = int((masks[index, y0:y1, x0:x1] & masks[other, y0:y1, x0:x1]).sum())
            if both >= iou * (areas[index] + areas[other] - both):
                duplicate[index] = True
                break
        else:
            kept.append(index)
    return duplicate


def without_duplicates(result: dict, iou: float) -> dict:
    """An instance result without the instances that `find_duplicates` finds. Results of other tasks have none."""
    if result["segmentation"].ndim == 2:
        return result
    rows = result["segments_info"]
    found = find_duplicates(
        result["segmentation"], [row["label_id"] for row in rows], [row["score"] for row in rows], iou
    )
    kept = [index for index, duplicate in enumerate(found) if not duplicate]
    return {**result, "segmentation": result["segmentation"][kept], "segments_info": [rows[index] for index in kept]}


def check_cleaning(task: str, nms: float | None, min_pixels: int) -> None:
    """
    Raises:
        ValueError: an option is out of its range, or has no effect on results of the task.
    """
    check_range("nms", nms, "(0, 1]")
    check_range("min_pixels", min_pixels, "[0, inf)")
    for name, given, tasks in (("nms", nms, ("instance",)), ("min_pixels", min_pixels, ("instance", "panoptic"))):
        if given and task not in tasks:
            raise ValueError(f"{name} has no effect on {task} segmentation: leave it out.")


def clean(result: dict, nms: float | None, min_pixels: int) -> dict:
    """An instance or panoptic result, as it is handed on.

    Args:
        result: post-processed.
        nms: instances with at least this IoU with a better one of their class are left out; None: none are.
        min_pixels: see `clean_mask`; 0: masks are left as they are.
    """
    if nms is None and not min_pixels:
        return result
    device = result["segmentation"].device
    result = {**result, "segmentation": result["segmentation"].cpu()}
    if nms is not None:
        result = without_duplicates(result, nms)
    result = remove_small_regions(result, min_pixels) if min_pixels else result
    return {**result, "segmentation": result["segmentation"].to(device)}


def clean_mask(mask: np.ndarray, min_pixels: int) -> np.ndarray:
    """A mask without parts and without holes of fewer than `min_pixels` pixels; its largest part remains.

    Args:
        mask: bool `[H, W]`.
        min_pixels: at least 0. Pixels are connected by their sides, not by corners.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    parts, count = ndimage.label(mask[window])
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    kept = areas >= min_pixels
    kept[1 + areas[1:].argmax()], kept[0] = True, False
    holes, count = ndimage.label(np.pad(~kept[parts], 1, constant_values=True))
    filled = np.bincount(holes.ravel(), minlength=count + 1) < min_pixels
    filled[[0, holes[0, 0]]] = False  # the segment itself, and what is around it
    cleaned = np.zeros_like(mask)
    cleaned[window] = kept[parts] | filled[holes][1:-1, 1:-1]
    return cleaned


def remove_small_regions(result: dict, min_pixels: int) -> dict:
    """An instance or panoptic result with `clean_mask` for each segment. In panoptic results removed parts have no
    segment, and only holes without another segment are filled.

    Args:
        result: post-processed, on the CPU.
        min_pixels: see `clean_mask`.
    """
    maps = result["segmentation"]
    if maps.ndim == 3:
        masks = [torch.from_numpy(clean_mask(mask.numpy(), min_pixels)) for mask in maps]
        return {**result, "segmentation": torch.stack(masks) if masks else maps}
    ids = maps.numpy().copy()
    for row in 2 * result["segments_info"]:  # where a part was removed, there may be a hole
        before = ids == row["id"]
        after = clean_mask(before, min_pixels)
        ids[before & ~after] = 0
        ids[after & (ids == 0)] = row["id"]
    return {**result, "segmentation": torch.from_numpy(ids)}
