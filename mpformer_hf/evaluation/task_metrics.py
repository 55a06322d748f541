"""The metrics of each task, and segments in the form that metrics read."""

from collections.abc import Iterable

import torch

from ..data.dataset import SegmentationDataset
from ..data.labels import Labels
from ..data.segments import VOID, Segments, among, is_among, merge_by_class
from ..metrics.average_precision import AveragePrecision, as_rle
from ..metrics.cityscapes_ap import CityscapesAveragePrecision
from ..metrics.mean_iou import MeanIoU
from ..metrics.panoptic_quality import PanopticQuality
from ..model.label_maps import count_ids

TASK_METRICS = {  # scores that are single numbers, the main one first
    "semantic": ("mean_iou", "pixel_accuracy", "boundary_mean_iou"),
    "instance": ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar"),
    "panoptic": ("pq", "sq", "rq", "pq_things", "pq_stuff", "mean_iou", "pixel_accuracy", "boundary_mean_iou"),
}
CITYSCAPES_METRICS = ("ap", "ap50")
AVERAGE_PRECISIONS = {"coco": AveragePrecision, "cityscapes": CityscapesAveragePrecision}


def metric_names(task: str, score: str) -> tuple[str, ...]:
    """Scores that are single numbers, the main one first, for a task and the rules of its average precision."""
    return CITYSCAPES_METRICS if (task, score) == ("instance", "cityscapes") else TASK_METRICS[task]


def format_score(value: float | None, digits: int = 4) -> str:
    """A score as text; "-" if it is not defined."""
    return "-" if value is None else f"{value:.{digits}f}"


def number(count: int, noun: str) -> str:
    """A number of things as text: 1 image, 2 images."""
    return f"{count} {noun}{'s' * (count != 1)}"


def semantic_reference(segments: Segments) -> torch.Tensor:
    """Segments to a label map of class ids, int64 `[H, W]`, void = -1. Crowds have their class, as in the release."""
    return merge_by_class(segments).map.long()


def panoptic_reference(segments: Segments) -> dict:
    """Segments to a dict of `segmentation` (0 = void) and `segments_info`, see `PanopticQuality`."""
    rows = [{"id": i, "label_id": label, "iscrowd": False} for i, label in segments.classes.items()]
    rows += [{"id": i, "label_id": label, "iscrowd": True} for i, label in segments.crowds.items()]
    known = is_among(segments.map, [row["id"] for row in rows])
    return {"segmentation": segments.map * known, "segments_info": rows}


def classes_not_exhaustive(segments: Segments, labels: Iterable[int]) -> list[int]:
    """Those of some classes that the image may have more objects of than are labelled."""
    return [label for label in labels if segments.not_exhaustive(label)]


def instance_reference(segments: Segments, things: set[int]) -> dict:
    """Segments of things to a dict of `masks` (an RLE each, which may overlap), `label_ids`, `iscrowd`, `areas` and
    `void` (bool `[H, W]`), see `AveragePrecision` and `CityscapesAveragePrecision`."""
    layers = segments.map.view(-1, *segments.map.shape[-2:])
    known = segments.classes | segments.crowds
    rows = [(segment, label) for segment, label in known.items() if label in things]
    if segments.ignored is None:  # what is of no segment
        void = ~among(layers, {*known, *segments.ignored_objects})
    else:
        void = is_among(layers, segments.ignored).all(0)
    return {
        "masks": segments.rles([segment for segment, _ in rows]),
        "label_ids": [label for _, label in rows],
        "iscrowd": [segment in segments.crowds for segment, _ in rows],
        "areas": [segments.areas.get(segment) for segment, _ in rows],
        "void": (void | among(layers, segments.ignored_objects)).numpy(),
    }


def scored_instances(segments: Segments, things: set[int], predicted: Iterable[int]) -> dict:
    """`instance_reference` with crowds of the `predicted` classes, on which no prediction is wrong: of ignored objects;
    and of the whole image for classes that were not annotated, for all classes if the image is not complete."""
    reference = instance_reference(segments, things)
    layers = segments.map.view(-1, *segments.map.shape[-2:])
    size, ignored = layers.shape[-2:], None
    if segments.ignored_objects:
        ignored = as_rle(among(layers, segments.ignored_objects).numpy())
    for label in sorted(set(predicted) & things):
        mask = (
            as_rle({"size": [*size], "counts": [0, size[0] * size[1]]}) if segments.not_exhaustive(label) else ignored
        )
        if mask is None:
            continue
        for name, value in (("masks", mask), ("label_ids", label), ("iscrowd", True), ("areas", None)):
            reference[name].append(value)
    return reference


class TaskMetrics:
    """The metrics of a task.

    Args:
        task: semantic, instance or panoptic.
        labels: classes of the dataset.
        max_detections: number of best-scored instances per image that are counted.
        score: rules of the average precision: `coco` or `cityscapes`.
        all_scores: also score boundaries of instances and of segments, and in panoptic segmentation the average
            precision of things.
    """

    def __init__(
        self, task: str, labels: Labels, max_detections: int = 100, score: str = "coco", all_scores: bool = False
    ):
        self.labels, count = labels, len(labels.names)
        self.metrics = {}
        if task == "panoptic":
            self.metrics["panoptic"] = PanopticQuality(num_labels=count, thing_ids=labels.things, boundary=all_scores)
        if task == "instance" or (task == "panoptic" and all_scores):
            options = {"boundary": all_scores} if score == "coco" else {}
            self.metrics["instance"] = AVERAGE_PRECISIONS[score](
                num_labels=count, max_detections=max_detections, **options
            )
        if task != "instance":
            self.metrics["semantic"] = MeanIoU(num_labels=count, ignore_index=VOID)

    def reference(self, kind: str, segments: Segments, predictions: dict):
        """Ground truth as the metric of a kind reads it, for these predictions."""
        if kind == "instance":
            return scored_instances(segments, self.labels.things, predictions[kind]["label_ids"])
        if kind == "semantic":
            return semantic_reference(segments)
        return panoptic_reference(segments) | {
            "not_exhaustive": classes_not_exhaustive(segments, range(len(self.labels.names)))
        }

    def add(self, predictions: dict, segments: Segments) -> float | None:
        """Add one image.

        Args:
            predictions: its results by kind (`semantic`, `instance`, `panoptic`).
            segments: ground truth.

        Returns:
            the main score of this image alone; None if it is not defined.
        """
        scores = [
            metric.add(prediction=predictions[kind], reference=self.reference(kind, segments, predictions))
            for kind, metric in self.metrics.items()
        ]
        return scores[0]

    def compute(self) -> dict:
        """All scores, None where one is not defined; lists of one value per class become dicts by class name."""
        results: dict = {}
        for metric in self.metrics.values():
            results = metric.compute() | results
        for name in [name for name in results if name.startswith("per_class")]:
            results[name] = dict(zip(self.labels.names, results[name], strict=True))
        return results

    @property
    def confusion(self):
        """Pixels `[K, K]`, [reference, prediction], after `compute`; None for instance segmentation."""
        return getattr(self.metrics.get("semantic"), "total", None)


def most_frequent_class(dataset: SegmentationDataset, stuff_only: bool) -> int:
    """Class with the most pixels in a split, among all classes or among stuff only.

    Raises:
        ValueError: no pixel has such a class.
    """
    areas: dict[int, int] = {}
    for index in range(len(dataset)):
        _, segments = dataset[index]
        for segment, area in count_ids(segments.map).items():
            label = segments.classes.get(segment)
            if label is not None and not (stuff_only and label in dataset.labels.things):
                areas[label] = areas.get(label, 0) + area
    if not areas:
        raise ValueError(f"No pixel of the split has a {'stuff ' if stuff_only else ''}class.")
    return max(areas, key=lambda label: areas[label])


def score_constant(task: str, dataset: SegmentationDataset, label: int) -> dict:
    """Scores of predicting one class for every pixel, as one segment."""
    scores = TaskMetrics(task, dataset.labels, score=dataset.score)
    for index in range(len(dataset)):
        image, segments = dataset[index]
        everywhere = torch.ones(image.shape[1:], dtype=torch.int64)
        predictions = {
            "semantic": everywhere * label,
            "panoptic": {"segmentation": everywhere, "segments_info": [{"id": 1, "label_id": label}]},
            "instance": {"masks": [everywhere.bool().numpy()], "label_ids": [label], "scores": [1.0]},
        }
        scores.add(predictions, segments)
    return scores.compute()
