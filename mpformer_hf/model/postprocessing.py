"""Semantic, instance and panoptic inference as in the official code (MaskFormer, section 3.4; Mask2Former, appendix).

Mask logits are resized to the size of the padded input, the padding is cropped, and they are resized to the size of the
result; then the rule of the task is applied. All this is done tile by tile, for the queries that matter in a tile.

Shape letters: Q queries, K classes, h and w the size of the mask logits, H and W the size of the result.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .cleaning import clean
from .label_maps import count_ids

EVERY = slice(None)
TILE, TILE_OF_GPU = 128, 768  # sides of tiles in pixels: for caches, and for few launches


@dataclass
class ResizeGeometry:
    """Sizes (height, width) in pixels for resizing mask logits.

    Attributes:
        padded: padded input of the network.
        image: the upper left part of it that is not padding.
        target: size of the result.
    """

    padded: tuple[int, int]
    image: tuple[int, int]
    target: tuple[int, int]


def valid_sizes(pixel_mask: Tensor) -> list[tuple[int, int]]:
    """(height, width) in pixels of the images of a batch without padding. `pixel_mask`: int `[B, H, W]`, 1 = image."""
    return list(zip(pixel_mask.amax(2).sum(1).tolist(), pixel_mask.amax(1).sum(1).tolist(), strict=True))


def segments_of(result) -> list[tuple[dict, Tensor]]:
    """The segments of a post-processed result, each with its mask.

    Args:
        result: semantic: class ids, `[H, W]`, -1 where there is none; instance or panoptic: a dict of `segmentation`,
            ids `[H, W]` or masks `[n, H, W]`, and `segments_info`.

    Returns:
        for each segment its row of `segments_info` (semantic: `label_id` alone) and its mask, bool `[H, W]`.
    """
    rows = result.get("segments_info") if isinstance(result, Mapping) else None
    maps = torch.as_tensor(result["segmentation"] if isinstance(result, Mapping) else np.asarray(result))
    if rows is None:
        return [({"label_id": label}, maps == label) for label in count_ids(maps) if label >= 0]
    masks = maps.bool() if maps.ndim == 3 else (maps == row["id"] for row in rows)
    return list(zip(rows, masks, strict=True))


def resize_masks(masks: Tensor, geometry: ResizeGeometry) -> Tensor:
    """Mask logits `[Q, h, w]` -> `[Q, H, W]`, bilinear."""
    masks = F.interpolate(masks[None].float(), size=geometry.padded, mode="bilinear", align_corners=False)
    masks = masks[..., : geometry.image[0], : geometry.image[1]]
    if tuple(masks.shape[-2:]) != tuple(geometry.target):
        masks = F.interpolate(masks, size=tuple(geometry.target), mode="bilinear", align_corners=False)
    return masks[0]


def interpolation_matrix(source: int, padded: int, image: int, target: int, device: torch.device) -> Tensor:
    """Matrix of `resize_masks` along one axis, float32 `[target, source]`: resizing is linear and separable."""
    unit = torch.eye(source, device=device)[None]
    columns = F.interpolate(unit, size=padded, mode="linear", align_corners=False)[..., :image]
    if image != target:
        columns = F.interpolate(columns, size=target, mode="linear", align_corners=False)
    return columns[0].T.contiguous()


def tiles_of_axis(matrix: Tensor, side: int) -> list[tuple[slice, slice]]:
    """Tiles along one axis: pixels of the result, and the cells that they are interpolated from."""
    used, cells = matrix != 0, torch.arange(1, matrix.shape[1] + 1, device=matrix.device, dtype=torch.int32)
    last = (used * cells).amax(1).tolist()
    first = (len(cells) - (used * cells.flip(0)).amax(1)).tolist()
    starts = range(0, len(matrix), side)
    ends = [min(start + side, len(matrix)) for start in starts]
    return [(slice(a, b), slice(min(first[a:b]), max(last[a:b]))) for a, b in zip(starts, ends, strict=True)]


@dataclass
class Tile:
    """A tile of the result: rows and columns of its pixels, and of the cells that they are interpolated from."""

    pixels: tuple[slice, slice]
    cells: tuple[slice, slice]

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(part.stop - part.start for part in self.pixels)


class Tiles:
    """Resizes mask logits tile by tile, as `resize_masks` does for whole images.

    Args:
        logits: `[Q, h, w]`.
        geometry: sizes of input and result.
    """

    def __init__(self, logits: Tensor, geometry: ResizeGeometry):
        self.logits = logits.float()
        self.rows, self.columns = (
            interpolation_matrix(*sizes, logits.device)
            for sizes in zip(logits.shape[1:], geometry.padded, geometry.image, geometry.target, strict=True)
        )
        side = TILE if logits.device.type == "cpu" else TILE_OF_GPU
        axes = [tiles_of_axis(matrix, side) for matrix in (self.rows, self.columns)]
        self.tiles = [Tile((y[0], x[0]), (y[1], x[1])) for y in axes[0] for x in axes[1]]

    def resize(self, tile: Tile, queries: Tensor | slice = EVERY) -> Tensor:
        """Logits of some queries in a tile, float32 `[n, height, width]`."""
        (pixels_y, pixels_x), (y, x) = tile.pixels, tile.cells
        return self.rows[pixels_y, y] @ self.logits[queries, y, x] @ self.columns[pixels_x, x].T

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest logit of each query in each tile, `[tiles, Q]`: a resized logit is between the
        cells that it is interpolated from."""
        parts = (self.logits[(EVERY, *tile.cells)].flatten(1) for tile in self.tiles)
        least, most = torch.stack([torch.stack(part.aminmax(dim=1)) for part in parts]).unbind(1)
        return least, most


def semantic_inference(
    class_logits: Tensor, mask_logits: Tensor, geometry: ResizeGeometry, resize_scores: bool = False
) -> Tensor:
    """Sum over queries of class probability x mask probability.

    Args:
        class_logits: `[Q, K + 1]`.
        mask_logits: `[Q, h, w]`.
        resize_scores: sum at the size of the processed image and resize the sums to the target, as the official code
            does for semantic models; False: resize the mask logits, as it does for panoptic ones.

    Returns:
        float32 `[K, H, W]`, at least 0, not normalised over classes.
    """
    if resize_scores and geometry.image != geometry.target:
        processed = ResizeGeometry(geometry.padded, geometry.image, geometry.image)
        scores = semantic_inference(class_logits, mask_logits, processed)
        return F.interpolate(scores[None], size=geometry.target, mode="bilinear", align_corners=False)[0]
    scores = mask_logits.new_empty(class_logits.shape[-1] - 1, *geometry.target, dtype=torch.float32)
    for tile, part in scores_in_tiles(class_logits, mask_logits, geometry):
        scores[(slice(None), *tile.pixels)] = part
    return scores


def scores_in_tiles(
    class_logits: Tensor, mask_logits: Tensor, geometry: ResizeGeometry
) -> Iterator[tuple[Tile, Tensor]]:
    """Each tile of the result, and its part of `semantic_inference`, float32 `[K, height, width]`."""
    classes = class_logits.float().softmax(-1)[:, :-1].T.contiguous()
    grid = Tiles(mask_logits, geometry)
    for tile in grid.tiles:
        probabilities = grid.resize(tile).sigmoid_()
        yield tile, (classes @ probabilities.flatten(1)).view(-1, *probabilities.shape[1:])


def semantic_classes(
    class_logits: Tensor, mask_logits: Tensor, geometry: ResizeGeometry, resize_scores: bool = False
) -> Tensor:
    """`semantic_inference(...).argmax(0)`, int64 `[H, W]`, up to the rounding of equal scores. Memory does not grow
    with the number of classes: scores are made tile by tile, resized ones are compared class by class."""
    if not resize_scores or geometry.image == geometry.target:
        found = torch.empty(geometry.target, dtype=torch.int64, device=mask_logits.device)
        for tile, part in scores_in_tiles(class_logits, mask_logits, geometry):
            found[tile.pixels] = first_largest(part)[0]
        return found
    processed = ResizeGeometry(geometry.padded, geometry.image, geometry.image)
    scores = semantic_inference(class_logits, mask_logits, processed)
    largest = scores.new_full(geometry.target, -1.0)  # scores are at least 0
    classes = torch.zeros(geometry.target, dtype=torch.int32, device=scores.device)
    for label in range(len(scores)):
        resized = F.interpolate(
            scores[None, label : label + 1], size=geometry.target, mode="bilinear", align_corners=False
        )[0, 0]
        classes.masked_fill_(resized > largest, label)
        torch.maximum(largest, resized, out=largest)
    return classes.long()


@dataclass
class Instances:
    """Attributes:
    scores: float32 `[n]` in [0, 1], class probability x mean mask probability inside the mask, descending.
    labels: int64 `[n]`.
    masks: bool `[n, H, W]`, may overlap.
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor


def clean_instances(instances: Instances, nms: float | None, min_pixels: int) -> Instances:
    """Instances as they are handed on, see `clean`."""
    rows = zip(instances.labels.tolist(), instances.scores.tolist(), strict=True)
    segments = [{"label_id": label, "score": score, "row": row} for row, (label, score) in enumerate(rows)]
    result = clean({"segmentation": instances.masks, "segments_info": segments}, nms, min_pixels)
    kept = [segment["row"] for segment in result["segments_info"]]
    return Instances(instances.scores[kept], instances.labels[kept], result["segmentation"])


def logit_of(threshold: float) -> float:
    """Logit of a probability in [0, 1], to compare logits with: the sigmoid of a tiny positive logit rounds to 0.5."""
    return math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else (threshold - 0.5) * math.inf


def instance_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: ResizeGeometry,
    threshold: float = 0.0,
    mask_threshold: float = 0.5,
    max_detections: int = 100,
    exclude_labels: Collection[int] = (),
) -> Instances:
    """The best pairs of query and class; a query may have several classes.

    Args:
        class_logits: `[Q, K + 1]`.
        mask_logits: `[Q, h, w]`.
        threshold: smallest score.
        mask_threshold: pixels of a higher probability belong to the mask; 0.5 means logits above 0.
        max_detections: number of pairs with the highest class probabilities that are considered.
        exclude_labels: classes that are left out (stuff, for a panoptic model).
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(max_detections, probabilities.numel()))
    labels, queries = pairs % num_classes, pairs // num_classes
    if exclude_labels:
        keep = ~torch.isin(labels, labels.new_tensor(sorted(exclude_labels)))
        scores, labels, queries = scores[keep], labels[keep], queries[keep]
    keep = scores >= threshold  # the score is at most the class probability
    scores, labels, queries = scores[keep], labels[keep], queries[keep]

    unique, which = queries.unique(return_inverse=True)
    masks = torch.zeros(len(queries), *geometry.target, dtype=torch.bool, device=mask_logits.device)
    areas, sums = scores.new_zeros(2, len(unique))
    least = logit_of(mask_threshold)
    grid = Tiles(mask_logits[unique], geometry)
    for tile, near in zip(grid.tiles, grid.bounds()[1] > least, strict=True):
        found = near.nonzero()[:, 0]
        resized = grid.resize(tile, found)
        inside = resized > least
        areas[found] += inside.flatten(1).sum(1)
        sums[found] += resized.sigmoid_().mul_(inside).flatten(1).sum(1)
        rows = near[which].nonzero()[:, 0]
        masks[(rows, *tile.pixels)] = inside[torch.searchsorted(found, which[rows])]
    scores = scores * (sums / (areas + 1e-6))[which]
    order = scores.argsort(descending=True, stable=True)
    order_in_place(masks, order.tolist())
    count = int((scores >= threshold).sum())
    order = order[:count]
    masks = masks if count == len(masks) else masks[:count].clone()  # a part would keep the memory of all
    return Instances(scores[order], labels[order], masks)


def order_in_place(rows: Tensor, order: list[int]) -> None:
    """`rows[:] = rows[order]` for a permutation, without a second tensor of this size."""
    for start in range(len(order)):
        first, at = rows[start].clone(), start
        while order[at] != start:
            rows[at] = rows[order[at]]
            order[at], at = at, order[at]
        rows[at], order[at] = first, at


def instances_to_map(instances: Instances, overlap_mask_area_threshold: float) -> tuple[Tensor, list[int]]:
    """Combine instances to one map; instances of higher scores cover others.

    Returns:
        int32 `[H, W]` of positions in the second result, -1 = no instance; and the indices of the instances of which at
        least `overlap_mask_area_threshold` of the area (and one pixel) is visible, by descending score.
    """
    painted = torch.full(instances.masks.shape[1:], -1, dtype=torch.int32, device=instances.masks.device)
    kept: list[int] = []
    for index, mask in enumerate(instances.masks):
        visible = mask & (painted < 0)
        area = int(visible.sum())
        if area and area >= overlap_mask_area_threshold * int(mask.sum()):
            painted[visible] = len(kept)
            kept.append(index)
    return painted, kept


def first_largest(values: Tensor) -> Tensor:
    """`values.argmax(0, keepdim=True)` of float `[n, H, W]`, the first of equal values; faster than torch's argmax
    along the first dimension."""
    descending = torch.arange(len(values), 0, -1, device=values.device, dtype=torch.int32)[:, None, None]
    largest = values == values.amax(0)
    return (len(values) - (largest * descending).amax(0, keepdim=True)).long()


def argmax_queries(
    logits: Tensor, scores: Tensor, mask_threshold: float, geometry: ResizeGeometry
) -> tuple[Tensor, Tensor, Tensor]:
    """The query with the largest score x mask probability at each pixel.

    In each tile only those queries are resized that may be the largest at a pixel, or whose mask may have a border in
    it.

    Args:
        logits: float32 `[Q, h, w]`.
        scores: `[Q]`.
        mask_threshold: pixels of at least this probability belong to a mask.

    Returns:
        query of each pixel, int64 `[H, W]`; whether its own mask covers the pixel, bool `[H, W]`; areas of all masks,
        int64 `[Q]`.
    """
    device = logits.device
    grid = Tiles(logits, geometry)
    least, most = (bound.sigmoid() for bound in grid.bounds())
    full, empty = least >= mask_threshold, most < mask_threshold
    may_be_largest = most * scores >= (least * scores).amax(1, keepdim=True)
    resized_in_tile = (may_be_largest | ~(full | empty)).cpu()
    sizes = torch.tensor([tile.size for tile in grid.tiles], device=device)
    areas = ((full & ~resized_in_tile.to(device)) * sizes[:, None]).sum(0)

    winner = torch.zeros(geometry.target, dtype=torch.int64, device=device)
    covered = torch.zeros(geometry.target, dtype=torch.bool, device=device)
    for tile, selected in zip(grid.tiles, resized_in_tile, strict=True):
        queries = selected.nonzero()[:, 0].to(device)
        probability = grid.resize(tile, queries).sigmoid_()
        inside = probability >= mask_threshold
        areas[queries] += inside.flatten(1).view(torch.uint8).sum(1, dtype=torch.int64)
        best = first_largest(probability * scores[queries, None, None])
        winner[tile.pixels] = queries[best[0]]
        covered[tile.pixels] = inside.gather(0, best)[0]
    return winner, covered, areas


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: ResizeGeometry,
    threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] = (),
) -> tuple[Tensor, list[dict]]:
    """Assign every pixel to at most one segment: the query with the largest class x mask probability, if its own mask
    covers the pixel. Queries of whose mask too small a share remains are dropped; stuff queries of one class are
    merged.

    Args:
        class_logits: `[Q, K + 1]`.
        mask_logits: `[Q, h, w]`.
        threshold: smallest class probability of a query (exclusive).
        mask_threshold: pixels of at least this probability belong to a mask.
        overlap_mask_area_threshold: smallest share of its mask that must remain.
        label_ids_to_fuse: stuff classes.

    Returns:
        int32 `[H, W]`, 0 = no segment, and the segments: `id` (1, 2, ...), `label_id`, `was_fused`, `score`.
    """
    scores, labels = class_logits.float().softmax(-1).max(-1)
    keep = (labels != class_logits.shape[-1] - 1) & (scores > threshold)
    scores, labels, mask_logits = scores[keep], labels[keep], mask_logits[keep]
    device = mask_logits.device
    segmentation = torch.zeros(geometry.target, dtype=torch.int32, device=device)
    if len(scores) == 0:
        return segmentation, []

    winner, covered, original = argmax_queries(mask_logits.float(), scores, mask_threshold, geometry)
    count = len(scores)
    largest = torch.bincount(winner.flatten(), minlength=count)
    visible = torch.bincount(winner[covered], minlength=count)
    table = torch.stack((original, largest, visible, labels), 1).tolist()  # one device-to-host transfer

    segments: list[dict] = []
    ids = [0] * count
    fused: dict[int, int] = {}
    for query, (area, largest_area, visible_area, label) in enumerate(table):
        if not (area and visible_area) or largest_area / area < overlap_mask_area_threshold:
            continue
        if label in fused:
            ids[query] = fused[label]
            continue
        ids[query] = len(segments) + 1
        if label in label_ids_to_fuse:
            fused[label] = ids[query]
        segments.append({"id": ids[query], "label_id": label, "was_fused": label in label_ids_to_fuse, "score": query})
    rounded = [round(score, 6) for score in scores.tolist()]
    for segment in segments:
        segment["score"] = rounded[segment["score"]]
    id_of_query = torch.tensor(ids, dtype=torch.int32, device=device)
    return torch.where(covered, id_of_query[winner], segmentation), segments
