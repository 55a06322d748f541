"""What a report shows besides the scores, collected image by image."""

from dataclasses import dataclass, field

import numpy as np
from accelerate.utils import gather_object

from ..data.segments import Segments, among
from .object_matches import ObjectCounts
from .task_metrics import scored_instances


@dataclass
class EvaluationDetails:
    """What a report shows besides the scores.

    Attributes:
        image_scores: (score of one image or None, its row in the split, its number of segments). In instance
            segmentation the score is that of `ObjectCounts.add`, in which false objects count too.
        confusion: pixels `[K, K]`, [reference, prediction]; None for instance segmentation.
        objects: things that are found and missed; None for semantic segmentation.
    """

    image_scores: list[tuple[float | None, int, int]] = field(default_factory=list)
    confusion: np.ndarray | None = None
    objects: ObjectCounts | None = None

    def add(self, score: float | None, row: int, predictions: dict, segments: Segments, things: set[int]) -> None:
        """Add an image.

        Args:
            score: its main score.
            row: of the split.
            predictions: see `predict_batch`.
            segments: ground truth.
            things: classes whose segments are objects.
        """
        if self.objects is not None:
            reference = scored_instances(segments, things, predictions["instance"]["label_ids"])
            quality = self.objects.add(predictions["instance"], reference, stated_void(reference, segments))
            score = score if "panoptic" in predictions else quality
        self.image_scores.append((score, row, len(segments.classes)))

    def gather(self) -> None:
        """Add what the other processes have."""
        self.image_scores = gather_object(self.image_scores)
        if self.objects is not None:
            own = self.objects
            self.objects = ObjectCounts(len(own.objects), own.threshold)
            for part in gather_object([own]):
                self.objects += part

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """Rows of the worst and of the best images that have a score, `count` together; no row is in both. The best
        ones are among the images with at least the median number of segments: an image with little in it is easy."""
        order = sorted(entry for entry in self.image_scores if entry[0] is not None)
        worst = min((count + 1) // 2, (len(order) + 1) // 2)
        usual = np.median([segments for *_, segments in order]) if order else 0
        best = [row for _, row, segments in order[worst:] if segments >= usual]
        return [row for _, row, _ in order[:worst]], best[::-1][: count // 2]


def stated_void(reference: dict, segments: Segments) -> np.ndarray | None:
    """Void of an `instance_reference`, bool `[H, W]`, if the dataset states which pixels its score ignores; elsewhere
    pixels without a class are background, but for ignored objects."""
    if segments.ignored is None:
        layers = segments.map.view(-1, *segments.map.shape[-2:])
        return among(layers, segments.ignored_objects).numpy() if segments.ignored_objects else None
    return reference["void"]
