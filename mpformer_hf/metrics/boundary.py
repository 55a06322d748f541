"""Boundaries of masks (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", 2021,
section 4), for boundary AP and boundary PQ."""

import numpy as np
import torch
from torch.nn import functional as F

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
    outside = F.pad(torch.from_numpy(~mask[box]).float()[None, None], (reach,) * 4, value=1.0)
    near = F.max_pool2d(F.max_pool2d(outside, (2 * reach + 1, 1), stride=1), (1, 2 * reach + 1), stride=1)
    result = np.zeros_like(mask)
    result[box] = mask[box] & near[0, 0].bool().numpy()
    return result
