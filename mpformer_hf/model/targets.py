"""Ground truth of one batch, concatenated for the pilot and the criterion."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Targets:
    """
    Attributes:
        masks: uint8 `[T, H, W]`, 0 or 1; the T targets of the batch, ordered by image.
        labels: int64 `[T]`, 0..num_labels - 1.
        counts: number of targets of each image; their sum is T.
    """

    masks: Tensor
    labels: Tensor
    counts: list[int]

    def to(self, device: torch.device) -> "Targets":
        """The targets on another device."""
        return Targets(self.masks.to(device), self.labels.to(device), self.counts)


def collect_targets(
    mask_labels: list[Tensor], class_labels: list[Tensor], size: tuple[int, int], num_labels: int | None = None
) -> Targets:
    """Concatenate the masks and classes of a batch.

    Args:
        mask_labels: per image `[T_b, H, W]`, any dtype, non-zero = foreground; T_b may be 0.
        class_labels: per image `[T_b]`, integers.
        size: (H, W) of the padded images, which all masks must have.
        num_labels: if given, the range of classes on the CPU is checked (on a GPU it would wait for the device).

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
    masks = torch.cat([(masks != 0).view(torch.uint8) for masks in mask_labels])
    return Targets(masks, torch.cat(list(class_labels)).long(), [len(labels) for labels in class_labels])
