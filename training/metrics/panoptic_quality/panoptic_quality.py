"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", section 4) with COCO's crowd and void rules."""

import datasets
import evaluate
import numpy as np
from accelerate.utils import gather_object

DESCRIPTION = """
PQ of a class = sum of IoU over matched segments / (matched + half of the unmatched segments) = SQ x RQ. Segments of
one class match if their IoU is above 1/2; void pixels of the reference do not count in the union. Crowd segments never
match; a prediction that lies by more than half in void or in a crowd of its class is no error.
"""


class PanopticQuality(evaluate.Metric):
    """Accumulates four numbers per class; reduces over all processes in `compute`.

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

    def add(self, *, prediction, reference) -> float:
        """One image; returns its own PQ.

        Raises:
            ValueError: sizes differ, or a pixel has an id without a row in `segments_info`.
        """
        found, truth = (np.asarray(x["segmentation"], dtype=np.int64) for x in (prediction, reference))
        if found.shape != truth.shape:
            raise ValueError(f"The prediction is {found.shape}, the reference {truth.shape}.")
        found_label = {s["id"]: s["label_id"] for s in prediction["segments_info"]}
        truth_label = {s["id"]: s["label_id"] for s in reference["segments_info"]}
        crowd = {s["id"] for s in reference["segments_info"] if s.get("iscrowd")}
        base = int(found.max(initial=0)) + 1
        pairs, counts = np.unique(truth * base + found, return_counts=True)
        overlap = {(int(pair // base), int(pair % base)): int(n) for pair, n in zip(pairs, counts, strict=True)}
        truth_area: dict[int, int] = {}
        found_area: dict[int, int] = {}
        for (t, f), n in overlap.items():
            truth_area[t] = truth_area.get(t, 0) + n
            found_area[f] = found_area.get(f, 0) + n
        for name, areas, labels in (("prediction", found_area, found_label), ("reference", truth_area, truth_label)):
            nameless = set(areas) - set(labels) - {0}
            if nameless:
                raise ValueError(f"The {name} has pixels of segments without a row: {sorted(nameless)[:5]}.")

        own = np.zeros_like(self.statistics)
        matched_truth, matched_found = set(), set()
        for (t, f), n in overlap.items():
            if not t or not f or t in crowd or truth_label[t] != found_label[f]:
                continue
            iou = n / (truth_area[t] + found_area[f] - n - overlap.get((0, f), 0))
            if iou > 0.5:
                own[truth_label[t], :2] += iou, 1
                matched_truth.add(t)
                matched_found.add(f)
        for t in set(truth_area) - matched_truth - crowd - {0}:
            own[truth_label[t], 3] += 1
        for f in set(found_area) - matched_found - {0}:
            excused = overlap.get((0, f), 0)
            excused += sum(overlap.get((t, f), 0) for t in crowd if truth_label[t] == found_label[f])
            if excused / found_area[f] <= 0.5:
                own[found_label[f], 2] += 1
        self.statistics += own
        return self.summarise(own)["pq"]

    def add_batch(self, *, predictions, references) -> None:
        """Several images, see `add`."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(self) -> dict:
        """`pq`, `sq`, `rq` in [0, 1], the same with `_things` and `_stuff` (means over the classes that occur), and
        `per_class_pq` (None where a class never occurs); resets."""
        statistics = np.sum(gather_object([self.statistics]), axis=0)
        self.reset()
        return self.summarise(statistics)

    def summarise(self, statistics: np.ndarray) -> dict:
        """Scores of the four numbers per class, `[K, 4]`."""
        iou, matched, wrong, missed = statistics.T
        weight = matched + wrong / 2 + missed / 2
        occurs = weight > 0
        sq, rq = iou / np.maximum(matched, 1), matched / np.maximum(weight, 0.5)
        is_thing = np.isin(np.arange(self.num_labels), sorted(self.thing_ids))
        result = {}
        for suffix, group in (("", occurs), ("_things", occurs & is_thing), ("_stuff", occurs & ~is_thing)):
            for name, values in (("pq", sq * rq), ("sq", sq), ("rq", rq)):
                result[name + suffix] = float(values[group].mean()) if group.any() else 0.0
        per_class = [float(value) if there else None for value, there in zip(sq * rq, occurs, strict=True)]
        return {**result, "per_class_pq": per_class}
