"""Inference on images of any size: batches, test-time augmentation, sliding windows.

Augmented views are merged before post-processing, for all tasks: the queries of each view are assigned to those of the
first view, and class and mask probabilities are averaged. Windows are merged after post-processing: class scores are
averaged where windows overlap; segments of one class that agree in the overlap are joined.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .matcher import mask_costs
from .postprocessing import ResizeGeometry, resize_masks
from .ranges import check_range

POSTPROCESS = {task: f"post_process_{task}_segmentation" for task in ("semantic", "instance", "panoptic")}
MIN_IOU = 0.5  # smallest IoU inside the overlap of two windows at which their segments are joined


@dataclass
class InferenceOptions:
    """Test-time augmentation, sliding windows and score threshold.

    Attributes:
        flip: also predict the mirrored image.
        scales: image sizes relative to the processor's; the first one is the reference.
        window: side of square windows in pixels of the image; None = the full image at once.
        overlap: overlap of neighbouring windows as a share of their side, in [0, 1).
        threshold: smallest score; None = the processor's.

    Raises:
        ValueError: an option is out of range.
    """

    flip: bool = False
    scales: Sequence[float] = (1.0,)
    window: int | None = None
    overlap: float = 0.25
    threshold: float | None = None

    def __post_init__(self):
        if not self.scales:
            raise ValueError("scales is empty; [1.0] is the processor's size.")
        for name, interval in (
            ("scales", "(0, 16]"),
            ("window", "[32, inf)"),
            ("overlap", "[0, 1)"),
            ("threshold", "[0, 1]"),
        ):
            check_range(name, getattr(self, name), interval)

    @property
    def uses_tta(self) -> bool:
        return self.flip or tuple(self.scales) != (1.0,)


class Predictor:
    """Predicts results for images, with a model and its processor.

    Args:
        model: `MPFormerForUniversalSegmentation`, on its device, in evaluation mode.
        processor: an MP-Former image processor.
        task: semantic, instance or panoptic; None = the processor's.
        options: see `InferenceOptions`.
    """

    def __init__(self, model: nn.Module, processor, task: str | None = None, options: InferenceOptions | None = None):
        self.model, self.processor, self.options = model, processor, options or InferenceOptions()
        self.task = task or processor.task
        if self.task not in POSTPROCESS:
            raise ValueError(f"task must be semantic, instance or panoptic, got {self.task!r}.")

    @torch.no_grad()
    def __call__(self, images: list[Tensor]) -> list:
        """
        Args:
            images: uint8 `[3, H, W]`, of any sizes; batches of equal sizes are fastest.

        Returns:
            per image, on the CPU: semantic: int64 `[H, W]`; panoptic: result of the processor's post-processing;
            instance: the same with `segmentation` bool `[n, H, W]`.

        Raises:
            ValueError: an image is too narrow for the processor's size.
        """
        if self.options.window is not None:
            return [self.predict_windows(image) for image in images]
        return self.predict_full(images)

    # --- Full images ---

    def predict_full(self, images: list[Tensor], scores: bool = False) -> list:
        """Results without windows; with `scores` the class scores `[K, H, W]` instead (semantic only)."""
        sizes = [tuple(image.shape[1:]) for image in images]
        if not self.options.uses_tta:
            return self.postprocess(self.forward_scaled(images, 1.0), sizes, scores)
        return [
            self.postprocess(self.merge_views(image), [size], scores)[0]
            for image, size in zip(images, sizes, strict=True)
        ]

    def forward_scaled(self, images: list[Tensor], scale: float):
        """Model outputs for images resized to `scale` times the processor's size."""
        size = {name: round(scale * side) for name, side in dict(self.processor.size).items() if side is not None}
        inputs = self.processor(images, size=size, return_tensors="pt").to(self.model.device)
        return self.model(**inputs)

    def postprocess(self, outputs, sizes: list[tuple[int, int]], scores: bool = False) -> list:
        """Model outputs to results of (height, width) `sizes`, on the CPU."""
        process = getattr(self.processor, POSTPROCESS[self.task])
        if self.task == "semantic":
            results = process(outputs, target_sizes=sizes, return_segmentation_scores=scores)
            return [(result.segmentation_scores if scores else result).cpu() for result in results]
        binary = {"return_binary_maps": True} if self.task == "instance" else {}
        results = process(outputs, threshold=self.options.threshold, target_sizes=sizes, **binary)
        return [{**result, "segmentation": result["segmentation"].cpu()} for result in results]

    # --- Augmented views ---

    def merge_views(self, image: Tensor):
        """Outputs for one image, averaged over flips and scales, at the first view's resolution."""
        classes, masks, first = [], [], None
        for scale in self.options.scales:
            for mirrored in (False, True) if self.options.flip else (False,):
                outputs = self.forward_scaled([image.flip(-1) if mirrored else image], scale)
                valid = outputs.pixel_mask[0].bool()
                size = (int(valid.any(1).sum()), int(valid.any(0).sum()))
                cells = tuple(-(-side // 4) for side in size)  # without padding, at the resolution of the masks
                first = first or (cells, size)
                logits = outputs.masks_queries_logits[0]
                logits = resize_masks(logits, ResizeGeometry(tuple(logits.shape[1:]), cells, first[0]))
                masks.append((logits.flip(-1) if mirrored else logits).sigmoid())
                classes.append(outputs.class_queries_logits[0].float().softmax(-1))
        orders = [
            torch.arange(len(classes[0])),
            *(match_queries(classes[0], masks[0], c, m) for c, m in zip(classes[1:], masks[1:], strict=True)),
        ]
        mean_class = torch.stack([c[order] for c, order in zip(classes, orders, strict=True)]).mean(0)
        mean_mask = torch.stack([m[order] for m, order in zip(masks, orders, strict=True)]).mean(0)
        (rows, columns), (height, width) = first
        pixel_mask = torch.zeros(1, 4 * rows, 4 * columns, dtype=torch.int64)
        pixel_mask[:, :height, :width] = 1
        return SimpleNamespace(
            class_queries_logits=mean_class.clamp(min=1e-12).log()[None],
            masks_queries_logits=torch.logit(mean_mask, eps=1e-6)[None],
            pixel_mask=pixel_mask,
        )

    # --- Windows ---

    def predict_windows(self, image: Tensor):
        """Result for one image, from sliding windows."""
        boxes = window_boxes(tuple(image.shape[1:]), self.options.window, self.options.overlap)
        crops = [image[:, y0:y1, x0:x1] for y0, y1, x0, x1 in boxes]
        if self.task == "semantic":
            total = None
            for (y0, y1, x0, x1), crop in zip(boxes, crops, strict=True):
                scores = self.predict_full([crop], scores=True)[0]
                total = scores.new_zeros(len(scores) + 1, *image.shape[1:]) if total is None else total
                total[:-1, y0:y1, x0:x1] += scores
                total[-1, y0:y1, x0:x1] += 1
            return (total[:-1] / total[-1]).argmax(0)
        segments: list[WindowSegment] = []
        for box, crop in zip(boxes, crops, strict=True):
            merge_segments(segments, window_segments(self.predict_full([crop])[0], box))
        segments.sort(key=lambda segment: -segment.score)
        rows = [{"id": i, "label_id": s.label, "was_fused": False, "score": s.score} for i, s in enumerate(segments)]
        if self.task == "instance":
            masks = torch.zeros(len(segments), *image.shape[1:], dtype=torch.bool)
            for mask, segment in zip(masks, segments, strict=True):
                mask[slices_in(segment.box, (0, image.shape[1], 0, image.shape[2]))] = segment.mask
            return {"segmentation": masks, "segments_info": rows}
        return segments_to_panoptic(segments, tuple(image.shape[1:]), set(self.processor.label_ids_to_fuse))


def match_queries(classes: Tensor, masks: Tensor, other_classes: Tensor, other_masks: Tensor) -> Tensor:
    """Assign the queries of another view to those of the first, by class and mask probabilities.

    Args:
        classes, other_classes: `[Q, K + 1]`.
        masks, other_masks: `[Q, h, w]`.

    Returns:
        int64 `[Q]`, for each query of the first view the one of the other view.
    """
    _, dice = mask_costs(torch.logit(other_masks.flatten(1), eps=1e-6), masks.flatten(1))
    cost = dice - other_classes @ classes.T
    other, first = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(other[first.argsort()])


def window_boxes(size: tuple[int, int], window: int, overlap: float) -> list["Box"]:
    """Windows that cover an image of (height, width); the last ones end at its border."""

    def starts(side: int) -> list[int]:
        step = max(1, round(window * (1 - overlap)))
        return [*range(0, max(side - window, 0), step), max(side - window, 0)]

    height, width = size
    return [(y, min(y + window, height), x, min(x + window, width)) for y in starts(height) for x in starts(width)]


Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass
class WindowSegment:
    """A segment of one or several windows.

    Attributes:
        mask: bool, of the size of `box`.
        box: part of the image that the mask covers.
        windows: windows in which the segment was predicted.
        label, score: class id, and score in [0, 1].
    """

    mask: Tensor
    box: Box
    windows: list[Box]
    label: int
    score: float

    def crop(self, box: Box) -> Tensor:
        """The mask inside another box, bool of its size."""
        result = torch.zeros(box[1] - box[0], box[3] - box[2], dtype=torch.bool)
        common = intersect(self.box, box)
        if common is not None:
            result[slices_in(common, box)] = self.mask[slices_in(common, self.box)]
        return result


def intersect(a: Box, b: Box) -> Box | None:
    """Intersection of two boxes, or None if it is empty."""
    box = (max(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), min(a[3], b[3]))
    return box if box[0] < box[1] and box[2] < box[3] else None


def slices_in(box: Box, outer: Box) -> tuple[slice, slice]:
    """Rows and columns of a box in a tensor of the size of an outer box."""
    return slice(box[0] - outer[0], box[1] - outer[0]), slice(box[2] - outer[2], box[3] - outer[2])


def window_segments(result: dict, window: Box) -> list[WindowSegment]:
    """Segments of the result of a window."""
    maps = result["segmentation"]
    masks = (maps[row["id"]] if maps.ndim == 3 else maps == row["id"] for row in result["segments_info"])
    return [
        WindowSegment(mask, window, [window], row["label_id"], row["score"])
        for mask, row in zip(masks, result["segments_info"], strict=True)
    ]


def overlap_iou(segment: WindowSegment, other: WindowSegment) -> float:
    """IoU inside the overlap of a new segment's window with the windows of an earlier segment; 0 without overlap."""
    intersection = union = 0
    for window in other.windows:
        common = intersect(segment.box, window)
        if common is not None:
            a, b = segment.crop(common), other.crop(common)
            intersection += int((a & b).sum())
            union += int((a | b).sum())
    return intersection / max(union, 1)


def merge_segments(segments: list[WindowSegment], new: list[WindowSegment]) -> None:
    """Add the segments of a window to those of earlier windows; segments of one class that agree in the overlap are
    joined."""
    earlier = list(segments)
    for segment in new:
        candidates = (other for other in earlier if other.label == segment.label)
        match = next((other for other in candidates if overlap_iou(segment, other) >= MIN_IOU), None)
        if match is None:
            segments.append(segment)
            continue
        corners = zip(match.box, segment.box, (min, max, min, max), strict=True)
        box = tuple(choose(a, b) for a, b, choose in corners)
        match.mask = match.crop(box) | segment.crop(box)
        match.box, match.windows = box, match.windows + segment.windows
        match.score = max(match.score, segment.score)


def segments_to_panoptic(segments: list[WindowSegment], size: tuple[int, int], stuff: set[int]) -> dict:
    """Panoptic result from segments, best first: each pixel belongs to the first segment that covers it; stuff of one
    class is one segment."""
    segmentation = torch.zeros(size, dtype=torch.int32)
    rows, fused = [], {}
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
