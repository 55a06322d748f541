"""Sliding windows over large images: class scores are added up and segments joined where windows overlap.

Nothing of the size of the image is kept but the result: scores are finished cell by cell, as soon as no later window
covers a cell, and masks are kept inside their boxes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..model.boxes import mask_boxes
from ..model.postprocessing import segments_of

MIN_IOU = 0.5  # smallest IoU inside the overlap of two windows at which their segments are joined
MIN_SHARE = 0.75  # the same, of the smaller segment, where both are cut by their windows
LARGEST_RESULT = 8 << 30  # bytes of the masks of instances
Box = tuple[int, int, int, int]  # top, bottom, left, right


def window_boxes(size: tuple[int, int], window: int, overlap: float) -> list[Box]:
    """Windows that cover an image of (height, width), along its shorter side first, so that few overlaps wait for
    their last window; the last ones end at its border."""

    def starts(side: int) -> list[int]:
        step = max(1, round(window * (1 - overlap)))
        return [*range(0, max(side - window, 0), step), max(side - window, 0)]

    height, width = size
    corners = [(y, x) for y in starts(height) for x in starts(width)]
    if width > height:
        corners.sort(key=lambda corner: corner[1])
    return [(y, min(y + window, height), x, min(x + window, width)) for y, x in corners]


def intersect(a: Box, b: Box) -> Box | None:
    """Intersection of two boxes, or None if it is empty."""
    box = (max(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), min(a[3], b[3]))
    return box if box[0] < box[1] and box[2] < box[3] else None


def slices_in(box: Box, outer: Box) -> tuple[slice, slice]:
    """Rows and columns of a box in a tensor of the size of an outer box."""
    return slice(box[0] - outer[0], box[1] - outer[0]), slice(box[2] - outer[2], box[3] - outer[2])


# --- Semantic ---


def taper(box: Box, size: tuple[int, int], ramp: int) -> Tensor:
    """Weights of a window, float32 of its size: they fall linearly over `ramp` pixels towards its borders, except for
    those of the image, so that the result does not change suddenly where a window ends."""
    axes = []
    for first, last, side in ((box[0], box[1], size[0]), (box[2], box[3], size[1])):
        position = torch.arange(last - first) + 0.5
        weight = torch.ones(last - first)
        if first > 0:
            weight = torch.minimum(weight, position / ramp)
        if last < side:
            weight = torch.minimum(weight, position.flip(0) / ramp)
        axes.append(weight)
    return axes[0][:, None] * axes[1]


class ScoreMap:
    """Weighted sums of the class scores of windows. The windows divide the image into cells; a cell becomes classes
    when its last window was added, and its scores are forgotten.

    Args:
        boxes: all windows, in the order in which they are added.
        size: (height, width) of the image.
        ramp: see `taper`.
    """

    def __init__(self, boxes: list[Box], size: tuple[int, int], ramp: int):
        self.size, self.ramp = size, max(1, ramp)
        self.rows = sorted({y for box in boxes for y in box[:2]})
        self.columns = sorted({x for box in boxes for x in box[2:]})
        self.waiting = Counter(cell for box in boxes for cell in self.cells(box))
        self.sums: dict[Box, Tensor] = {}
        self.classes = torch.zeros(size, dtype=torch.int64)

    def cells(self, box: Box) -> Iterator[Box]:
        """Cells in a window."""
        rows = [y for y in self.rows if box[0] <= y <= box[1]]
        columns = [x for x in self.columns if box[2] <= x <= box[3]]
        for top, bottom in pairwise(rows):
            for left, right in pairwise(columns):
                yield top, bottom, left, right

    def add(self, box: Box, scores: Tensor) -> None:
        """Add the scores of a window, float32 `[K, height, width]`."""
        weights = taper(box, self.size, self.ramp)
        for cell in self.cells(box):
            inside = slices_in(cell, box)
            part = scores[(slice(None), *inside)] * weights[inside]
            if cell in self.sums:
                part += self.sums.pop(cell)
            self.waiting[cell] -= 1
            if self.waiting[cell]:
                self.sums[cell] = part
            else:
                self.classes[slices_in(cell, (0, self.size[0], 0, self.size[1]))] = part.argmax(0)


# --- Segments ---


@dataclass
class WindowSegment:
    """A segment of one window, or of several that were joined.

    Attributes:
        mask: bool, of the size of `box`.
        box: part of the image that the mask covers.
        label, score: class id, and score in [0, 1].
        cut: whether the mask reaches a border of its window that is not one of the image.
    """

    mask: Tensor
    box: Box
    label: int
    score: float
    cut: bool = False

    def crop(self, box: Box) -> Tensor:
        """The mask inside another box, bool of its size."""
        result = torch.zeros(box[1] - box[0], box[3] - box[2], dtype=torch.bool)
        common = intersect(self.box, box)
        if common is not None:
            result[slices_in(common, box)] = self.mask[slices_in(common, self.box)]
        return result


def window_segments(result: dict, window: Box, size: tuple[int, int]) -> list[WindowSegment]:
    """Segments of the result of a window, inside their boxes; those without a pixel are left out."""
    found = segments_of(result)
    if not found:
        return []
    masks = torch.stack([mask for _, mask in found])
    inner = [window[0] > 0, window[1] < size[0], window[2] > 0, window[3] < size[1]]
    edges = torch.stack((masks[:, 0].any(1), masks[:, -1].any(1), masks[:, :, 0].any(1), masks[:, :, -1].any(1)), 1)
    cut = (edges & torch.tensor(inner)).any(1).tolist()
    segments = []
    for (row, mask), (x0, y0, x1, y1), is_cut in zip(found, mask_boxes(masks).tolist(), cut, strict=True):
        if x1 > x0:
            box = (window[0] + y0, window[0] + y1, window[2] + x0, window[2] + x1)
            segments.append(WindowSegment(mask[y0:y1, x0:x1].clone(), box, row["label_id"], row["score"], is_cut))
    return segments


class SegmentJoiner:
    """Joins the segments of windows: those of one class that agree where their windows overlap, and whatever is joined
    to both (union-find), so that an object is one segment also if a window sees it in separate parts."""

    def __init__(self):
        self.segments: list[WindowSegment] = []
        self.parents: list[int] = []
        self.windows: list[tuple[Box, range]] = []

    def add(self, window: Box, new: list[WindowSegment]) -> None:
        """Add the segments of a window; they are compared with those of earlier windows that overlap it."""
        first = len(self.segments)
        self.segments += new
        self.parents += range(first, len(self.segments))
        indices = range(first, len(self.segments))
        for other, earlier in self.windows:
            common = intersect(window, other)
            if common is not None:
                self.join_in(common, indices, earlier)
        self.windows.append((window, indices))

    def join_in(self, common: Box, one: range, other: range) -> None:
        """Join the segments of two windows that agree in the overlap of these."""
        sides = []
        for indices in (one, other):
            inside = [i for i in indices if intersect(self.segments[i].box, common)]
            masks = [self.segments[i].crop(common).flatten() for i in inside]
            sides.append((inside, torch.stack(masks).float() if masks else torch.zeros(0, 1)))
        (rows, a), (columns, b) = sides
        if not rows or not columns:
            return
        both, area_a, area_b = a @ b.T, a.sum(1)[:, None], b.sum(1)
        iou = both / (area_a + area_b - both).clamp(min=1)
        share = both / torch.minimum(area_a, area_b).clamp(min=1)
        labels, cut = (
            [torch.tensor([getattr(self.segments[i], name) for i in side]) for side in (rows, columns)]
            for name in ("label", "cut")
        )
        agree = (iou >= MIN_IOU) | ((share >= MIN_SHARE) & cut[0][:, None] & cut[1])
        for row, column in (agree & (labels[0][:, None] == labels[1])).nonzero().tolist():
            self.parents[self.root(rows[row])] = self.root(columns[column])

    def root(self, index: int) -> int:
        """The segment that stands for all that are joined with a segment."""
        while self.parents[index] != index:
            self.parents[index] = self.parents[self.parents[index]]
            index = self.parents[index]
        return index

    def joined(self) -> list[WindowSegment]:
        """One segment for all that are joined, by descending score: the mean of their scores, weighted by area."""
        groups: dict[int, list[WindowSegment]] = {}
        for index, segment in enumerate(self.segments):
            groups.setdefault(self.root(index), []).append(segment)
        result = []
        for parts in groups.values():
            boxes = list(zip(*(part.box for part in parts), strict=True))
            box = (min(boxes[0]), max(boxes[1]), min(boxes[2]), max(boxes[3]))
            mask = torch.zeros(box[1] - box[0], box[3] - box[2], dtype=torch.bool)
            areas = [int(part.mask.sum()) for part in parts]
            for part in parts:
                mask[slices_in(part.box, box)] |= part.mask
            score = sum(part.score * area for part, area in zip(parts, areas, strict=True)) / sum(areas)
            result.append(WindowSegment(mask, box, parts[0].label, score))
        return sorted(result, key=lambda segment: -segment.score)


def segments_to_instances(segments: list[WindowSegment], size: tuple[int, int]) -> dict:
    """Instance result from segments, best first.

    Raises:
        ValueError: the masks need too much memory.
    """
    needed = len(segments) * size[0] * size[1]
    if needed > LARGEST_RESULT:
        raise ValueError(
            f"{len(segments)} instances of {size[0]}x{size[1]} pixels need {needed / 2**30:.0f} GiB; give a higher "
            "threshold."
        )
    masks = torch.zeros(len(segments), *size, dtype=torch.bool)
    rows = []
    for index, (mask, segment) in enumerate(zip(masks, segments, strict=True)):
        mask[slices_in(segment.box, (0, size[0], 0, size[1]))] = segment.mask
        top, bottom, left, right = segment.box
        row = {"id": index, "label_id": segment.label, "was_fused": False, "score": segment.score}
        rows.append({**row, "bbox": [left, top, right - left, bottom - top]})
    return {"segmentation": masks, "segments_info": rows}


def segments_to_panoptic(segments: list[WindowSegment], size: tuple[int, int], stuff: set[int]) -> dict:
    """Panoptic result from segments, best first: each pixel belongs to the first segment that covers it; stuff of one
    class is one segment."""
    segmentation = torch.zeros(size, dtype=torch.int32)
    rows: list[dict] = []
    fused: dict[int, int] = {}
    for segment in segments:
        view = segmentation[slices_in(segment.box, (0, size[0], 0, size[1]))]
        visible = segment.mask & (view == 0)
        if not visible.any():
            continue
        is_stuff = segment.label in stuff
        if segment.label not in fused:
            row = {"id": len(rows) + 1, "label_id": segment.label, "was_fused": is_stuff, "score": segment.score}
            rows.append(row)
        segment_id = fused.get(segment.label, len(rows))
        view[visible] = segment_id
        if is_stuff:
            fused[segment.label] = segment_id
    return {"segmentation": segmentation, "segments_info": rows}
