"""Images with segments as inputs of the model, with targets, by the image processor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.segments import VOID, Segments, completeness_inputs
from ..model.image_processing_mpformer import MPFormerImageProcessor

VOID_SEGMENT = 2**30  # with the value of `Segments.void` added: id and class of segments of void and of crowds


def with_void(segments: Segments, task: str) -> tuple[Tensor, dict[int, int]]:
    """Map of segment ids, int32 `[H, W]` or `[L, H, W]`, and classes of the ids. Void and crowds are
    segments too, with ids above `VOID_SEGMENT`, so that they are resized and padded as segments."""
    void = segments.void(task)
    if void is None or not void.any():
        return segments.map, segments.classes
    kinds = {VOID_SEGMENT + kind: VOID_SEGMENT + kind for kind in void.unique().tolist() if kind}
    return torch.where(void > 0, VOID_SEGMENT + void.int(), segments.map), {**segments.classes, **kinds}


def model_inputs(processor: MPFormerImageProcessor, images: Sequence[Tensor], segments: Sequence[Segments]) -> dict:
    """Inputs of the model with targets.

    Args:
        processor: resizes, normalises and pads.
        images: uint8 `[3, H, W]` each.
        segments: of the images.

    Returns:
        `pixel_values` float32 `[B, 3, H, W]`, `pixel_mask` int64 `[B, H, W]`, lists `mask_labels` `[T, H, W]` and
        `class_labels` int64 `[T]`; if labels are missing also `void_mask` uint8 `[B, H, W]`, `annotated_classes` bool
        `[B, K]` and `complete` bool `[B]`.
    """
    maps, classes = zip(*(with_void(part, processor.task) for part in segments), strict=True)
    fixed = {"ignore_index": VOID, "do_reduce_labels": False}  # the classes of segments are final
    inputs = dict(processor(list(images), list(maps), list(classes), **fixed, return_tensors="pt"))
    hidden = [labels >= VOID_SEGMENT for labels in inputs["class_labels"]]
    if any(own.any() for own in hidden):
        found = zip(inputs["mask_labels"], inputs["class_labels"], hidden, strict=True)
        kinds = [(m[own] * (labels[own] - VOID_SEGMENT)[:, None, None]).sum(0) for m, labels, own in found]
        inputs["void_mask"] = torch.stack(kinds).to(torch.uint8)
        for name in ("mask_labels", "class_labels"):
            inputs[name] = [values[~own] for values, own in zip(inputs[name], hidden, strict=True)]
    return inputs | completeness_inputs(segments)
