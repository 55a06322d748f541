"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", section 4) with COCO's crowd and void rules."""

import numpy as np
from accelerate.utils import gather_object
from datasets import Features, Sequence, Value

from ..model.label_maps import count_ids
from .boundary import mask_boundary
from .metric import ImageMetric, maps_of_integers

RESULT = {
    "segmentation": maps_of_integers(),
    "segments_info": Sequence({"id": Value("int64"), "label_id": Value("int64")}),
}
DESCRIPTION = """
PQ of a class = sum of IoU over matched segments / (matched + half of the unmatched segments) = SQ x RQ. Segments of
one class match if their IoU is above 1/2; void pixels of the reference are excluded from the union. Crowd segments
never match; a prediction of which more than half is void or a crowd of its class is ignored. As in panopticapi, a
segment of the reference without pixels is missed, and of several crowds of one class the last one is used. Boundary PQ:
the same, with the smaller of the IoU of segments and of boundaries (Cheng et al., "Boundary IoU", 2021, section 6).
"""


def boundary_iou(reference: np.ndarray, predicted: np.ndarray) -> float:
    """IoU of the boundaries of two masks, bool `[H, W]`."""
    near = mask_boundary(reference), mask_boundary(predicted)
    union = (near[0] | near[1]).sum()
    return float((near[0] & near[1]).sum() / union) if union else 0.0


class PanopticQuality(ImageMetric):
    """Accumulates four numbers per class.

    Args:
        num_labels: number of classes K; ids are 0..K-1.
        thing_ids: classes that are things; the others are stuff.
        boundary: also score boundaries.
    """

    description = DESCRIPTION
    inputs = (
        "predictions and references: per image a dict of `segmentation`, a (height, width) map of segment ids (0 = "
        "void), and `segments_info`, a list of `id`, `label_id` and, in references, `iscrowd`; a reference may have "
        "`not_exhaustive`: classes that may have unlabelled segments; predictions of them are never wrong"
    )
    features = Features({"predictions": RESULT, "references": RESULT})

    def __init__(self, *args, num_labels: int, thing_ids=(), boundary: bool = False, **kwargs):
        self.num_labels, self.thing_ids, self.boundary = num_labels, set(thing_ids), boundary
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        # of segments and of boundaries; sum of IoU, matched, false positives, false negatives
        self.statistics = np.zeros((2, self.num_labels, 4))
        self.ignored = 0  # predictions that are neither right nor wrong

    def add_image(self, prediction, reference) -> float | None:
        """Add one image. Returns the PQ of this image (None: no segment).

        Raises:
            ValueError: sizes differ, or a pixel has an id without a row in `segments_info`.
        """
        predicted, reference_map = (np.asarray(x["segmentation"], dtype=np.int64) for x in (prediction, reference))
        if predicted.shape != reference_map.shape:
            raise ValueError(f"The prediction is {predicted.shape}, the reference {reference_map.shape}.")
        predicted_label = {s["id"]: s["label_id"] for s in prediction["segments_info"]}
        reference_label = {s["id"]: s["label_id"] for s in reference["segments_info"]}
        crowd = {s["id"] for s in reference["segments_info"] if s.get("iscrowd")}
        crowd_of = {s["label_id"]: s["id"] for s in reference["segments_info"] if s.get("iscrowd")}
        base = int(predicted.max(initial=0)) + 1
        counts = count_ids(reference_map * base + predicted)
        overlap = {(pair // base, pair % base): n for pair, n in counts.items()}
        reference_area: dict[int, int] = {}
        predicted_area: dict[int, int] = {}
        for (r, p), n in overlap.items():
            reference_area[r] = reference_area.get(r, 0) + n
            predicted_area[p] = predicted_area.get(p, 0) + n
        sides = (("prediction", predicted_area, predicted_label), ("reference", reference_area, reference_label))
        for name, areas, labels in sides:
            unknown = set(areas) - set(labels) - {0}
            if unknown:
                raise ValueError(
                    f"The {name} has pixels of segments that have no segments_info: {sorted(unknown)[:5]}."
                )

        not_exhaustive, left_out = set(reference.get("not_exhaustive", ())), 0
        ious = {}
        for (r, p), n in overlap.items():
            if not r or not p or r in crowd or reference_label[r] != predicted_label[p]:
                continue
            iou = n / (reference_area[r] + predicted_area[p] - n - overlap.get((0, p), 0))
            if iou > 0.5:
                ious[r, p] = iou
        pairs = [ious]
        if self.boundary:
            void = reference_map == 0
            pairs.append(
                {
                    (r, p): min(iou, boundary_iou(reference_map == r, (predicted == p) & ~void))
                    for (r, p), iou in ious.items()
                }
            )
        own = np.zeros_like(self.statistics)
        for statistics, found in zip(own, pairs, strict=False):
            matched = {pair: iou for pair, iou in found.items() if iou > 0.5}
            for (r, _), iou in matched.items():
                statistics[reference_label[r], :2] += iou, 1
            for r in set(reference_label) - {r for r, _ in matched} - crowd - {0}:
                statistics[reference_label[r], 3] += 1
            for p in set(predicted_area) - {p for _, p in matched} - {0}:
                ignored = overlap.get((0, p), 0) + overlap.get((crowd_of.get(predicted_label[p], -1), p), 0)
                if predicted_label[p] not in not_exhaustive and ignored / predicted_area[p] <= 0.5:
                    statistics[predicted_label[p], 2] += 1
                elif found is ious:
                    left_out += 1
        self.statistics += own
        self.ignored += left_out
        return self.summarise(own[0])["pq"]

    def scores(self) -> dict:
        """Scores of all images.

        Returns:
            `pq`, `sq`, `rq` in [0, 1] (means over the classes that occur), the same with `_things` and `_stuff`, and
            `per_class_pq`; None where no class occurs. With `boundary` also `boundary_pq`. `ignored_predictions`:
            number of those that are not counted.
        """
        statistics = np.sum(gather_object([self.statistics]), axis=0)
        scores = {**self.summarise(statistics[0]), "ignored_predictions": sum(gather_object([self.ignored]))}
        return scores | ({"boundary_pq": self.summarise(statistics[1])["pq"]} if self.boundary else {})

    def summarise(self, statistics: np.ndarray) -> dict:
        """Scores from float `[K, 4]`: sum of IoU, true positives, false positives, false negatives."""
        iou, matched, false_positives, false_negatives = statistics.T
        weight = matched + false_positives / 2 + false_negatives / 2
        occurs = weight > 0
        sq, rq = iou / np.maximum(matched, 1), matched / np.maximum(weight, 0.5)
        is_thing = np.isin(np.arange(self.num_labels), sorted(self.thing_ids))
        result = {}
        for suffix, group in (("", occurs), ("_things", occurs & is_thing), ("_stuff", occurs & ~is_thing)):
            for name, values in (("pq", sq * rq), ("sq", sq), ("rq", rq)):
                result[name + suffix] = float(values[group].mean()) if group.any() else None
        per_class = [float(value) if there else None for value, there in zip(sq * rq, occurs, strict=True)]
        return {**result, "per_class_pq": per_class}
