"""Ground truth of one batch, concatenated for the pilot and the criterion."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .chunks import to_device

CROWD = 2  # in a void mask: objects that are no targets


@dataclass
class Targets:
    """
    Attributes:
        masks: uint8 `[T, H, W]`, 0 or 1; the T targets of the batch, ordered by image.
        labels: int64 `[T]`, 0..num_labels - 1.
        counts: number of targets of each image; their sum is T.
        void: uint8 `[B, H, W]`, 1 where the image is not labelled; masks are 0 there. None: nowhere.
        unjudged: uint8 `[B, H, W]`, 1 where a prediction is no error: void, and crowds, which are other objects and so
            background of the masks. None: nowhere.
        annotated: bool `[B, K]`, classes whose objects are all labelled in the image. None: all classes.
        complete: bool `[B]`, False if objects of the image may have no label. None: all are complete.
    """

    masks: Tensor
    labels: Tensor
    counts: list[int]
    void: Tensor | None = None
    unjudged: Tensor | None = None
    annotated: Tensor | None = None
    complete: Tensor | None = None

    @property
    def image(self) -> Tensor:
        """Image of each target, int64 `[T]`."""
        image = torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))
        return to_device(image, self.masks.device)

    def to(self, device: torch.device) -> "Targets":
        """The targets on another device."""
        given = (self.void, self.unjudged, self.annotated, self.complete)
        known = (None if known is None else known.to(device) for known in given)
        return Targets(self.masks.to(device), self.labels.to(device), self.counts, *known)


def collect_targets(
    mask_labels: list[Tensor],
    class_labels: list[Tensor],
    size: tuple[int, int],
    num_labels: int | None = None,
    void_mask: Tensor | None = None,
    annotated_classes: Tensor | None = None,
    complete: Tensor | None = None,
) -> Targets:
    """Concatenate the masks and classes of a batch.

    Args:
        mask_labels: per image `[T_b, H, W]`, any dtype, non-zero = foreground; T_b may be 0.
        class_labels: per image `[T_b]`, integers.
        size: (H, W) of the padded images, which all masks must have.
        num_labels: if given, the range of classes on the CPU is checked (on a GPU it would wait for the device).
        void_mask: `[B, H, W]`, 0 = labelled, 2 = crowd, others = void, see `Targets`.
        annotated_classes: bool `[B, K]`, see `Targets`.
        complete: bool `[B]`, see `Targets`.

    Raises:
        ValueError: lengths, sizes or classes are invalid; the message has the index of the image.
    """
    class_labels = [torch.as_tensor(labels) for labels in class_labels]
    mask_labels = [torch.as_tensor(masks) for masks in mask_labels]
    if not mask_labels:
        raise ValueError("mask_labels is empty.")
    if len(mask_labels) != len(class_labels):
        raise ValueError(f"mask_labels has {len(mask_labels)} images, class_labels has {len(class_labels)}.")
    for index, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if labels.ndim != 1:
            raise ValueError(f"Image {index}: class_labels has shape {tuple(labels.shape)}, expected (targets,).")
        if len(labels) and (labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex()):
            raise ValueError(f"Image {index}: class_labels has dtype {labels.dtype}, expected integers.")
        if len(masks) != len(labels):
            raise ValueError(
                f"Image {index}: mask_labels has {len(masks)} masks, class_labels has {len(labels)} classes."
            )
        if masks.ndim != 3 or tuple(masks.shape[1:]) != tuple(size):
            raise ValueError(
                f"Image {index}: mask_labels has shape {tuple(masks.shape)}, expected (targets, {size[0]}, {size[1]}) "
                "like the padded images."
            )
        if num_labels and labels.device.type == "cpu":
            invalid = labels[(labels < 0) | (labels >= num_labels)]
            if len(invalid):
                raise ValueError(f"Image {index}: class_labels has {int(invalid[0])}, expected 0 to {num_labels - 1}.")
    batch, counts = len(mask_labels), [len(labels) for labels in class_labels]
    for name, given, shape in (
        ("void_mask", void_mask, (batch, *size)),
        ("annotated_classes", annotated_classes, (batch, num_labels)),
        ("complete", complete, (batch,)),
    ):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}, expected {shape}.")
    masks = torch.cat([(masks != 0).view(torch.uint8) for masks in mask_labels])
    void = unjudged = None
    if void_mask is not None:
        void_mask = void_mask.to(masks.device)
        unjudged = (void_mask != 0).view(torch.uint8)
        void = unjudged * (void_mask != CROWD)
        masks = masks * (1 - void).repeat_interleave(torch.tensor(counts, device=void.device), dim=0)
    annotated, complete = (
        None if given is None else given.bool().to(masks.device) for given in (annotated_classes, complete)
    )
    return Targets(masks, torch.cat(list(class_labels)).long(), counts, void, unjudged, annotated, complete)
