"""What a report shows besides the scores, collected image by image."""

from dataclasses import dataclass, field

import numpy as np
from accelerate.utils import gather_object

from ..data.segments import Segments
from .object_matches import ObjectCounts
from .task_metrics import instance_reference


@dataclass
class EvaluationDetails:
    """What a report shows besides the scores.

    Attributes:
        image_scores: (score of one image or None, its row in the split, its number of segments).
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
        self.image_scores.append((score, row, len(segments.classes)))
        if self.objects is not None and "instance" in predictions:
            self.objects.add(predictions["instance"], instance_reference(segments, things))

    def gather(self) -> None:
        """Add what the other processes have."""
        self.image_scores = gather_object(self.image_scores)
        if self.objects is not None:
            own = self.objects
            self.objects = ObjectCounts(len(own.objects), own.threshold)
            for part in gather_object([own]):
                self.objects += part

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """Rows of the worst and of the best images that have a score, at most `count` each; no row is in both. The best
        ones are among the images with at least the median number of segments, since an image with little in it is
        easy."""
        order = sorted(entry for entry in self.image_scores if entry[0] is not None)
        count = min(count, len(order) // 2) or len(order)
        usual = np.median([segments for *_, segments in order]) if order else 0
        best = [row for _, row, segments in order[count:] if segments >= usual]
        return [row for _, row, _ in order[:count]], best[::-1][:count]
