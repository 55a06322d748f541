"""Mean intersection over union, from one confusion matrix."""

import datasets
import evaluate
import numpy as np
from accelerate.utils import gather_object

DESCRIPTION = """
IoU of a class = pixels of it found / pixels that are or were called it; mIoU = mean over the classes that occur in
predictions or references (PASCAL VOC). Void reference pixels count nowhere.
"""


class MeanIoU(evaluate.Metric):
    """Accumulates a confusion matrix per image; reduces over all processes in `compute`.

    Args:
        num_labels: number of classes K; ids are 0..K-1.
        ignore_index: void in references.
    """

    def __init__(self, *args, num_labels: int, ignore_index: int = 255, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.reset()

    def _info(self):
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions and references: one (height, width) map of class ids per image",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def reset(self) -> None:
        self.confusion = np.zeros((self.num_labels, self.num_labels), dtype=np.int64)  # [reference, prediction]

    def add(self, *, prediction, reference) -> float:
        """One image: two integer maps `[H, W]`; returns its own mean IoU.

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
        return summarise(own)["mean_iou"]

    def add_batch(self, *, predictions, references) -> None:
        """Several images, see `add`."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(self) -> dict:
        """`mean_iou`, `pixel_accuracy` in [0, 1] and `per_class_iou` (None where a class never occurs); resets. The
        confusion matrix of all processes stays in `total`."""
        self.total = np.sum(gather_object([self.confusion]), axis=0)
        self.reset()
        return summarise(self.total)


def summarise(confusion: np.ndarray) -> dict:
    """Scores of a confusion matrix `[K, K]` of pixels, [reference, prediction]."""
    hit, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    occurs = union > 0
    iou = hit / np.maximum(union, 1)
    return {
        "mean_iou": float(iou[occurs].mean()) if occurs.any() else 0.0,
        "pixel_accuracy": float(hit.sum() / max(confusion.sum(), 1)),
        "per_class_iou": [float(value) if there else None for value, there in zip(iou, occurs, strict=True)],
    }
