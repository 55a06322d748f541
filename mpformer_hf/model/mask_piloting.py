"""The mask pilot (MP-Former, section 3): ground truth as additional queries and attention masks in training.

Each target of an image becomes one *pilot query* in each of `groups` groups:

- its content is the embedding of its class, or with label noise sometimes of a random class;
- in the piloted layers its cross-attention mask is its ground-truth mask, pooled to the feature level, with noise;
- its loss has a fixed assignment: pilot query j predicts target j (see `criterion.py`).

Matching queries cannot attend to pilot queries, so the pilot cannot change a prediction. Pilot queries attend to the
matching queries and to their own group. Images with fewer targets than others have unused slots, which are masked out
of attention and excluded from the loss, so the pilot of an image does not depend on the other images of the batch.

All functions are pure. Noise is in `pilot_noise.py`.

Shape letters: B batch, P pilot queries, Q matching queries, T targets of the whole batch, R = T * groups rows (ordered
by image, then by group), A = 1 or the number of attention heads, K cells (locations) of one feature level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .chunks import to_device
from .configuration_mpformer import MPFormerConfig
from .pilot_noise import CELL_NOISES, change_masks, is_geometric, replace_labels
from .targets import Targets


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
        level_known: cells of each level that are not all void, bool `[B, 1, K]`; None: all.
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
    level_known: list[Tensor] | None
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
            if self.level_known is not None:
                cells = cells & self.level_known[level][self.batch_index]
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
    rows = torch.stack((image, group * largest + within, first_target[image] + within))
    batch_index, slot, target = to_device(rows, device)
    valid = to_device((torch.arange(largest) < counts[:, None]).repeat(1, groups), device)

    heads = config.num_attention_heads if config.pilot_per_head_noise else 1
    levels = masks[:, None]
    known = None if targets.void is None else 1 - targets.void[:, None]
    noises, scale = config.pilot_noises, float(config.pilot_noise_scale)
    if is_geometric(noises, scale):
        rows = change_masks(masks[target.repeat_interleave(heads)], noises, scale, generator)
        levels = rows.unflatten(0, (-1, heads))
        if known is not None:
            levels = levels * known[batch_index]

    noisy_labels = torch.zeros_like(valid, dtype=torch.int64)
    noisy_labels[batch_index, slot] = replace_labels(
        targets.labels[target], config.num_labels, config.pilot_label_noise, generator
    )
    return Pilot(
        noisy_labels=noisy_labels,
        valid=valid,
        batch_index=batch_index,
        slot=slot,
        target=target,
        counts=[count * groups for count in targets.counts],
        self_attention_mask=self_attention_mask(valid, groups, config.num_queries),
        level_masks=[pool_masks(levels, shape).flatten(2) for shape in level_shapes],
        level_known=None if known is None else [pool_masks(known, shape).flatten(2) for shape in level_shapes],
        groups=groups,
        noise=noises[0] if scale and noises[0] in CELL_NOISES else None,
        noise_scale=scale,
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
