"""Masks within their boxes: the cost of drawing an object depends on its size, not on that of the image."""

from dataclasses import dataclass

import numpy as np

from ..metrics.boundary import window_maximum


@dataclass
class MaskPart:
    """A part of an image, with all pixels of a mask.

    Attributes:
        mask: bool `[h, w]`; of a mask without pixels `[0, 0]`.
        top, left: of the part in the image.
    """

    mask: np.ndarray
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The part in an array of the image."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def part_of(mask: np.ndarray, margin: int, factor: int = 1) -> MaskPart:
    """The box of a mask with a margin, which ends at the border of the image.

    Args:
        mask: bool `[H, W]`.
        margin: in pixels of the enlarged image.
        factor: how many times image and mask are enlarged.
    """
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return MaskPart(np.zeros((0, 0), dtype=bool), 0, 0)
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    reach = -(-margin // factor)
    top, left = (max(0, int(index[0]) - reach) for index in (rows, columns))
    part = mask[top : int(rows[-1]) + 1 + reach, left : int(columns[-1]) + 1 + reach]
    part = part.repeat(factor, 0).repeat(factor, 1) if factor > 1 else part
    return MaskPart(part, factor * top, factor * left)


def grown(mask: np.ndarray, reach: int) -> np.ndarray:
    """Pixels of a bool `[h, w]` within a square of `reach` pixels around a pixel of the mask."""
    return window_maximum(np.pad(mask, reach), reach)


def contour(part: MaskPart, width: int) -> np.ndarray:
    """Pixels of the mask of a part, with a margin of at least `width`, within `width` pixels of its outside; the image
    border is not outside."""
    return part.mask & grown(~part.mask, width) if part.mask.size else part.mask


def touches(one: MaskPart, other: MaskPart, reach: int = 3) -> bool:
    """Whether a mask has a pixel within `reach` pixels of another one; both have a margin of at least `reach`."""
    windows = list(zip(one.window, other.window, strict=True))
    first = [max(a.start, b.start) for a, b in windows]
    stop = [min(a.stop, b.stop) for a, b in windows]
    if first[0] >= stop[0] or first[1] >= stop[1]:
        return False
    near, there = (
        part.mask[first[0] - part.top : stop[0] - part.top, first[1] - part.left : stop[1] - part.left]
        for part in (one, other)
    )
    return bool((grown(near, reach) & there).any())
