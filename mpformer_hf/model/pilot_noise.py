"""Noise of the pilot: classes, attention masks and positions.

Geometric noise is drawn once for each row (a target in a group), so that the object is the same at all levels; cell
noise is drawn anew for each layer. Random numbers are from one `torch.Generator` (None: the default one).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .boxes import mask_boxes


def uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """float32 numbers in [low, high), on the device of `like`."""
    return low + (high - low) * torch.rand(shape, device=like.device, generator=generator)


def replace_labels(labels: Tensor, num_labels: int, share: float, generator: torch.Generator | None) -> Tensor:
    """Replace each label by a uniformly random class (perhaps the same) with probability `share`.

    Args:
        labels: int64 `[R]`.

    Returns:
        int64 `[R]`; expected share of changed labels: `share * (num_labels - 1) / num_labels`.
    """
    if share == 0:
        return labels
    chosen = torch.rand(labels.shape, device=labels.device, generator=generator) < share
    random = torch.randint(num_labels, labels.shape, device=labels.device, generator=generator)
    return torch.where(chosen, random, labels)


@torch.compiler.disable
def flip_points(cells: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Flip each cell, in both directions, with probability `min(1, scale * foreground share of its row)`.

    Args:
        cells: bool `[R, A, K]`.
    """
    rate = scale * cells.float().mean(-1, keepdim=True)
    return cells ^ (torch.rand(cells.shape, device=cells.device, generator=generator) < rate)


@torch.compiler.disable
def drop_cells(cells: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Remove each cell with probability `min(1, scale)`.

    Args:
        cells: bool `[R, A, K]`.
    """
    return cells & (torch.rand(cells.shape, device=cells.device, generator=generator) >= scale)


def transform_masks(masks: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """Scale each mask around the centre of its box, then shift it; parts outside of the image are lost.

    Args:
        masks: uint8 `[R, H, W]`.
        shift: float `[R, 2]`, (x, y) in pixels.
        factor: float `[R]`, > 0; above 1 enlarges.

    Returns:
        uint8 `[R, H, W]`, nearest neighbour.
    """
    boxes = mask_boxes(masks).float()
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    sources = []
    for axis, size in enumerate((masks.shape[2], masks.shape[1])):  # x, y: the transform is separable
        pixel = torch.arange(size, device=masks.device) + 0.5
        middle = centre[:, axis, None]
        source = (pixel - middle - shift[:, axis, None]) / factor[:, None] + middle
        index = source.floor().long()
        sources.append((index.clamp(0, size - 1), (index >= 0) & (index < size)))
    (x, x_inside), (y, y_inside) = sources
    row = torch.arange(len(masks), device=masks.device).view(-1, 1, 1)
    moved = masks[row, y[:, :, None], x[:, None]]
    return moved * (y_inside[:, :, None] & x_inside[:, None])


def move_masks(
    masks: Tensor, scale: float, generator: torch.Generator | None, shift: bool = True, resize: bool = True
) -> Tensor:
    """Scale each object around its centre by a log-uniform factor between `1 / (1 + scale)` and `1 + scale`, and shift
    it by up to `scale` x half its width and height; uint8 `[R, H, W]` -> uint8 `[R, H, W]`."""
    count, boxes = len(masks), mask_boxes(masks).float()
    factor, moved = boxes.new_ones(count), boxes.new_zeros(count, 2)
    if resize:
        factor = (1 + scale) ** uniform((count,), -1, 1, masks, generator)
    if shift:
        moved = uniform((count, 2), -scale / 2, scale / 2, masks, generator) * (boxes[:, 2:] - boxes[:, :2])
    return transform_masks(masks, moved, factor)


def add_patches(masks: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Add to each object a rectangle of about `scale` x its area (at least one pixel) at a random position in the
    image; width / height is log-uniform in [1/2, 2] if the image is large enough; uint8 `[R, H, W]` -> uint8 `[R, H,
    W]`."""
    height, width = masks.shape[1:]
    area = (masks.flatten(1).sum(1).float() * scale).clamp(min=1)
    ratio = 2 ** uniform((len(masks),), -1, 1, masks, generator)
    position = uniform((len(masks), 2), 0, 1, masks, generator)
    w = (area * ratio).sqrt().clamp(max=width)
    h = (area / w).clamp(max=height)
    w = (area / h).clamp(max=width)
    inside = []
    for side, size, relative in ((h, height, position[:, 1]), (w, width, position[:, 0])):
        length = side.round().clamp(min=1)
        first = (relative * (size - length + 1)).floor()[:, None]
        pixel = torch.arange(size, device=masks.device)
        inside.append((pixel >= first) & (pixel < first + length[:, None]))
    rows, columns = inside
    return masks | (rows[:, :, None] & columns[:, None]).to(masks.dtype)


def box_masks(masks: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """The bounding box of each object, whose sides are moved by up to `scale` x half the width or height, and which has
    at least one pixel in common with it; uint8 `[R, H, W]` -> uint8 `[R, H, W]`. An empty mask remains empty."""
    boxes = mask_boxes(masks).float()
    width_and_height = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + uniform((len(masks), 4), -scale / 2, scale / 2, masks, generator) * width_and_height
    first = torch.minimum(moved[:, :2].round(), boxes[:, 2:] - 1)
    stop = torch.maximum(moved[:, 2:].round(), torch.maximum(first, boxes[:, :2]) + 1)
    inside = []
    for axis, size in ((1, masks.shape[1]), (0, masks.shape[2])):  # rows, columns
        pixel = torch.arange(size, device=masks.device)
        inside.append((pixel >= first[:, axis, None]) & (pixel < stop[:, axis, None]))
    rows, columns = inside
    there = (width_and_height[:, 0] > 0)[:, None, None]
    return (rows[:, :, None] & columns[:, None] & there).to(masks.dtype)


def grow_masks(masks: Tensor, radius: Tensor) -> Tensor:
    """Dilate each mask by a square window.

    Args:
        masks: uint8 `[R, H, W]`, 0 or 1.
        radius: int64 `[R]`, at least 0: the window has `2 radius + 1` pixels.
    """
    for axis in (1, 2):
        size = masks.shape[axis]
        total = F.pad(masks.cumsum(axis, dtype=torch.int32), (1, 0) if axis == 2 else (0, 0, 1, 0))
        pixel = torch.arange(size, device=masks.device)
        ends = []
        for end in ((pixel + 1 + radius[:, None]).clamp(max=size), (pixel - radius[:, None]).clamp(min=0)):
            index = end[:, :, None] if axis == 1 else end[:, None]
            ends.append(total.gather(axis, index.expand_as(masks)))
        masks = (ends[0] > ends[1]).to(masks.dtype)
    return masks


def move_outlines(masks: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Dilate or erode each object by up to `scale` x half the square root of its area; the image border does not erode;
    uint8 `[R, H, W]` -> uint8 `[R, H, W]`."""
    length = masks.flatten(1).sum(1).float().sqrt() / 2
    radius = (uniform((len(masks),), -scale, scale, masks, generator) * length).round().long()
    grown = grow_masks(masks, radius.clamp(min=0))
    shrunk = 1 - grow_masks(1 - masks, (-radius).clamp(min=0))
    return torch.where((radius >= 0)[:, None, None], grown, shrunk)


def change_masks(masks: Tensor, noises: tuple[str, ...], scale: float, generator: torch.Generator | None) -> Tensor:
    """Geometric noise; of several kinds, each row draws one, and `clean` is none of them.

    Args:
        masks: uint8 `[R, H, W]`.
        noises: names of `GEOMETRIC_NOISES`, or `clean`; a name that occurs twice is drawn twice as often.
        scale: strength.
    """
    drawn = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    if len(noises) > 1:
        drawn = torch.randint(len(noises), drawn.shape, device=masks.device, generator=generator)
    changed = masks
    for noise in dict.fromkeys(noises):
        if noise != CLEAN and (scale > 0 or noise == "box"):
            own = torch.zeros_like(drawn, dtype=torch.bool)
            for index in (i for i, x in enumerate(noises) if x == noise):
                own |= drawn == index
            changed = torch.where(own[:, None, None], GEOMETRIC_NOISES[noise](masks, scale, generator), changed)
    return changed


def is_geometric(noises: tuple[str, ...], scale: float) -> bool:
    """Whether masks are changed once for each row: not where the strength is 0, except for boxes."""
    return any(noise in GEOMETRIC_NOISES and (scale > 0 or noise == "box") for noise in noises)


CLEAN = "clean"
GEOMETRIC_NOISES: dict[str, Callable[..., Tensor]] = {
    "shift": partial(move_masks, resize=False),
    "scale": partial(move_masks, shift=False),
    "shift_scale": move_masks,
    "patch": add_patches,
    "box": box_masks,
    "outline": move_outlines,
}
CELL_NOISES = {"point": flip_points, "dropout": drop_cells}  # drawn for each layer
