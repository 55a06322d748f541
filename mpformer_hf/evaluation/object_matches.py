"""Which objects are found, missed or taken for another class, at an IoU of 0.5."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from ..metrics.average_precision import as_rle

SMALLEST_IOU = 0.5
MOSTLY = 0.5  # share of a prediction on void from which it is ignored
NOTHING, IGNORED = -1, -2


@dataclass
class ObjectMatches:
    """Predictions of an image and its objects.

    Attributes:
        same_class: int `[P]`, object of the prediction's class that it is matched to; `NOTHING`, or `IGNORED` if it
            lies on a crowd or on void.
        ious: float `[P]`, IoU with this object, 0 without one.
        other_class: int `[P]`, object of another class that is matched to neither; `NOTHING` if there is none.
        missed: objects that no prediction of their class is matched to, without crowds.
    """

    same_class: np.ndarray
    ious: np.ndarray
    other_class: np.ndarray
    missed: list[int]


def match_objects(
    predicted: Sequence,
    predicted_labels: Sequence[int],
    scores: Sequence[float],
    objects: Sequence,
    labels: Sequence[int],
    crowds: Sequence[bool],
    void: np.ndarray | None = None,
) -> ObjectMatches:
    """Match as COCO's evaluation does: predictions, the best first, each take the object of their class that is left
    with the largest IoU of at least 0.5. What is left then is matched regardless of the class, the largest IoU first.

    Args:
        predicted: P masks, bool `[H, W]` or RLE.
        predicted_labels, scores: of the predictions.
        objects: masks of the ground truth.
        labels, crowds: of the objects; predictions on a crowd of their class are ignored.
        void: bool `[H, W]`; predictions without an object that lie on it for the most part are ignored.
    """
    same, other = np.full(len(predicted), NOTHING), np.full(len(predicted), NOTHING)
    matched_ious = np.zeros(len(predicted))
    predicted, objects = [as_rle(x) for x in predicted], [as_rle(x) for x in objects]
    is_crowd = np.array(crowds, dtype=bool)
    free = ~is_crowd
    if len(predicted) and len(objects):
        ious = coco_mask.iou(predicted, objects, is_crowd.astype(np.uint8))
        agree = np.array(predicted_labels)[:, None] == np.array(labels)[None]
        for index in np.argsort(-np.array(scores, dtype=float), kind="mergesort"):
            candidates = np.where(agree[index] & free, ious[index], 0.0)
            if candidates.max() >= SMALLEST_IOU:
                same[index] = len(candidates) - 1 - candidates[::-1].argmax()  # the last of equals, as pycocotools
                free[same[index]], matched_ious[index] = False, candidates.max()
            elif (ious[index][agree[index] & crowds] >= SMALLEST_IOU).any():
                same[index] = IGNORED
        left = np.where((same == NOTHING)[:, None] & free & ~agree, ious, 0.0)
        while left.max() >= SMALLEST_IOU:
            index, row = np.unravel_index(left.argmax(), left.shape)
            other[index] = row
            left[index], left[:, row] = 0.0, 0.0
    if len(predicted) and void is not None and void.any():
        shares = coco_mask.iou(predicted, [as_rle(void)], [1])[:, 0]  # of the prediction's own area
        same[(same == NOTHING) & (other == NOTHING) & (shares > MOSTLY)] = IGNORED
    return ObjectMatches(
        same, matched_ious, other, sorted(set(np.flatnonzero(~is_crowd).tolist()) - set(same.tolist()))
    )


class ObjectCounts:
    """Objects and predictions of a split.

    Args:
        num_labels: number of classes K.
        threshold: score from which predictions are counted in `confusion`.

    Attributes:
        objects: int `[K]`, objects of each class, without crowds.
        predictions: (class, score, whether it is matched) of each prediction that is not ignored.
        confusion: int `[K + 1, K + 1]`, [object, prediction]; the last row are predictions without an object, the last
            column objects without a prediction.
    """

    def __init__(self, num_labels: int, threshold: float):
        self.threshold = threshold
        self.objects = np.zeros(num_labels, dtype=int)
        self.predictions: list[tuple[int, float, bool]] = []
        self.confusion = np.zeros((num_labels + 1, num_labels + 1), dtype=int)

    def add(self, prediction: dict, reference: dict, void: np.ndarray | None = None) -> float | None:
        """Add an image.

        Args:
            prediction, reference: as `AveragePrecision.add` takes them.
            void: bool `[H, W]`, pixels that the dataset's score ignores.

        Returns:
            panoptic quality of the predictions above the threshold, of all classes together; None if there are neither
            objects nor predictions.
        """
        labels, scores = prediction["label_ids"], prediction["scores"]
        masks = [as_rle(mask) for mask in prediction["masks"]]
        objects = [as_rle(mask) for mask in reference["masks"]], reference["label_ids"], reference["iscrowd"]
        matches = match_objects(masks, labels, scores, *objects, void)
        for label, score, match in zip(labels, scores, matches.same_class, strict=True):
            if match != IGNORED:
                self.predictions.append((int(label), float(score), bool(match != NOTHING)))
        for label, crowd in zip(*objects[1:], strict=True):
            self.objects[label] += not crowd
        above = [index for index, score in enumerate(scores) if score >= self.threshold]
        kept = [masks[i] for i in above], [labels[i] for i in above], [scores[i] for i in above]
        matches = match_objects(*kept, *objects, void)
        self.count_confusion(matches, kept[1], objects[1])
        found, false = (matches.same_class >= 0).sum(), (matches.same_class == NOTHING).sum()
        weight = found + false / 2 + len(matches.missed) / 2
        return float(matches.ious.sum() / weight) if weight else None

    def count_confusion(self, matches: ObjectMatches, predicted: list[int], labels: list[int]) -> None:
        """Add the matches of an image to `confusion`."""
        for label, same, other in zip(predicted, matches.same_class, matches.other_class, strict=True):
            if same != IGNORED:
                found = max(same, other)
                self.confusion[labels[found] if found != NOTHING else -1, label] += 1
        for index in set(matches.missed) - set(matches.other_class.tolist()):
            self.confusion[labels[index], -1] += 1

    def __iadd__(self, other: "ObjectCounts") -> "ObjectCounts":
        self.objects += other.objects
        self.predictions += other.predictions
        self.confusion += other.confusion
        return self

    def curve(self, label: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thresholds in descending order, and precision and recall of the predictions with at least this score; of one
        class, or of all together."""
        rows = [row for row in self.predictions if label is None or row[0] == label]
        scores, correct = (np.array([row[i] for row in rows], dtype=float) for i in (1, 2))
        order = np.argsort(-scores, kind="mergesort")
        scores, correct = scores[order], correct[order].cumsum()
        last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # equal scores are one point
        total = self.objects.sum() if label is None else self.objects[label]
        precision, recall = correct / np.arange(1, len(scores) + 1), correct / max(total, 1)
        return scores[last], precision[last], recall[last]

    def best_threshold(self, label: int | None = None) -> tuple[float, float] | None:
        """Score threshold with the largest F1, and that F1; None if no prediction is matched. The threshold lies
        between this score and the next lower one, with as few digits as possible."""
        thresholds, precision, recall = self.curve(label)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        if not len(f1) or not f1.max():
            return None
        best = int(f1.argmax())
        lower = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
        middle = float(thresholds[best] + lower) / 2
        short = (round(middle, digits) for digits in range(2, 7))
        return next((x for x in short if lower < x <= thresholds[best]), middle), float(f1[best])

    def at_threshold(self, threshold: float) -> tuple[float, float, float]:
        """Precision, recall and F1 of the predictions with at least a score; the precision of none is 1."""
        correct = [matched for _, score, matched in self.predictions if score >= threshold]
        precision, recall = sum(correct) / max(len(correct), 1), sum(correct) / max(int(self.objects.sum()), 1)
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        return (precision if correct else 1.0), recall, f1
