"""From images to results at their own size: batches, test-time augmentation, sliding windows.

Augmented views are merged before post-processing, so that every task gains: the queries of each view are assigned to
those of the first (they may have swapped roles), and class and mask probabilities are averaged. Windows are merged
after it: class scores are averaged where windows overlap; segments of one class that agree there become one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .criterion import mask_costs
from .postprocessing import Frame, resize_masks

POSTPROCESS = {task: f"post_process_{task}_segmentation" for task in ("semantic", "instance", "panoptic")}
LEAST_AGREEMENT = 0.5  # IoU inside the overlap from which on two windows mean the same segment


@dataclass
class Options:
    """How a model looks at an image.

    Attributes:
        flip: also look at the mirrored image.
        scales: sizes relative to the processor's; the first one is the reference.
        window: side of square windows in pixels of the image; None = the whole image at once.
        overlap: share of a window that it has in common with the next, in [0, 1).
        threshold: smallest score; None = the processor's.
    """

    flip: bool = False
    scales: Sequence[float] = (1.0,)
    window: int | None = None
    overlap: float = 0.25
    threshold: float | None = None

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be positive, got {list(self.scales)}.")
        if self.window is not None and self.window < 32:
            raise ValueError(f"window must be at least 32 pixels, got {self.window}.")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}.")

    @property
    def augments(self) -> bool:
        return self.flip or tuple(self.scales) != (1.0,)


class Predictor:
    """A model and its processor as a function from images to results.

    Args:
        model: MP-Former or Mask2Former, on its device, in evaluation mode.
        processor: an MP-Former image processor.
        task: semantic, instance or panoptic; None = the processor's.
        options: see `Options`.
    """

    def __init__(self, model: nn.Module, processor, task: str | None = None, options: Options | None = None):
        self.model, self.processor, self.options = model, processor, options or Options()
        self.task = task or processor.task
        if self.task not in POSTPROCESS:
            raise ValueError(f"task must be semantic, instance or panoptic, got {self.task!r}.")

    @torch.no_grad()
    def __call__(self, images: list[Tensor]) -> list:
        """
        Args:
            images: uint8 `[3, H, W]`; of any sizes, but a batch of equal sizes costs least.

        Returns:
            per image, on the CPU: semantic: int64 `[H, W]`; panoptic: as the processor's post-processing; instance: the
            same with `segmentation` bool `[n, H, W]`.

        Raises:
            ValueError: an image is so narrow that nothing of it would be left at the processor's size.
        """
        for image in images:
            self.check_shape(image)
        if self.options.window is not None:
            return [self.in_windows(image) for image in images]
        return self.whole(images)

    def check_shape(self, image: Tensor) -> None:
        longest = getattr(self.processor.size, "longest_edge", None) or 4096
        height, width = image.shape[1:]
        if max(height, width) > longest * min(height, width):
            raise ValueError(f"the image is {width}x{height} pixels, too narrow for a longest edge of {longest}")

    # --- Whole images ---

    def whole(self, images: list[Tensor], scores: bool = False) -> list:
        """Results of images at once; with `scores` class scores `[K, H, W]` instead (semantic only)."""
        sizes = [tuple(image.shape[1:]) for image in images]
        if not self.options.augments:
            return self.finish(self.look(images, 1.0), sizes, scores)
        return [
            self.finish(self.merge_views(image), [size], scores)[0] for image, size in zip(images, sizes, strict=True)
        ]

    def look(self, images: list[Tensor], scale: float):
        """Model outputs of images resized to `scale` times the processor's size."""
        size = {name: round(scale * side) for name, side in dict(self.processor.size).items() if side is not None}
        inputs = self.processor(images, size=size, return_tensors="pt").to(self.model.device)
        return self.model(**inputs)

    def finish(self, outputs, sizes: list[tuple[int, int]], scores: bool = False) -> list:
        process = getattr(self.processor, POSTPROCESS[self.task])
        if self.task == "semantic":
            results = process(outputs, target_sizes=sizes, return_segmentation_scores=scores)
            return [(result["scores"] if scores else result).cpu() for result in results]
        binary = {"return_binary_maps": True} if self.task == "instance" else {}
        results = process(outputs, threshold=self.options.threshold, target_sizes=sizes, **binary)
        return [{**result, "segmentation": result["segmentation"].cpu()} for result in results]

    # --- Augmented views ---

    def merge_views(self, image: Tensor):
        """One image's outputs, averaged over flips and scales, at the first view's resolution."""
        classes, masks, first = [], [], None
        for scale in self.options.scales:
            for mirrored in (False, True) if self.options.flip else (False,):
                outputs = self.look([image.flip(-1) if mirrored else image], scale)
                extent = outputs.pixel_mask[0].bool()
                seen = (int(extent.any(1).sum()), int(extent.any(0).sum()))
                cells = tuple(-(-side // 4) for side in seen)  # without padding, at the masks' own resolution
                first = first or (cells, seen)
                logits = outputs.masks_queries_logits[0]
                logits = resize_masks(logits, Frame(tuple(logits.shape[1:]), cells, first[0]))
                masks.append((logits.flip(-1) if mirrored else logits).sigmoid())
                classes.append(outputs.class_queries_logits[0].float().softmax(-1))
        orders = [
            torch.arange(len(classes[0])),
            *(align(classes[0], masks[0], c, m) for c, m in zip(classes[1:], masks[1:], strict=True)),
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

    def in_windows(self, image: Tensor):
        """One image's result, window by window."""
        places = window_places(tuple(image.shape[1:]), self.options.window, self.options.overlap)
        crops = [image[:, y0:y1, x0:x1] for y0, y1, x0, x1 in places]
        if self.task == "semantic":
            total = None
            for (y0, y1, x0, x1), crop in zip(places, crops, strict=True):
                scores = self.whole([crop], scores=True)[0]
                total = scores.new_zeros(len(scores) + 1, *image.shape[1:]) if total is None else total
                total[:-1, y0:y1, x0:x1] += scores
                total[-1, y0:y1, x0:x1] += 1
            return (total[:-1] / total[-1]).argmax(0)
        found: list[Piece] = []
        for place, crop in zip(places, crops, strict=True):
            join(found, pieces_of(self.whole([crop])[0], place))
        found.sort(key=lambda piece: -piece.score)
        rows = [{"id": i, "label_id": p.label, "was_fused": False, "score": p.score} for i, p in enumerate(found)]
        if self.task == "instance":
            masks = torch.zeros(len(found), *image.shape[1:], dtype=torch.bool)
            for mask, piece in zip(masks, found, strict=True):
                mask[inside(piece.box, (0, image.shape[1], 0, image.shape[2]))] = piece.mask
            return {"segmentation": masks, "segments_info": rows}
        return paint(found, tuple(image.shape[1:]), set(self.processor.label_ids_to_fuse))


def align(classes: Tensor, masks: Tensor, other_classes: Tensor, other_masks: Tensor) -> Tensor:
    """For each query the query of another view with the most similar class and mask probabilities (`[Q, K + 1]`,
    `[Q, h, w]`); an assignment, int64 `[Q]`."""
    _, dice = mask_costs(torch.logit(other_masks.flatten(1), eps=1e-6), masks.flatten(1))
    cost = dice - other_classes @ classes.T
    theirs, ours = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(theirs[ours.argsort()])


def window_places(size: tuple[int, int], window: int, overlap: float) -> list["Box"]:
    """(top, bottom, left, right) of windows that cover an image of (height, width); the last ones end at its border."""

    def starts(side: int) -> list[int]:
        step = max(1, round(window * (1 - overlap)))
        return [*range(0, max(side - window, 0), step), max(side - window, 0)]

    height, width = size
    return [(y, min(y + window, height), x, min(x + window, width)) for y in starts(height) for x in starts(width)]


Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass
class Piece:
    """A segment: its mask, bool, inside a box of the image, and the windows in which it was found."""

    mask: Tensor
    box: Box
    windows: list[Box]
    label: int
    score: float

    def part(self, box: Box) -> Tensor:
        """The mask inside another box."""
        result = torch.zeros(box[1] - box[0], box[3] - box[2], dtype=torch.bool)
        common = intersect(self.box, box)
        if common is not None:
            result[inside(common, box)] = self.mask[inside(common, self.box)]
        return result


def intersect(a: Box, b: Box) -> Box | None:
    """What two boxes share, or None."""
    box = (max(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), min(a[3], b[3]))
    return box if box[0] < box[1] and box[2] < box[3] else None


def inside(part: Box, whole: Box) -> tuple[slice, slice]:
    """Slices of a part in a tensor that holds the whole box."""
    return slice(part[0] - whole[0], part[1] - whole[0]), slice(part[2] - whole[2], part[3] - whole[2])


def pieces_of(result: dict, window: Box) -> list[Piece]:
    """Segments of a window as pieces of the image."""
    maps = result["segmentation"]
    masks = (maps[row["id"]] if maps.ndim == 3 else maps == row["id"] for row in result["segments_info"])
    return [
        Piece(mask, window, [window], row["label_id"], row["score"])
        for mask, row in zip(masks, result["segments_info"], strict=True)
    ]


def agreement(piece: Piece, other: Piece) -> float:
    """IoU where the window of a new piece and those of an earlier one overlap; 0 where they do not."""
    both = either = 0
    for window in other.windows:
        common = intersect(piece.box, window)
        if common is not None:
            ours, theirs = piece.part(common), other.part(common)
            both += int((ours & theirs).sum())
            either += int((ours | theirs).sum())
    return both / max(either, 1)


def join(found: list[Piece], new: list[Piece]) -> None:
    """Add a window's pieces to those of earlier windows; pieces of one class that agree where both windows look are
    one."""
    earlier = list(found)
    for piece in new:
        partners = (other for other in earlier if other.label == piece.label)
        partner = next((other for other in partners if agreement(piece, other) >= LEAST_AGREEMENT), None)
        if partner is None:
            found.append(piece)
            continue
        corners = zip(partner.box, piece.box, (min, max, min, max), strict=True)
        box = tuple(choose(a, b) for a, b, choose in corners)
        partner.mask = partner.part(box) | piece.part(box)
        partner.box, partner.windows = box, partner.windows + piece.windows
        partner.score = max(partner.score, piece.score)


def paint(pieces: list[Piece], size: tuple[int, int], stuff: set[int]) -> dict:
    """A panoptic result of pieces, best first: each pixel to the first that covers it; stuff of one class is one."""
    segmentation = torch.zeros(size, dtype=torch.int32)
    rows, fused = [], {}
    for piece in pieces:
        part = segmentation[inside(piece.box, (0, size[0], 0, size[1]))]  # a view
        visible = piece.mask & (part == 0)
        if not visible.any():
            continue
        if piece.label in fused:
            part[visible] = fused[piece.label]
            continue
        rows.append(
            {"id": len(rows) + 1, "label_id": piece.label, "was_fused": piece.label in stuff, "score": piece.score}
        )
        part[visible] = len(rows)
        if piece.label in stuff:
            fused[piece.label] = len(rows)
    return {"segmentation": segmentation, "segments_info": rows}
