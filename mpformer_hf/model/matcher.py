"""Hungarian matching between predictions and targets (Mask2Former, section 3.3).

Masks are products of mask embeddings and mask features. The cost samples the *features* at its points and multiplies
afterwards, so no mask is computed at full resolution.

Shape letters: B batch, N queries, Q matching queries, K classes, D mask feature channels, T targets of an image,
M matched pairs, P points.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from .chunks import copy_to_host, cost_chunks, padded_rows, to_device
from .configuration_mpformer import MPFormerConfig
from .incomplete_labels import hide_void, known_points, unmatched_weights
from .point_sampling import ByteMasks, points_on, sample_features
from .targets import Targets


@dataclass
class Prediction:
    """Outputs of queries after one decoder layer.

    Attributes:
        class_logits: `[B, N, K + 1]`, the last class is "no object".
        mask_embeddings: `[B, N, D]`.
    """

    class_logits: Tensor
    mask_embeddings: Tensor

    def select(self, queries: slice) -> "Prediction":
        """The outputs of some queries."""
        return Prediction(self.class_logits[:, queries], self.mask_embeddings[:, queries])


@dataclass
class Assignment:
    """M pairs of query and target, ordered by image.

    Attributes:
        batch_index, query, target: int64 `[M]`; `target` is an index into the targets of the batch.
        counts: number of pairs of each image.
        unmatched_weights: float `[B, N]`, factors on the class loss of the queries without a target; None: all 1.
    """

    batch_index: Tensor
    query: Tensor
    target: Tensor
    counts: list[int]
    unmatched_weights: Tensor | None = None


def mask_costs(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy and dice loss of every query with every target.

    Args:
        logits: `[..., Q, P]`, `VOID_LOGIT` at points that do not count.
        truth: `[..., T, P]` in [0, 1].

    Returns:
        two `[..., Q, T]`.
    """
    overlap = logits @ truth.mT
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - overlap) / known_points(logits[..., :1, :])
    probability = logits.sigmoid()
    total = probability.sum(-1, keepdim=True) + truth.sum(-1)[..., None, :]
    return cross_entropy, 1 - (2 * (probability @ truth.mT) + 1) / (total + 1)


class HungarianMatcher:
    """Assigns targets to queries with minimal total cost. Subclasses may override `cost`.

    Args:
        config: weights of the costs, which are those of the losses, and number of points.
    """

    def __init__(self, config: MPFormerConfig):
        self.config = config

    def cost(self, class_logits: Tensor, mask_logits: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
        """Cost of every query with every target of its image, for some images and predictions at once.

        Args:
            class_logits: `[B, R, K + 1]`; R queries, of one or of several predictions.
            mask_logits: `[B, R, P]`, at the points.
            labels: int64 `[B, T]`.
            truth: float `[B, T, P]` in [0, 1], ground-truth masks at the points.

        Returns:
            `[B, R, T]`.
        """
        config = self.config
        cross_entropy, dice = mask_costs(mask_logits, truth)
        class_cost = -class_logits.softmax(-1).gather(-1, labels[:, None].expand(-1, class_logits.shape[1], -1))
        return config.class_weight * class_cost + config.mask_weight * cross_entropy + config.dice_weight * dice

    @torch.no_grad()
    def __call__(
        self,
        predictions: list[Prediction],
        mask_features: Tensor,
        targets: Targets,
        truth: ByteMasks,
        generator: torch.Generator | None = None,
    ) -> list[Assignment]:
        """Assignment of each prediction.

        One set of points is used for all predictions and images, so features and ground truth are sampled once. All
        costs are copied to the host together.

        Args:
            predictions: matching queries after each layer, float32.
            mask_features: float32 `[B, D, h, w]`.
            targets: ground truth of the batch.
            truth: its masks.
            generator: source of the points, on the device of the features.
        """
        device = mask_features.device
        points = torch.rand(1, self.config.train_num_points, 2, device=device, generator=generator)
        features = sample_features(mask_features, points.expand(len(mask_features), -1, -1))  # [B, P, D]
        sampled = truth.sample(torch.arange(len(targets.masks), device=device), points)
        void, unjudged, covered = points_on(targets.void, points), points_on(targets.unjudged, points), None
        if void is not None:
            sampled = sampled.masked_fill(void[targets.image], 0.0)
        if void is not None or targets.complete is not None:
            covered = torch.zeros(features.shape[:2], device=device).index_add(0, targets.image, sampled.round()) > 0
        rows = to_device(padded_rows(targets.counts), device)  # [B, T]
        classes = torch.cat([p.class_logits for p in predictions], dim=1)  # [B, predictions * Q, K + 1]
        embeddings = torch.cat([p.mask_embeddings for p in predictions], dim=1)
        queries, costs = predictions[0].class_logits.shape[1], []
        parts = cost_chunks(device, len(rows), embeddings.shape[1], queries, features.shape[1])
        weights = None if covered is None else embeddings.new_ones(embeddings.shape[:2])
        for images, part in parts:
            used = rows[images, : max(targets.counts[images])]
            logits = embeddings[images, part] @ features[images].mT
            if weights is not None and covered is not None:
                weights[images, part] = unmatched_weights(
                    logits,
                    covered[images],
                    None if unjudged is None else unjudged[images],
                    None if targets.complete is None else targets.complete[images],
                    self.config.incomplete_no_object_weight,
                )
            if void is not None:
                logits = hide_void(logits, void[images])
            costs.append(self.cost(classes[images, part], logits, targets.labels[used], sampled[used]))
        tables: dict[tuple[int, int], np.ndarray] = {}
        for (images, part), block in zip(parts, copy_to_host(costs), strict=True):
            for image, table in zip(range(images.start, images.stop), block.numpy(), strict=True):
                for first in range(part.start, part.stop, queries):
                    own = table[first - part.start : first - part.start + queries, : targets.counts[image]]
                    tables[first // queries, image] = own
        assignments = assign([tables[key] for key in sorted(tables)], targets.counts, device)
        if weights is not None:
            for assignment, own in zip(assignments, weights.split(queries, dim=1), strict=True):
                assignment.unmatched_weights = own
        return assignments


def assign(costs: list, counts: list[int], device: torch.device) -> list[Assignment]:
    """Solve the assignment problems of all predictions, and copy the solutions to the device together.

    Args:
        costs: arrays `[Q, T]`, of each prediction those of its images.
        counts: number of targets of each image.
        device: device of the results.
    """
    pairs, images = [], len(counts)
    first = [sum(counts[:image]) for image in range(images)]
    for index, cost in enumerate(costs):
        query, target = (torch.from_numpy(solution) for solution in linear_sum_assignment(cost))
        image = index % images
        pairs.append(torch.stack((torch.full_like(query, image), query, target + first[image])))
    parts = [pairs[start : start + images] for start in range(0, len(pairs), images)]
    sizes = [[pair.shape[1] for pair in part] for part in parts]
    solved = to_device(torch.cat(pairs, dim=1), device).split([sum(size) for size in sizes], dim=1)
    return [Assignment(part[0], part[1], part[2], size) for part, size in zip(solved, sizes, strict=True)]
