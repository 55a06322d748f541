"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", section 4) with COCO's crowd and void rules."""

import datasets
import evaluate
import numpy as np
from accelerate.utils import gather_object

DESCRIPTION = """
PQ of a class = sum of IoU over matched segments / (matched + half of the unmatched segments) = SQ x RQ. Segments of
one class match if their IoU is above 1/2; void pixels of the reference are excluded from the union. Crowd segments
never match; a prediction of which more than half is void or a crowd of its class is ignored.
"""


class PanopticQuality(evaluate.Metric):
    """Accumulates four numbers per class; `compute` sums them over all processes.

    Args:
        num_labels: number of classes K; ids are 0..K-1.
        thing_ids: classes that are things; the others are stuff.
    """

    def __init__(self, *args, num_labels: int, thing_ids=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.num_labels, self.thing_ids = num_labels, set(thing_ids)
        self.reset()

    def _info(self):
        segment = {"id": datasets.Value("int64"), "label_id": datasets.Value("int64")}
        result = {
            "segmentation": datasets.Sequence(datasets.Sequence(datasets.Value("int64"))),
            "segments_info": datasets.Sequence(segment),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=(
                "predictions and references: per image a dict of `segmentation`, a (height, width) map of segment ids "
                "(0 = void), and `segments_info`, a list of `id`, `label_id` and, in references, `iscrowd`"
            ),
            features=datasets.Features({"predictions": result, "references": result}),
        )

    def reset(self) -> None:
        self.statistics = np.zeros((self.num_labels, 4))  # sum of IoU, matched, false positives, false negatives

    def add(self, *, prediction, reference) -> float | None:
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
        base = int(predicted.max(initial=0)) + 1
        pairs, counts = np.unique(reference_map * base + predicted, return_counts=True)
        overlap = {(int(pair // base), int(pair % base)): int(n) for pair, n in zip(pairs, counts, strict=True)}
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

        own = np.zeros_like(self.statistics)
        matched_reference, matched_predicted = set(), set()
        for (r, p), n in overlap.items():
            if not r or not p or r in crowd or reference_label[r] != predicted_label[p]:
                continue
            iou = n / (reference_area[r] + predicted_area[p] - n - overlap.get((0, p), 0))
            if iou > 0.5:
                own[reference_label[r], :2] += iou, 1
                matched_reference.add(r)
                matched_predicted.add(p)
        for r in set(reference_area) - matched_reference - crowd - {0}:
            own[reference_label[r], 3] += 1
        for p in set(predicted_area) - matched_predicted - {0}:
            ignored = overlap.get((0, p), 0)
            ignored += sum(overlap.get((r, p), 0) for r in crowd if reference_label[r] == predicted_label[p])
            if ignored / predicted_area[p] <= 0.5:
                own[predicted_label[p], 2] += 1
        self.statistics += own
        return self.summarise(own)["pq"]

    def add_batch(self, *, predictions, references) -> None:
        """Add several images, see `add`."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(self) -> dict:
        """Scores of all images since the last call.

        Returns:
            `pq`, `sq`, `rq` in [0, 1] (means over the classes that occur), the same with `_things` and `_stuff`, and
            `per_class_pq`; None where no class occurs.
        """
        statistics = np.sum(gather_object([self.statistics]), axis=0)
        self.reset()
        return self.summarise(statistics)

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
