"""Decoding of COCO segmentations (polygons and RLE), with the checks that pycocotools leaves out.

pycocotools reads memory beyond an RLE that is too short, and crashes or hangs on polygons with huge coordinates.
"""

import math
from numbers import Real

import numpy as np
from pycocotools import mask as coco_mask


def decode_segmentation(segmentation, height: int, width: int) -> np.ndarray:
    """Polygons `[[x, y, x, y, ...], ...]`, an RLE `{"size": [height, width], "counts": ...}` or a bitmap to a mask of
    the image, bool `[height, width]`; arguments and errors as of `decode_part`."""
    part, top, left = decode_part(segmentation, height, width)
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask


def decode_part(segmentation, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """The part of a mask outside of which it is empty, so that the cost is that of the object and not of the image.

    Args:
        segmentation: polygons in pixels, which may reach beyond the image by its longer side, or an RLE with a list of
            run lengths or COCO's compressed string, or `height` lists of `width` values of 0 and 1.
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
    """Whether a segmentation is several rows of pixels, which are 0 or 1; a single row is a polygon."""
    if not isinstance(segmentation, (list, tuple, np.ndarray)) or len(segmentation) < 2:
        return False
    rows = all(isinstance(row, (list, tuple, np.ndarray)) and len(row) == len(segmentation[0]) for row in segmentation)
    return rows and all(value in (0, 1) for row in segmentation for value in row)


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


def part_of_runs(runs: list[int], height: int) -> tuple[np.ndarray, int, int]:
    """Run lengths of a mask, by columns, empty ones first, to its part, see `decode_part`."""
    ends, drawn = np.cumsum(runs), 2 * np.flatnonzero(runs[1::2]) + 1
    if not len(drawn):
        return np.zeros((0, 0), dtype=bool), 0, 0
    left = int(ends[drawn[0] - 1]) // height
    right = (int(ends[drawn[-1]]) - 1) // height + 1
    ends = (ends - left * height).clip(0, (right - left) * height)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(ends, prepend=0)).reshape(right - left, height).T
    rows = np.flatnonzero(columns.any(1))
    return columns[rows[0] : rows[-1] + 1], int(rows[0]), left


def decompress_counts(counts: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed counts: signed numbers of 5 bits per character, low bits first, and from the
    third on differences to the run before the previous one.

    Raises:
        ValueError: it is not such a string.
    """
    text = counts.decode("latin1") if isinstance(counts, bytes) else counts
    if not isinstance(text, str):
        raise ValueError("has an RLE whose counts are neither a list nor a string")
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("has an RLE whose counts are not COCO's compressed format")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("has an RLE whose counts are truncated")
    return runs


def check_polygon(polygon, height: int, width: int) -> list[float]:
    """Coordinates of a polygon as floats.

    Raises:
        ValueError: it has an odd number of coordinates, fewer than three points, or coordinates that are not numbers or
            are far outside of the image.
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
    return [float(value) for value in polygon]
