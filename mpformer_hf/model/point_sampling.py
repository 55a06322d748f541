"""Features and binary masks at points.

Points are (x, y) in [0, 1]: 0 is the left or upper edge of the image, 1 the right or lower one. Values outside are 0.

Shape letters: B batch, D channels, M masks, P points.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .chunks import to_device
from .deformable_attention import deformable_sampling
from .targets import Targets


def sample_features(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of feature maps: deformable sampling with one head, one level and one point of weight 1.

    Args:
        maps: float `[B, D, H, W]`.
        points: float `[B, P, 2]`, in [0, 1].

    Returns:
        `[B, P, D]`.
    """
    height, width = maps.shape[2:]
    values = maps.flatten(2).transpose(1, 2)[:, :, None]
    x, y = points.reshape(-1, 1, 1, 2).unbind(-1)
    sampled = deformable_sampling(values, [(height, width)], x * width, y * height, torch.ones_like(x))
    return sampled.view(len(points), -1, maps.shape[1])


class ByteMasks:
    """Binary masks for bilinear sampling without conversion to float.

    Each byte has the four pixels of a 2x2 window, so that a bilinear sample reads one byte.

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

    def sample(self, rows: Tensor, points: Tensor, image: Tensor | None = None) -> Tensor:
        """Bilinear samples.

        Args:
            rows: int64 `[M]`, indices of the masks.
            points: float `[M, P, 2]`, `[1, P, 2]`, or with `image` `[B, P, 2]`, in [0, 1].
            image: int64 `[M]`, points of each mask.

        Returns:
            float32 `[M, P]`.
        """
        x, y = points.unbind(-1)
        x, y = x * self.width + 0.5, y * self.height + 0.5  # windows are shifted by one pixel
        left, top = x.floor(), y.floor()
        fx, fy = x - left, y - top
        start, cell = rows * ((self.height + 1) * (self.width + 1)), top.long() * (self.width + 1) + left.long()
        if image is not None and len(points) > 1:
            cell, fx, fy = cell[image], fx[image], fy[image]
        window = self.windows[start[:, None] + cell]
        upper = torch.lerp((window & 1).float(), ((window >> 1) & 1).float(), fx)
        lower = torch.lerp(((window >> 2) & 1).float(), (window >> 3).float(), fx)
        return torch.lerp(upper, lower, fy)


def points_on(regions: Tensor | None, points: Tensor) -> Tensor | None:
    """Whether the samples at points read a pixel of regions, bool `[B, P]`; None without regions.

    Args:
        regions: uint8 `[B, H, W]`, 0 or 1.
        points: float `[B, P, 2]` or `[1, P, 2]`.
    """
    if regions is None:
        return None
    images = torch.arange(len(regions), device=points.device)
    return ByteMasks(regions).sample(images, points) > 0


def sample_targets(truth: ByteMasks, targets: Targets, points: Tensor) -> Tensor:
    """Ground-truth masks at the points of their images, float32 `[T, P]`: on a CPU image after image, whose points are
    located once; elsewhere all together.

    Args:
        truth: masks of the targets.
        targets: ground truth of the batch.
        points: float `[B, P, 2]`.
    """
    step, ends = 1 if points.device.type == "cpu" else len(points), [0]
    for count in targets.counts:
        ends.append(ends[-1] + count)
    image = torch.arange(len(points)).repeat_interleave(torch.tensor(targets.counts))
    image, rows = to_device(image, points.device), torch.arange(ends[-1], device=points.device)
    parts = []
    for first in range(0, len(points), step):
        own = slice(ends[first], ends[min(first + step, len(points))])
        parts.append(truth.sample(rows[own], points[first : first + step], image[own] - first))
    return torch.cat(parts)
