"""Boundaries of masks (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", 2021,
section 4), for boundary AP and boundary PQ."""

import numpy as np

SHARE = 0.02  # half the width of a boundary, relative to the image diagonal


def boundary_reach(height: int, width: int) -> int:
    """Half the width of a boundary in pixels, at least 1."""
    return max(1, round(SHARE * float(np.hypot(height, width))))


def mask_boundary(mask: np.ndarray, reach: int | None = None) -> np.ndarray:
    """Pixels of a mask with a pixel outside of it, or the image border, in the square window around them.

    Args:
        mask: bool `[H, W]`, or a part of it, outside of which it is empty.
        reach: `boundary_reach` of the whole image, in pixels; default: `mask` is the whole image.

    Returns:
        bool, of the shape of `mask`.
    """
    reach = boundary_reach(*mask.shape) if reach is None else reach
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return mask
    if min(rows[-1] - rows[0], columns[-1] - columns[0]) < 2 * reach:
        return mask  # outside is in the window around every pixel
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    near = window_maximum(np.pad(~mask[box], reach, constant_values=True), reach)
    result = np.zeros_like(mask)
    result[box] = mask[box] & near
    return result


def window_maximum(values: np.ndarray, reach: int) -> np.ndarray:
    """The largest value in the square window of `reach` pixels around each pixel, by windows that double in size.

    Args:
        values: `[H + 2 * reach, W + 2 * reach]`, with a border on all sides.

    Returns:
        `[H, W]`.
    """
    side = 2 * reach + 1
    for _ in range(2):  # rows, and after the transposition columns
        covered = 1
        while covered < side:
            step = min(covered, side - covered)
            values, covered = np.maximum(values[:-step], values[step:]), covered + step
        values = np.ascontiguousarray(values.T)
    return values
