"""Semantic, instance and panoptic inference as in the official code (MaskFormer, section 3.4; Mask2Former, appendix).

Logits go to the size of the padded input, lose the padding, and go to the size of the result; then the task's rule
applies. Only surviving queries are resized, a few at a time.

Shape letters: Q queries, K classes, h and w the size of the mask logits, H and W the size of the result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

QUERIES_AT_A_TIME = 16
TILE = 128


@dataclass
class Frame:
    """Sizes that a mask passes through, (height, width) in pixels.

    Attributes:
        padded: the padded input of the network.
        image: the part of it that is image, at the upper left.
        target: the result.
    """

    padded: tuple[int, int]
    image: tuple[int, int]
    target: tuple[int, int]


def resize_masks(masks: Tensor, frame: Frame) -> Tensor:
    """Mask logits `[Q, h, w]` -> `[Q, H, W]`, bilinear."""
    masks = F.interpolate(masks[None].float(), size=frame.padded, mode="bilinear", align_corners=False)
    masks = masks[..., : frame.image[0], : frame.image[1]]
    if tuple(masks.shape[-2:]) != tuple(frame.target):
        masks = F.interpolate(masks, size=tuple(frame.target), mode="bilinear", align_corners=False)
    return masks[0]


def in_parts(masks: Tensor, frame: Frame):
    """Resized masks, a few queries at a time: yields (first query, `[some, H, W]`)."""
    for first in range(0, len(masks), QUERIES_AT_A_TIME):
        yield first, resize_masks(masks[first : first + QUERIES_AT_A_TIME], frame)


def semantic_scores(class_logits: Tensor, mask_logits: Tensor, frame: Frame) -> Tensor:
    """Sum over queries of class probability x mask probability.

    Args:
        class_logits: `[Q, K + 1]`.
        mask_logits: `[Q, h, w]`.

    Returns:
        float32 `[K, H, W]`; at least 0, not normalised over classes.
    """
    classes = class_logits.float().softmax(-1)[:, :-1].T
    scores = classes.new_zeros(len(classes), frame.target[0] * frame.target[1])
    for first, masks in in_parts(mask_logits, frame):
        probabilities = masks.sigmoid_().flatten(1)
        scores.addmm_(classes[:, first : first + len(probabilities)], probabilities)
    return scores.view(-1, *frame.target)


@dataclass
class Instances:
    """Attributes:
    scores: float32 `[n]` in [0, 1], class probability x mean mask probability inside the mask, best first.
    labels: int64 `[n]`.
    masks: bool `[n, H, W]`, may overlap.
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor


def find_instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: Frame,
    threshold: float = 0.0,
    mask_threshold: float = 0.5,
    max_detections: int = 100,
    exclude_labels: set[int] = frozenset(),
) -> Instances:
    """The best pairs of query and class; a query may appear under several classes.

    Args:
        class_logits: `[Q, K + 1]`.
        mask_logits: `[Q, h, w]`.
        threshold: instances with a smaller score are left out.
        mask_threshold: probability from which on a pixel belongs to the mask (exclusive, as officially).
        max_detections: pairs considered, best class probabilities first.
        exclude_labels: classes left out (stuff, for a panoptic model).
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(max_detections, probabilities.numel()))
    labels, queries = pairs % num_classes, pairs // num_classes
    if exclude_labels:
        keep = ~torch.isin(labels, labels.new_tensor(sorted(exclude_labels)))
        scores, labels, queries = scores[keep], labels[keep], queries[keep]
    keep = scores >= threshold  # the mask factor is at most 1
    scores, labels, queries = scores[keep], labels[keep], queries[keep]

    unique, which = queries.unique(return_inverse=True)
    masks = torch.zeros(len(unique), *frame.target, dtype=torch.bool, device=mask_logits.device)
    quality = scores.new_zeros(len(unique))
    for first, part in in_parts(mask_logits[unique], frame):
        probability = part.sigmoid_()
        inside = probability > mask_threshold
        masks[first : first + len(part)] = inside
        area = inside.flatten(1).sum(1)
        quality[first : first + len(part)] = (probability * inside).flatten(1).sum(1) / (area + 1e-6)
    scores = scores * quality[which]
    order = scores.argsort(descending=True, stable=True)
    order = order[(scores >= threshold)[order]]
    return Instances(scores[order], labels[order], masks[which[order]])


def paint_instances(instances: Instances, overlap_mask_area_threshold: float) -> tuple[Tensor, list[int]]:
    """One label map: better instances cover worse ones.

    Returns:
        int32 `[H, W]`, -1 where nothing is, else the position in the second result: indices of the instances that keep
        at least `overlap_mask_area_threshold` of their area (and at least one pixel), best first.
    """
    painted = torch.full(instances.masks.shape[1:], -1, dtype=torch.int32, device=instances.masks.device)
    kept = []
    for index, mask in enumerate(instances.masks):
        visible = mask & (painted < 0)
        area = int(visible.sum())
        if area and area >= overlap_mask_area_threshold * int(mask.sum()):
            painted[visible] = len(kept)
            kept.append(index)
    return painted, kept


def interpolation_matrix(source: int, padded: int, image: int, target: int, device: torch.device) -> Tensor:
    """One axis of `resize_masks` as a matrix, float32 `[target, source]`: resizing is linear and the axes are apart."""
    unit = torch.eye(source, device=device)[None]
    columns = F.interpolate(unit, size=padded, mode="linear", align_corners=False)[..., :image]
    if image != target:
        columns = F.interpolate(columns, size=target, mode="linear", align_corners=False)
    return columns[0].T.contiguous()


def cut(matrix: Tensor) -> list[tuple[slice, slice]]:
    """Tiles along one axis: which pixels of the result, and which cells they are interpolated from."""
    used, cells = matrix != 0, torch.arange(1, matrix.shape[1] + 1, device=matrix.device, dtype=torch.int32)
    last = (used * cells).amax(1).tolist()
    first = (len(cells) - (used * cells.flip(0)).amax(1)).tolist()
    starts = range(0, len(matrix), TILE)
    ends = [min(start + TILE, len(matrix)) for start in starts]
    return [(slice(a, b), slice(min(first[a:b]), max(last[a:b]))) for a, b in zip(starts, ends, strict=True)]


def first_largest(values: Tensor) -> Tensor:
    """`values.argmax(0, keepdim=True)` of float `[n, H, W]`, which torch computes slowly; ties go to the first."""
    backwards = torch.arange(len(values), 0, -1, device=values.device, dtype=torch.int32)[:, None, None]
    largest = values == values.amax(0)
    return (len(values) - (largest * backwards).amax(0, keepdim=True)).long()


def compete(logits: Tensor, scores: Tensor, mask_threshold: float, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel the query with the largest score x mask probability.

    A resized logit lies between the smallest and the largest of the cells it comes from. So in each tile only those
    queries are resized that may win a pixel of it, or whose mask may end in it.

    Args:
        logits: float32 `[Q, h, w]`.
        scores: `[Q]`.
        mask_threshold: probability from which on a pixel belongs to a mask.

    Returns:
        winner int64 `[H, W]`; whether the winner's own mask covers the pixel, bool `[H, W]`; areas of all masks, int64
        `[Q]`.
    """
    device = logits.device
    rows, columns = (
        interpolation_matrix(*sizes, device)
        for sizes in zip(logits.shape[1:], frame.padded, frame.image, frame.target, strict=True)
    )
    tiles = [(band, part) for band in cut(rows) for part in cut(columns)]
    bounds = torch.stack(
        [torch.stack(logits[:, y, x].flatten(1).aminmax(dim=1)) for (_, y), (_, x) in tiles]
    )  # [tiles, 2, Q]
    least, most = bounds.sigmoid().unbind(1)
    full, empty = least >= mask_threshold, most < mask_threshold
    may_win = most * scores >= (least * scores).amax(1, keepdim=True)
    wanted = (may_win | ~(full | empty)).cpu()
    sizes = torch.tensor([(a.stop - a.start) * (b.stop - b.start) for (a, _), (b, _) in tiles], device=device)
    areas = ((full & ~wanted.to(device)) * sizes[:, None]).sum(0)

    winner = torch.zeros(frame.target, dtype=torch.int64, device=device)
    covered = torch.zeros(frame.target, dtype=torch.bool, device=device)
    for ((place_y, y), (place_x, x)), chosen in zip(tiles, wanted, strict=True):
        queries = chosen.nonzero()[:, 0].to(device)
        resized = rows[place_y, y] @ logits[queries, y, x] @ columns[place_x, x].T
        probability = resized.sigmoid_()
        inside = probability >= mask_threshold
        areas[queries] += inside.flatten(1).view(torch.uint8).sum(1, dtype=torch.int64)
        best = first_largest(probability * scores[queries, None, None])
        winner[place_y, place_x] = queries[best[0]]
        covered[place_y, place_x] = inside.gather(0, best)[0]
    return winner, covered, areas


def find_panoptic_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: Frame,
    threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: set[int] = frozenset(),
) -> tuple[Tensor, list[dict]]:
    """Every pixel to at most one segment: the query with the largest class x mask probability, if its own mask covers
    the pixel; a query that keeps too little of its mask is dropped; stuff queries of one class are one segment.

    Args:
        class_logits: `[Q, K + 1]`.
        mask_logits: `[Q, h, w]`.
        threshold: smallest class probability of a query (exclusive).
        mask_threshold: probability from which on a pixel belongs to a mask.
        overlap_mask_area_threshold: smallest share of its mask that a query must win.
        label_ids_to_fuse: stuff classes.

    Returns:
        int32 `[H, W]`, 0 = no segment, and the segments: `id` (1, 2, ...), `label_id`, `was_fused`, `score`.
    """
    scores, labels = class_logits.float().softmax(-1).max(-1)
    keep = (labels != class_logits.shape[-1] - 1) & (scores > threshold)
    scores, labels, mask_logits = scores[keep], labels[keep], mask_logits[keep]
    device = mask_logits.device
    segmentation = torch.zeros(frame.target, dtype=torch.int32, device=device)
    if len(scores) == 0:
        return segmentation, []

    winner, covered, original = compete(mask_logits.float(), scores, mask_threshold, frame)
    count = len(scores)
    won = torch.bincount(winner.flatten(), minlength=count)
    kept = torch.bincount(winner[covered], minlength=count)
    table = torch.stack((original, won, kept, labels), 1).tolist()  # one copy to the host

    segments, ids, fused = [], [0] * count, {}
    for query, (own_area, won_area, kept_area, label) in enumerate(table):
        if not (own_area and kept_area) or won_area / own_area < overlap_mask_area_threshold:
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
    table = torch.tensor(ids, dtype=torch.int32, device=device)
    return torch.where(covered, table[winner], segmentation), segments
