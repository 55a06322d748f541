"""The mask pilot (MP-Former, section 3): ground truth as additional queries and attention masks in training.

Each target of an image becomes one *pilot query* in each of `groups` groups:

- its content is the embedding of its class, or with label noise sometimes of a random class;
- in the piloted layers its cross-attention mask is its ground-truth mask, pooled to the feature level, with noise;
- its loss has a fixed assignment: pilot query j predicts target j (see `criterion.py`).

Matching queries cannot attend to pilot queries, so the pilot cannot change a prediction. Pilot queries attend to the
matching queries and to their own group. Images with fewer targets than others have unused slots, which are masked out
of attention and excluded from the loss, so the pilot of an image does not depend on the other images of the batch.

All functions are pure. Random numbers are drawn from one `torch.Generator` (None: the default one).

Shape letters: B batch, P pilot queries, Q matching queries, T targets of the whole batch, R = T * groups rows (ordered
by image, then by group), A = 1 or the number of attention heads, K cells (locations) of one feature level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import mask_boxes
from .configuration_mpformer import MPFormerConfig
from .targets import Targets

CENTRE_NOISE = 0.1  # of the sides of the box


@dataclass
class Pilot:
    """Pilot queries of one batch: labels, attention masks and assignment to targets.

    Attributes:
        noisy_labels: int64 `[B, P]`, class whose embedding is the content of a pilot query; 0 in unused slots.
        valid: bool `[B, P]`, False in unused slots.
        batch_index, slot, target: int64 `[R]`; row r is pilot query `slot[r]` of image `batch_index[r]` and must
            predict target `target[r]` of the batch.
        counts: rows of each image; their sum is R.
        self_attention_mask: bool `[B, 1, P + Q, P + Q]`, True = may attend.
        level_masks: pooled ground-truth masks per feature level, bool `[T or R, 1 or A, K]`.
        centres: float `[B, P, 2]`, (x, y) of the target in [0, 1], 0 in unused slots; None: without positions.
        groups: number of groups.
        noise: kind of cell noise, which is drawn for each layer: `"point"`, `"dropout"` or None.
        noise_scale, heads, piloted_layers, generator: as configured.
    """

    noisy_labels: Tensor
    valid: Tensor
    batch_index: Tensor
    slot: Tensor
    target: Tensor
    counts: list[int]
    self_attention_mask: Tensor
    level_masks: list[Tensor]
    centres: Tensor | None
    groups: int
    noise: str | None
    noise_scale: float
    heads: int
    piloted_layers: int | None
    generator: torch.Generator | None

    @property
    def num_queries(self) -> int:
        return self.valid.shape[1]

    def uses_gt_mask(self, layer: int) -> bool:
        """Whether cross-attention `layer` (0 = the first) uses ground-truth masks."""
        return self.piloted_layers is None or layer < self.piloted_layers

    def sample_attention_mask(self, level: int) -> Tensor:
        """Cross-attention mask of the pilot queries, bool `[B, A, P, K]`, True = may attend; unused slots are all
        False.

        Point and dropout noise is drawn at every call, that is, separately for every layer.
        """
        cells = self.level_masks[level]
        if len(cells) != len(self.target):
            cells = cells[self.target]
        if self.noise is not None:
            cells = cells.expand(-1, self.heads, -1)
            cells = CELL_NOISES[self.noise](cells, self.noise_scale, self.generator)
        mask = cells.new_zeros(len(self.valid), cells.shape[1], self.num_queries, cells.shape[2])
        mask[self.batch_index, :, self.slot] = cells
        return mask


@torch.compiler.disable  # random numbers and tensor sizes that change in every step
def build_pilot(
    targets: Targets,
    level_shapes: list[tuple[int, int]],
    config: MPFormerConfig,
    generator: torch.Generator | None = None,
) -> Pilot | None:
    """Pilot of one batch.

    Args:
        targets: ground truth of the batch.
        level_shapes: (height, width) of the decoder's feature levels.
        config: pilot options.
        generator: source of all noise, on the device of the masks.

    Returns:
        the pilot, with 0 queries if no image has a target; None if `config.mask_piloting` is False.
    """
    if not config.mask_piloting:
        return None
    largest = max(targets.counts)
    groups = config.pilot_groups
    if config.pilot_query_budget is not None:
        groups = max(1, config.pilot_query_budget // max(1, largest))

    masks, device, batch = targets.masks, targets.masks.device, len(targets.counts)
    counts = torch.tensor(targets.counts)
    image = torch.arange(batch).repeat_interleave(counts * groups)
    first_row, first_target = (counts.cumsum(0) - counts) * groups, counts.cumsum(0) - counts
    row = torch.arange(len(image)) - first_row[image]
    group, within = row // counts[image], row % counts[image]
    batch_index, slot, target = torch.stack((image, group * largest + within, first_target[image] + within)).to(device)

    noise = None if config.pilot_noise_scale == 0 else config.pilot_noise
    heads = config.num_attention_heads if config.pilot_per_head_noise else 1
    levels = masks[:, None]
    if noise in GEOMETRIC_NOISES:
        rows = masks[target.repeat_interleave(heads)]
        rows = GEOMETRIC_NOISES[noise](rows, float(config.pilot_noise_scale), generator)
        levels = rows.unflatten(0, (-1, heads))

    valid = torch.zeros(batch, groups * largest, dtype=torch.bool, device=device)
    valid[batch_index, slot] = True
    noisy_labels = torch.zeros_like(valid, dtype=torch.int64)
    noisy_labels[batch_index, slot] = replace_labels(
        targets.labels[target], config.num_labels, config.pilot_label_noise, generator
    )
    centres = None
    if config.pilot_position:
        centres = torch.zeros(*valid.shape, 2, device=device)
        centres[batch_index, slot] = target_centres(masks, generator)[target]
    return Pilot(
        noisy_labels=noisy_labels,
        valid=valid,
        batch_index=batch_index,
        slot=slot,
        target=target,
        counts=[count * groups for count in targets.counts],
        self_attention_mask=self_attention_mask(valid, groups, config.num_queries),
        level_masks=[pool_masks(levels, shape).flatten(2) for shape in level_shapes],
        centres=centres,
        groups=groups,
        noise=noise if noise in CELL_NOISES else None,
        noise_scale=float(config.pilot_noise_scale),
        heads=heads,
        piloted_layers=config.pilot_layers,
        generator=generator,
    )


def self_attention_mask(valid: Tensor, groups: int, num_queries: int) -> Tensor:
    """Self-attention mask of the decoder: bool `[B, 1, P + Q, P + Q]`, True = the row may attend to the column.

    Args:
        valid: bool `[B, P]`, False in unused pilot slots.
        groups: number of groups; P is a multiple of it.
        num_queries: number of matching queries Q.
    """
    pilot = valid.shape[1]
    group = torch.arange(groups, device=valid.device).repeat_interleave(pilot // groups)
    mask = valid.new_ones(len(valid), 1, pilot + num_queries, pilot + num_queries)
    mask[:, :, pilot:, :pilot] = False
    mask[:, :, :pilot, :pilot] = (group[:, None] == group) & valid[:, None, None]
    return mask


def pool_masks(masks: Tensor, shape: tuple[int, int]) -> Tensor:
    """Adaptive max pooling of binary masks: a cell is set if any pixel of its window is.

    Equal to `torch.nn.functional.adaptive_max_pool2d` on float masks, and 3 to 12 times as fast on a CPU (100 masks of
    512x512, one thread), since the axes are pooled separately and in bytes.

    Args:
        masks: uint8 `[..., H, W]`, 0 or 1.
        shape: (height, width) of the result.

    Returns:
        bool `[..., height, width]`.
    """
    for axis, cells in zip((-2, -1), shape, strict=True):
        size = masks.shape[axis]
        cell = torch.arange(cells, device=masks.device)
        first, stop = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
        step = torch.arange(-(-size // cells) + (size % cells != 0), device=masks.device)
        window = torch.minimum(first[:, None] + step, stop[:, None] - 1)
        masks = masks.index_select(axis, window.flatten()).unflatten(axis, tuple(window.shape)).amax(axis)
    return masks.bool()


def target_centres(masks: Tensor, generator: torch.Generator | None) -> Tensor:
    """Centres of the boxes of masks, moved by up to `CENTRE_NOISE` of the box's sides.

    Args:
        masks: uint8 `[T, H, W]`.

    Returns:
        float `[T, 2]`, (x, y) relative to the image, in [0, 1].
    """
    boxes, size = mask_boxes(masks).float(), torch.tensor(masks.shape[:0:-1], device=masks.device)
    shift = uniform((len(masks), 2), -CENTRE_NOISE, CENTRE_NOISE, masks, generator) * (boxes[:, 2:] - boxes[:, :2])
    return (((boxes[:, :2] + boxes[:, 2:]) / 2 + shift) / size).clamp(0, 1)


# --- Noise ---


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


def random_shift(masks: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Shifts in pixels, `[R, 2]`, uniform within +- `scale` x half the width and height of the box."""
    boxes = mask_boxes(masks).float()
    return uniform((len(masks), 2), -scale / 2, scale / 2, masks, generator) * (boxes[:, 2:] - boxes[:, :2])


def random_factor(masks: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Factors `[R]`, log-uniform between `1 / (1 + scale)` and `1 + scale`: as often smaller as larger."""
    return (1 + scale) ** uniform((len(masks),), -1, 1, masks, generator)


def shift_masks(masks: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Shift each object by up to `scale` x half its width and height; uint8 `[R, H, W]` -> uint8 `[R, H, W]`."""
    shift = random_shift(masks, scale, generator)
    return transform_masks(masks, shift, shift.new_ones(len(masks)))


def scale_masks(masks: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Scale each object around its centre by up to `1 + scale`; uint8 `[R, H, W]` -> uint8 `[R, H, W]`."""
    factor = random_factor(masks, scale, generator)
    return transform_masks(masks, factor.new_zeros(len(masks), 2), factor)


def shift_and_scale_masks(masks: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Scale and shift each object, independently; uint8 `[R, H, W]` -> uint8 `[R, H, W]`."""
    factor = random_factor(masks, scale, generator)
    return transform_masks(masks, random_shift(masks, scale, generator), factor)


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


GEOMETRIC_NOISES = {  # drawn once per row, so that the object is the same at all levels
    "shift": shift_masks,
    "scale": scale_masks,
    "shift_scale": shift_and_scale_masks,
    "patch": add_patches,
}
CELL_NOISES = {"point": flip_points, "dropout": drop_cells}  # drawn for each layer
