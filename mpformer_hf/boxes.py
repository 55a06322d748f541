"""Bounding boxes of masks."""

import torch
from torch import Tensor


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes around masks, in pixels: int64 `[n, 4]` as (x0, y0, x1, y1), x1 and y1 exclusive; an empty mask has an
    empty box.

    Args:
        masks: bool or uint8 `[n, H, W]`, non-zero = foreground.
    """
    sides = []
    for present in (masks.amax(-2) > 0, masks.amax(-1) > 0):  # columns, rows
        place = torch.arange(present.shape[-1], device=masks.device)
        stop = torch.where(present, place + 1, 0).amax(-1)
        first = torch.where(present, place, present.shape[-1]).amin(-1)
        sides.append((torch.minimum(first, stop), stop))
    (x0, x1), (y0, y1) = sides
    return torch.stack((x0, y0, x1, y1), -1)
