"""Mean intersection over union of classes and of their boundaries, from confusion matrices."""

import numpy as np
from accelerate.utils import gather_object
from datasets import Features

from .boundary import boundary_reach, window_maximum
from .metric import ImageMetric, maps_of_integers

DESCRIPTION = """
IoU of a class = true positive pixels / (true positive + false positive + false negative pixels); mIoU = mean over the
classes that occur in predictions or references (PASCAL VOC). Pixels that are void in the reference are ignored.
Boundary mIoU is the same for the pixels of each class within 2 % of the image diagonal from its border, along rows or
columns (Cheng et al., "Boundary IoU", section 4).
"""


class MeanIoU(ImageMetric):
    """Accumulates a confusion matrix.

    Args:
        num_labels: number of classes K; ids are 0..K-1.
        ignore_index: void in references, not a class id.

    Raises:
        ValueError: `ignore_index` is a class id.
    """

    description = DESCRIPTION
    inputs = "predictions and references: one (height, width) map of class ids per image"
    features = Features({"predictions": maps_of_integers(), "references": maps_of_integers()})

    def __init__(self, *args, num_labels: int, ignore_index: int = 255, **kwargs):
        if 0 <= ignore_index < num_labels:
            raise ValueError(f"ignore_index {ignore_index} is one of the {num_labels} classes; choose -1, for example.")
        self.num_labels, self.ignore_index = num_labels, ignore_index
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        self.confusion = np.zeros((self.num_labels, self.num_labels), dtype=np.int64)  # [reference, prediction]
        self.boundaries = np.zeros((2, self.num_labels), dtype=np.int64)  # intersection, union

    def add_image(self, prediction, reference) -> float | None:
        """Add one image: two integer label maps `[H, W]`. Returns the mean IoU of this image (None: all void).

        Raises:
            ValueError: sizes differ or ids are out of range.
        """
        prediction, reference = np.asarray(prediction, dtype=np.int64), np.asarray(reference, dtype=np.int64)
        if prediction.shape != reference.shape:
            raise ValueError(f"The prediction is {prediction.shape}, the reference {reference.shape}.")
        valid = reference != self.ignore_index
        pairs = np.stack((reference[valid], prediction[valid]))
        if pairs.size and not 0 <= pairs.min() <= pairs.max() < self.num_labels:
            raise ValueError(f"Class ids reach from {pairs.min()} to {pairs.max()}, expected 0..{self.num_labels - 1}.")
        flat = np.bincount(pairs[0] * self.num_labels + pairs[1], minlength=self.num_labels**2)
        own = flat.reshape(self.num_labels, self.num_labels)
        self.confusion += own
        masked = np.where(valid, prediction, self.ignore_index)  # void makes the same borders in both maps
        near = [boundary(labels) & valid for labels in (masked, reference)]
        both = near[0] & near[1] & (prediction == reference)
        sizes = [
            np.bincount(labels[mask], minlength=self.num_labels)
            for labels, mask in ((prediction, near[0]), (reference, near[1]), (reference, both))
        ]
        boundaries = np.stack((sizes[2], sizes[0] + sizes[1] - sizes[2]))
        self.boundaries += boundaries
        return summarise(own, boundaries)["mean_iou"]

    def scores(self) -> dict:
        """Scores of all images. The confusion matrix of all processes is kept in `total`.

        Returns:
            `mean_iou`, `pixel_accuracy`, `boundary_mean_iou` in [0, 1], and `per_class_iou`; None where no class
            occurs.
        """
        self.total = np.sum(gather_object([self.confusion]), axis=0)
        boundaries = np.sum(gather_object([self.boundaries]), axis=0)
        return summarise(self.total, boundaries)


def boundary(labels: np.ndarray) -> np.ndarray:
    """Pixels that have another label or the image border in a square window around them: bool `[H, W]`.

    Args:
        labels: integers `[H, W]`.
    """
    reach = boundary_reach(*labels.shape)
    padded = np.pad(labels.astype(np.int32), reach, constant_values=-1)
    return (window_maximum(padded, reach) != labels) | (-window_maximum(-padded, reach) != labels)


def summarise(confusion: np.ndarray, boundaries: np.ndarray) -> dict:
    """Scores of a confusion matrix `[K, K]` of pixels, [reference, prediction], and of `[2, K]` pixels of boundaries,
    intersection and union; as those of `MeanIoU.compute`."""
    hit, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    occurs = union > 0
    iou = hit / np.maximum(union, 1)
    near, near_union = boundaries[:, boundaries[1] > 0]
    return {
        "mean_iou": float(iou[occurs].mean()) if occurs.any() else None,
        "pixel_accuracy": float(hit.sum() / confusion.sum()) if confusion.any() else None,
        "boundary_mean_iou": float((near / near_union).mean()) if len(near) else None,
        "per_class_iou": [float(value) if there else None for value, there in zip(iou, occurs, strict=True)],
    }
