"""Decoding of COCO segmentations (polygons and RLE), with the checks that pycocotools leaves out.

pycocotools reads memory beyond an RLE that is too short, and crashes or hangs on polygons with huge coordinates.
"""

import math
from numbers import Real

import numpy as np
from pycocotools import mask as coco_mask

from ..model.label_maps import decompress_counts, part_of_runs

LONGEST_OUTLINE = 1 << 22  # pixels


def decode_segmentation(segmentation, height: int, width: int) -> np.ndarray:
    """Polygons `[[x, y, x, y, ...], ...]`, an RLE `{"size": [height, width], "counts": ...}` or a bitmap to a mask of
    the image, bool `[height, width]`; arguments and errors as of `decode_part`."""
    return decode_all([segmentation], height, width)[0]


def decode_all(segmentations: list, height: int, width: int) -> np.ndarray:
    """`decode_segmentation` of several segmentations, bool `[n, height, width]`."""
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        part, top, left = decode_part(segmentation, height, width)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return masks


def decode_part(segmentation, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """A mask without its empty surroundings: the cost depends on the size of the object, not on that of the image.

    Args:
        segmentation: polygons in pixels, which may reach beyond the image by its longer side, or an RLE with a list of
            run lengths or COCO's compressed string, or `height` lists of `width` values of 0 and 1, or 0 and 255.
        height, width: size of the image.

    Returns:
        bool `[h, w]`, and the row and the column of the image where it begins.

    Raises:
        ValueError: it is neither, or invalid; the message begins with a verb ("has ...").
    """
    if isinstance(segmentation, dict):
        return decode_rle(segmentation, height, width)
    if is_bitmap(segmentation):
        bitmap = np.array(segmentation, dtype=bool)
        if bitmap.shape != (height, width):
            sizes = ["x".join(map(str, size)) for size in (bitmap.shape, (height, width))]
            raise ValueError(f"has a bitmap of {sizes[0]}, the image is {sizes[1]} (height x width)")
        return bitmap, 0, 0
    if isinstance(segmentation, (list, tuple, np.ndarray)) and len(segmentation):
        polygons = [check_polygon(polygon, height, width) for polygon in segmentation]
        drawn = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        return part_of_runs(decompress_counts(drawn["counts"]), height)
    raise ValueError("has a segmentation that is neither polygons nor RLE")


def is_bitmap(segmentation) -> bool:
    """Whether a segmentation is several rows of pixels, 0 and 1 or 0 and 255; a single row is a polygon."""
    if not isinstance(segmentation, (list, tuple, np.ndarray)) or len(segmentation) < 2:
        return False
    rows = all(isinstance(row, (list, tuple, np.ndarray)) and len(row) == len(segmentation[0]) for row in segmentation)
    return rows and any(all(value in (0, one) for row in segmentation for value in row) for one in (1, 255))


def decode_rle(rle: dict, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """RLE to a mask, see `decode_part`."""
    size, counts = rle.get("size"), rle.get("counts")
    if size is None or counts is None or len(size) != 2:
        raise ValueError("has an RLE without size and counts")
    if tuple(size) != (height, width):
        raise ValueError(f"has an RLE of {size[0]}x{size[1]}, the image is {height}x{width} (height x width)")
    runs = list(counts) if isinstance(counts, (list, tuple, np.ndarray)) else decompress_counts(counts)
    if not all(isinstance(run, (int, np.integer)) and run >= 0 for run in runs):
        raise ValueError("has an RLE whose counts are not integers of at least 0")
    if sum(runs) != height * width:
        raise ValueError(f"has an RLE of {sum(runs)} pixels, the image has {height * width}")
    return part_of_runs(runs, height)


def check_polygon(polygon, height: int, width: int) -> list[float]:
    """Coordinates of a polygon as floats.

    Raises:
        ValueError: it has an odd number of coordinates, fewer than three points, or coordinates that are not numbers or
            are far outside of the image, or an outline for which pycocotools would need too much memory.
    """
    if not isinstance(polygon, (list, tuple, np.ndarray)) or not all(isinstance(x, Real) for x in polygon):
        raise ValueError("has a segmentation that is neither polygons nor RLE")
    if len(polygon) % 2 or len(polygon) < 6:
        raise ValueError(f"has a polygon of {len(polygon)} coordinates, expected an even number of at least 6")
    margin = max(height, width)
    for axis, side in ((0, width), (1, height)):
        for value in polygon[axis::2]:
            if not math.isfinite(value) or not -margin <= value <= side + margin:
                raise ValueError(f"has a polygon with the coordinate {value}, far outside of the image")
    points = np.array(polygon, dtype=float).reshape(-1, 2)
    length = np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum()
    if length > LONGEST_OUTLINE:
        raise ValueError(
            f"has a polygon whose outline is {length:,.0f} pixels long, at most {LONGEST_OUTLINE:,} are read"
        )
    return points.flatten().tolist()
