"""Masks at points: bilinear samples of float maps and of byte masks, and the choice of points near borders.

Points are (x, y) in [0, 1]: 0 is the left or upper edge of a map, 1 the right or lower one; outside a map all is zero.

Shape letters: M maps or masks, P points.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of float maps.

    Args:
        maps: float `[M, C, H, W]`.
        points: float `[M, P, 2]`.

    Returns:
        `[M, C, P]`.
    """
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


class ByteMasks:
    """Binary masks that are sampled many times, without ever being floats.

    Each byte holds the four pixels of a 2x2 window, so that a bilinear sample is one read.

    Args:
        masks: uint8 `[T, H, W]`, 0 or 1.
    """

    def __init__(self, masks: Tensor):
        self.height, self.width = masks.shape[1:]
        padded = F.pad(masks, (1, 1, 1, 1))
        pairs = padded[..., :-1] + 2 * padded[..., 1:]
        self.windows = (
            pairs[:, :-1] + 4 * pairs[:, 1:]
        ).flatten()  # bits: upper left, upper right, lower left and right

    def sample(self, rows: Tensor, points: Tensor) -> Tensor:
        """Bilinear samples.

        Args:
            rows: int64 `[M]`, which mask.
            points: float `[M, P, 2]` or `[1, P, 2]`, in [0, 1].

        Returns:
            float32 `[M, P]`.
        """
        position = points * points.new_tensor([self.width, self.height]) + 0.5  # the windows begin one pixel earlier
        corner = position.floor()
        (fx, fy), (x, y) = (position - corner).unbind(-1), corner.long().unbind(-1)
        start = rows * ((self.height + 1) * (self.width + 1))
        window = self.windows[start[:, None] + (y * (self.width + 1) + x)]
        upper = torch.lerp((window & 1).float(), ((window >> 1) & 1).float(), fx)
        lower = torch.lerp(((window >> 2) & 1).float(), (window >> 3).float(), fx)
        return torch.lerp(upper, lower, fy)


def uncertain_points(
    masks: Tensor, num_points: int, oversample: float, importance: float, generator: torch.Generator | None
) -> Tensor:
    """Points near the masks' borders, and some at random (PointRend, section 3.1 and "training").

    `oversample * num_points` points are drawn, the `importance * num_points` with the smallest |logit| stay, the rest
    is drawn anew.

    Args:
        masks: logits `[M, H, W]`.

    Returns:
        float32 `[M, num_points, 2]`.
    """
    drawn, kept = int(num_points * oversample), int(num_points * importance)
    points = torch.rand(len(masks), drawn, 2, device=masks.device, generator=generator)
    certainty = sample_maps(masks[:, None], points)[:, 0].abs()
    nearest = certainty.topk(kept, dim=1, largest=False, sorted=False).indices
    points = points.gather(1, nearest[..., None].expand(-1, -1, 2))
    if kept == num_points:
        return points
    random = torch.rand(len(masks), num_points - kept, 2, device=masks.device, generator=generator)
    return torch.cat((points, random), dim=1)
