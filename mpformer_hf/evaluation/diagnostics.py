"""Layer-wise diagnostics of the decoder: mask consistency and query utilisation.

The paper motivates mask-piloted training with inconsistent masks between consecutive decoder layers and with low
utilisation of queries, and names two measures, mIoU-L^i and Util^i (MP-Former, section 3). The definitions below are
our own. They are computed from the class and mask logits of every prediction, of MP-Former or transformers'
Mask2Former.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.image_sizes import size_of
from ..model.matcher import Assignment, HungarianMatcher, Prediction
from ..model.point_sampling import ByteMasks
from ..model.targets import Targets, collect_targets


@dataclass
class LayerDiagnostics:
    """Sums over targets; several are added with `+=`.

    Attributes:
        num_targets: number of matched targets.
        agreement: sum of mask IoU between predictions i - 1 and i, for i = 1..L.
        same_query: number of targets whose query in prediction i is the final one, for i = 0..L.
    """

    num_targets: int = 0
    agreement: list[float] = field(default_factory=list)
    same_query: list[int] = field(default_factory=list)

    def __iadd__(self, other: "LayerDiagnostics") -> "LayerDiagnostics":
        if not other.num_targets:
            return self
        self.num_targets += other.num_targets
        for name in ("agreement", "same_query"):
            own, added = getattr(self, name), getattr(other, name)
            setattr(self, name, [a + b for a, b in zip(own, added, strict=True)] if own else list(added))
        return self

    @property
    def mask_consistency(self) -> list[float]:
        """Mean IoU in [0, 1] for i = 1..L between the masks (probability >= 0.5) after layers i - 1 and i of the query
        that is matched to a target in the last prediction. The IoU of two empty masks is 1."""
        return [value / max(self.num_targets, 1) for value in self.agreement]

    @property
    def query_utilisation(self) -> list[float]:
        """Share in [0, 1] for i = 0..L of targets whose matched query in prediction i is that of the last
        prediction."""
        return [value / max(self.num_targets, 1) for value in self.same_query]


@torch.no_grad()
def diagnose(
    model: PreTrainedModel, pixel_values: Tensor, mask_labels: list[Tensor], class_labels: list[Tensor], seed: int = 0
) -> LayerDiagnostics:
    """Diagnostics of one batch.

    Args:
        model: MP-Former or transformers' Mask2Former for universal segmentation, in evaluation mode.
        pixel_values: `[B, 3, H, W]`, normalised and padded.
        mask_labels: per image `[T, H, W]`, non-zero = foreground.
        class_labels: per image int64 `[T]`.
        seed: seed of the points at which masks are compared for matching, the same for all predictions.
    """
    outputs = model(pixel_values, output_auxiliary_logits=True)
    final = {key: outputs[key] for key in ("masks_queries_logits", "class_queries_logits")}
    predictions = [*outputs.auxiliary_logits, final]
    targets = collect_targets(mask_labels, class_labels, size_of(pixel_values))
    matcher = HungarianMatcher(model.config)
    assignments = [match_masks(matcher, prediction, targets, seed) for prediction in predictions]

    last = assignments[-1]
    query_of = dict(zip(last.target.tolist(), last.query.tolist(), strict=True))
    same = [
        sum(query_of.get(t) == q for t, q in zip(a.target.tolist(), a.query.tolist(), strict=True)) for a in assignments
    ]
    masks = [p["masks_queries_logits"][last.batch_index, last.query] >= 0 for p in predictions]
    agreement = [mask_iou(a, b).sum().item() for a, b in pairwise(masks)]
    return LayerDiagnostics(len(query_of), agreement, same)


def match_masks(matcher: HungarianMatcher, prediction: dict[str, Tensor], targets: Targets, seed: int) -> Assignment:
    """Hungarian assignment from dense mask logits. They are passed as mask features with one channel per query, so the
    mask embedding of a query is a unit vector."""
    masks = prediction["masks_queries_logits"].float()
    unit = torch.eye(masks.shape[1], device=masks.device).expand(len(masks), -1, -1)
    generator = torch.Generator(masks.device).manual_seed(seed)
    converted = Prediction(prediction["class_queries_logits"].float(), unit)
    return matcher([converted], masks, targets, ByteMasks(targets.masks), generator)[0]


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of bool masks `[n, h, w]`, pair by pair: float `[n]`, 1 where both are empty."""
    intersection, union = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
