"""Additions to training of question 10, tried on nuclei: a criterion and a matcher, for `--criterion` and `--matcher`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mpformer_hf.model import matcher as matcher_module
from mpformer_hf.model.criterion import MPFormerCriterion
from mpformer_hf.model.matcher import HungarianMatcher
from mpformer_hf.model.point_sampling import ByteMasks, sample_features, sample_targets


def pixel_discrimination(mask_features: Tensor, targets, points: int = 1024, temperature: float = 0.3) -> Tensor:
    """Cross-entropy of the pixels' features against the mean feature of each object and of the background of their
    image (instance discrimination of MaX-DeepLab, Wang et al. 2021, section 3.4, here with the background)."""
    losses = []
    drawn = torch.rand(len(mask_features), points, 2, device=mask_features.device)
    features = F.normalize(sample_features(mask_features, drawn), dim=-1)  # [B, P, D]
    truth = sample_targets(ByteMasks(targets.masks), targets, drawn) > 0.5  # [T, P]
    for own, rows in zip(features, truth.split(targets.counts), strict=True):
        regions = torch.cat((rows, ~rows.any(0, keepdim=True))).float()  # [T + 1, P]
        used = regions.sum(1) > 0
        regions = regions[used]
        if len(regions) < 2:
            continue
        centres = F.normalize(regions @ own / regions.sum(1, keepdim=True), dim=-1)
        logits = own @ centres.T / temperature
        per_point = F.cross_entropy(logits, regions.argmax(0), reduction="none")
        # every region has the same weight
        weight = (1 / regions.sum(1))[regions.argmax(0)]
        losses.append((per_point * weight).sum() / weight.sum())
    return torch.stack(losses).mean() if losses else mask_features.sum() * 0


class Discrimination(MPFormerCriterion):
    weight = 1.0

    def forward(self, predictions, mask_features, targets, pilot=None, generator=None):
        losses = super().forward(predictions, mask_features, targets, pilot, generator)
        return {**losses, "loss_pixels": self.weight * pixel_discrimination(mask_features.float(), targets)}


_assign = matcher_module.assign


def assign_one_to_many(costs, counts, device, early=3, copies=2):
    import numpy as np

    images = len(counts)
    layers = len(costs) // images
    result = []
    for layer in range(layers):
        own = costs[layer * images : (layer + 1) * images]
        if layer >= early or any(c.shape[1] * copies > c.shape[0] for c in own):
            result += _assign(own, counts, device)
            continue
        (solved,) = _assign(own, counts, device)
        # a second round among the queries that are free, only those that are close to the target
        extra = []
        for image, cost in enumerate(own):
            taken = solved.query[solved.batch_index == image]
            cost = np.array(cost)
            cost[taken] = cost.max() + 1000 if cost.size else 0
            extra.append(cost)
        (second,) = _assign(extra, counts, device)
        batch_index = torch.cat((solved.batch_index, second.batch_index))
        order = batch_index.argsort(stable=True)
        result.append(
            matcher_module.Assignment(
                batch_index[order],
                torch.cat((solved.query, second.query))[order],
                torch.cat((solved.target, second.target))[order],
                [a + b for a, b in zip(solved.counts, second.counts, strict=True)],
            )
        )
    return result


class OneToMany(HungarianMatcher):
    def __call__(self, *args, **kwargs):
        matcher_module.assign = assign_one_to_many
        try:
            return super().__call__(*args, **kwargs)
        finally:
            matcher_module.assign = _assign
