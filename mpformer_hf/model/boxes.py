"""Bounding boxes of masks."""

import torch
from torch import Tensor


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes around masks in pixels.

    `torchvision.ops.masks_to_boxes` has inclusive ends, which make an empty mask look like one of a single pixel, and
    loops over the masks (6 to 15 times as slow on a CPU for 100 masks of 512x512).

    Args:
        masks: bool or uint8 `[n, H, W]`, non-zero = foreground.

    Returns:
        int64 `[n, 4]`: (x0, y0, x1, y1), x1 and y1 exclusive; all 0 for an empty mask.
    """
    sides = []
    for present in (masks.amax(-2) > 0, masks.amax(-1) > 0):  # columns, rows
        index = torch.arange(present.shape[-1], device=masks.device)
        stop = torch.where(present, index + 1, 0).amax(-1)
        first = torch.where(present, index, present.shape[-1]).amin(-1)
        sides.append((torch.minimum(first, stop), stop))
    (x0, x1), (y0, y1) = sides
    return torch.stack((x0, y0, x1, y1), -1)
