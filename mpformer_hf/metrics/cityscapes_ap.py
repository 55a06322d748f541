"""Average precision of instances as cityscapesScripts 2.3 computes it (evalInstanceLevelSemanticLabeling)."""

from dataclasses import dataclass

import numpy as np
from accelerate.utils import gather_object
from pycocotools import mask as coco_mask

from .average_precision import InstanceMetric, as_rle, best_overlaps

DESCRIPTION = """
AP = area under the precision-recall curve, averaged over IoU thresholds 0.5, 0.55, ..., 0.95 and over classes that have
an object. Objects below 100 pixels, groups and void are ignored, and so is a prediction of which a share above the
threshold lies on these.
"""
OVERLAPS = np.arange(0.5, 1.0, 0.05)
SMALLEST = 100  # pixels


@dataclass
class ClassMatches:
    """Objects and predictions of one class in one image.

    Attributes:
        scores: float `[P]`.
        ious: float `[P, G]` with all objects and groups.
        counts: bool `[G]`, whether an object is counted: no group, and not small.
        ignored: float `[P]`, share of each prediction on void, groups and small objects.
    """

    scores: np.ndarray
    ious: np.ndarray
    counts: np.ndarray
    ignored: np.ndarray


def match_class(predicted: list, scores: list[float], objects: list, groups: list[bool], void: dict) -> ClassMatches:
    """Overlaps of predictions and objects of one class; all masks are RLE, and no prediction is empty."""
    areas = np.array([float(coco_mask.area(rle)) for rle in objects])
    own = np.array([float(coco_mask.area(rle)) for rle in predicted])
    shape = (len(predicted), len(objects))
    # crowd: the overlap is divided by the area of the prediction
    shares = coco_mask.iou(predicted, objects, [1] * len(objects)) if all(shape) else np.zeros(shape)
    overlap = np.asarray(shares).reshape(shape) * own[:, None]
    union = own[:, None] + areas - overlap
    on_void = coco_mask.iou(predicted, [void], [1])[:, 0] * own if predicted else own
    group, small = np.array(groups, dtype=bool), areas < SMALLEST
    # a group that is small is counted twice, as in the original
    ignored = on_void + overlap @ group.astype(float) + overlap @ small.astype(float)
    return ClassMatches(np.array(scores), overlap / np.maximum(union, 1), ~group & ~small, ignored / np.maximum(own, 1))


def outcomes(matches: ClassMatches, threshold: float) -> tuple[list[float], list[float], int]:
    """Scores of true positives, scores of false positives, and number of objects without a prediction."""
    hits: list[float] = []
    wrong: list[float] = []
    missed = 0
    overlapping = matches.ious > threshold
    for column in np.flatnonzero(matches.counts):
        found = matches.scores[overlapping[:, column]]
        if len(found):  # one prediction is right, others of the same object are wrong
            hits.append(float(found.max()))
            wrong += np.sort(found)[:-1].tolist()
        else:
            missed += 1
    alone = ~overlapping.any(1) & (matches.ignored <= threshold)
    return hits, wrong + matches.scores[alone].tolist(), missed


def area_under_curve(hits: np.ndarray, wrong: np.ndarray, missed: int) -> float:
    """Integral of precision over recall, one point for each different score and (0, 1) at the end; a point stands for
    half of the distance between its neighbours."""
    scores = np.unique(np.concatenate((hits, wrong)))
    true = np.array([(hits >= score).sum() for score in scores], dtype=float)
    false = np.array([(wrong >= score).sum() for score in scores], dtype=float)
    precision = np.append(true / (true + false), 1.0)
    recall = np.append(true / (len(hits) + missed), 0.0)
    around = np.concatenate((recall[:1], recall, [0.0]))
    return float(precision @ ((around[:-2] - around[2:]) / 2))


class CityscapesAveragePrecision(InstanceMetric):
    """Cityscapes' average precision; of each image the matches of each class are kept."""

    description = DESCRIPTION
    inputs = (
        "predictions and references: per image a dict of `masks`, bool (n, height, width), and `label_ids`; "
        "predictions also have `scores`, references `iscrowd` (groups) and `void`, bool (height, width)"
    )

    def add_image(self, prediction, reference) -> float | None:
        """Add one image; returns the mean over its objects of the best IoU, see `AveragePrecision.add`."""
        rows = [
            (score, int(label), as_rle(mask))
            for mask, label, score in zip(
                prediction["masks"], prediction["label_ids"], prediction["scores"], strict=True
            )
        ]
        rows = sorted(rows, key=lambda row: -row[0])[: self.max_detections]
        rows = [row for row in rows if coco_mask.area(row[2])]
        objects = [
            (int(label), bool(group), as_rle(mask))
            for mask, label, group in zip(reference["masks"], reference["label_ids"], reference["iscrowd"], strict=True)
        ]
        void = as_rle(reference["void"])
        matches = {}
        for label in {row[1] for row in rows} | {row[0] for row in objects}:
            own = [row for row in rows if row[1] == label]
            there = [row for row in objects if row[0] == label]
            matches[label] = match_class(
                [rle for *_, rle in own],
                [score for score, *_ in own],
                [rle for *_, rle in there],
                [group for _, group, _ in there],
                void,
            )
        self.images.append(matches)
        return best_overlaps(
            [(rle, label, group) for label, group, rle in objects], [(rle, label, score) for score, label, rle in rows]
        )

    def scores(self) -> dict:
        """Scores of all images.

        Returns:
            `ap`, `ap50` in [0, 1] and `per_class_ap`; None without an object (of the class).
        """
        images = gather_object(self.images)
        scores = np.full((self.num_labels, len(OVERLAPS)), np.nan)
        for label in range(self.num_labels):
            found = [image[label] for image in images if label in image]
            if not any(matches.counts.any() for matches in found):
                continue
            for column, threshold in enumerate(OVERLAPS):
                hits: list[float] = []
                wrong: list[float] = []
                missed = 0
                for matches in found:
                    own = outcomes(matches, threshold)
                    hits, wrong, missed = hits + own[0], wrong + own[1], missed + own[2]
                enough = bool(hits or wrong)
                scores[label, column] = area_under_curve(np.array(hits), np.array(wrong), missed) if enough else 0.0

        def mean(values: np.ndarray) -> float | None:
            return float(np.nanmean(values)) if not np.isnan(values).all() else None

        return {"ap": mean(scores), "ap50": mean(scores[:, 0]), "per_class_ap": [mean(row) for row in scores]}
