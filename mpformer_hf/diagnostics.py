"""What happens between decoder layers: mask consistency and query utilisation.

The paper motivates piloting with masks that change from layer to layer and with queries that are badly used, and names
two measures, mIoU-L^i and Util^i (MP-Former, section 3). Its formulas were not at hand: the definitions below are our
own. They need only class and mask logits of every prediction, so they apply to MP-Former and to transformers'
Mask2Former alike.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from .criterion import Assignment, MPFormerCriterion, Prediction
from .point_sampling import ByteMasks
from .targets import Targets, collect_targets


@dataclass
class LayerDiagnostics:
    """Sums over targets; add several with `+=`.

    Attributes:
        num_targets: targets that were matched in every prediction.
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
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, [a + b for a, b in zip(mine, theirs, strict=True)] if mine else list(theirs))
        return self

    @property
    def mask_consistency(self) -> list[float]:
        """Mean IoU in [0, 1] for i = 1..L: mask (probability >= 0.5) that the query finally matched to a target
        predicts after layer i - 1, against the one after layer i. Two empty masks agree."""
        return [value / max(self.num_targets, 1) for value in self.agreement]

    @property
    def query_utilisation(self) -> list[float]:
        """Share in [0, 1] for i = 0..L: targets whose matched query in prediction i is the one matched at the end."""
        return [value / max(self.num_targets, 1) for value in self.same_query]


@torch.no_grad()
def diagnose(
    model: torch.nn.Module, pixel_values: Tensor, mask_labels: list[Tensor], class_labels: list[Tensor], seed: int = 0
) -> LayerDiagnostics:
    """Diagnostics of one batch.

    Args:
        model: MP-Former or transformers' Mask2Former for universal segmentation; put it into eval mode first.
        pixel_values: `[B, 3, H, W]`, normalised and padded.
        mask_labels: per image `[T, H, W]`, non-zero = foreground.
        class_labels: per image int64 `[T]`.
        seed: of the points at which matching compares masks, the same for all predictions.
    """
    outputs = model(pixel_values, output_auxiliary_logits=True)
    final = {key: outputs[key] for key in ("masks_queries_logits", "class_queries_logits")}
    predictions = [*outputs.auxiliary_logits, final]
    targets = collect_targets(mask_labels, class_labels, tuple(pixel_values.shape[-2:]))
    criterion = MPFormerCriterion(model.config)
    assignments = [match_masks(criterion, prediction, targets, seed) for prediction in predictions]

    last = assignments[-1]
    owner = {target: query for target, query in zip(last.target.tolist(), last.query.tolist(), strict=True)}
    same = [
        sum(owner.get(t) == q for t, q in zip(a.target.tolist(), a.query.tolist(), strict=True)) for a in assignments
    ]
    masks = [p["masks_queries_logits"][last.batch_index, last.query] >= 0 for p in predictions]
    agreement = [mask_iou(a, b).sum().item() for a, b in pairwise(masks)]
    return LayerDiagnostics(len(owner), agreement, same)


def match_masks(criterion: MPFormerCriterion, prediction: dict[str, Tensor], targets: Targets, seed: int) -> Assignment:
    """Hungarian assignment from dense mask logits: with one channel per query, each query's embedding is a unit
    vector."""
    masks = prediction["masks_queries_logits"].float()
    unit = torch.eye(masks.shape[1], device=masks.device).expand(len(masks), -1, -1)
    generator = torch.Generator(masks.device).manual_seed(seed)
    own = Prediction(prediction["class_queries_logits"].float(), unit)
    return criterion.match([own], masks, targets, ByteMasks(targets.masks), generator)[0]


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of bool masks `[n, h, w]`, pair by pair: float `[n]`, 1 where both are empty."""
    intersection, union = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
