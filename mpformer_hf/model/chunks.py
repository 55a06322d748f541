"""How the training step is computed: in chunks that stay in the cache of a CPU, or few and large ones on other devices,
with as few copies between host and device as possible. What is computed is in `criterion.py`, `matcher.py` and
`mask_losses.py`, and does not depend on this module.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MASK_LOGITS = 2**22  # logits of a chunk of mask losses on a CPU: 16 MB; 16 times as many on other devices
COST_LOGITS = 2**27  # logits of a chunk of matching costs: 512 MB


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host. On CUDA it is copied from pinned memory, so that the host does not wait."""
    if device.type == "cuda" and host.device.type == "cpu":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def copy_to_host(costs: list[Tensor]) -> list[Tensor]:
    """Copy matrices to the CPU in one transfer. Values that are not finite become very large, so that a NaN is reported
    by the loss and does not fail here."""
    flat = torch.cat([cost.flatten() for cost in costs])
    flat = flat.nan_to_num(1e10, 1e10, -1e10).clamp(-1e10, 1e10).cpu()
    parts = flat.split([cost.numel() for cost in costs])
    return [part.view(cost.shape) for part, cost in zip(parts, costs, strict=True)]


def padded_rows(counts: list[int]) -> Tensor:
    """Rows of the targets of each image, int64 `[B, T]`; unused places are row 0."""
    columns = torch.arange(max(counts))
    sizes = torch.tensor(counts)[:, None]
    return torch.where(columns < sizes, columns + sizes.cumsum(0) - sizes, 0)


def cost_chunks(device: torch.device, images: int, rows: int, queries: int, points: int) -> list[tuple[slice, slice]]:
    """Images and rows whose costs are computed together: on a CPU those of one prediction of an image, which stay in
    its cache; elsewhere as many images as have `COST_LOGITS` logits."""
    one = device.type == "cpu"
    image_step, row_step = (1, queries) if one else (max(1, COST_LOGITS // max(1, rows * points)), rows)
    return [
        (slice(image, min(image + image_step, images)), slice(row, row + row_step))
        for image in range(0, images, image_step)
        for row in range(0, rows, row_step)
    ]


@dataclass
class Chunk:
    """Masks whose losses are computed together.

    Attributes:
        images: B images.
        rows: int64 `[B, m]`, masks of each image. Images with fewer masks than others have unused places, which are
            those of any mask.
        used: float32 `[B, m]`, 0 in unused places and 1 elsewhere.
    """

    images: slice
    rows: Tensor
    used: Tensor


def make_chunks(counts: list[int], length: int, device: torch.device) -> tuple[list[Chunk], Tensor]:
    """Chunks of all masks, and the place of each mask among all places of the chunks, int64 `[M]`. On a CPU a chunk is
    of one image; elsewhere of as many as fit, so that the number of operators hardly depends on the batch.

    Args:
        counts: masks of each image, in whose order the masks are.
        length: logits of a mask, for the size of the chunks.
        device: of the results, which are copied to it together.
    """
    on_cpu, largest = device.type == "cpu", max(counts, default=0)
    size = max(1, (MASK_LOGITS if on_cpu else 16 * MASK_LOGITS) // max(1, length))  # masks of a chunk
    step = 1 if on_cpu else max(1, size // max(1, largest))
    first = torch.tensor([0, *counts]).cumsum(0)[:-1]
    images, rows, used = [], [], []
    for start in range(0, len(counts), step):
        part = slice(start, min(start + step, len(counts)))
        sizes = torch.tensor(counts[part])[:, None]
        for column in range(0, int(sizes.max()), size):
            columns = torch.arange(column, min(column + size, int(sizes.max())))
            images.append(part)
            used.append(columns < sizes)
            rows.append(torch.where(used[-1], columns + first[part, None], 0))
    place_of = torch.cat([x.flatten() for x in used] or [torch.zeros(0)]).nonzero()[:, 0]
    mask_of = torch.cat([x.flatten() for x in rows] or [torch.zeros(0, dtype=torch.int64)])[place_of]
    places = torch.empty_like(place_of)
    places[mask_of] = place_of
    everything = [places, *(x.flatten() for x in rows), *(x.flatten().long() for x in used)]
    places, *parts = to_device(torch.cat(everything), device).split([x.numel() for x in everything])
    shaped = [x.view(like.shape) for x, like in zip(parts, rows + used, strict=True)]
    rows, used = shaped[: len(rows)], [x.float() for x in shaped[len(rows) :]]
    return [Chunk(*chunk) for chunk in zip(images, rows, used, strict=True)], places
