"""Training loss: Hungarian matching and point-sampled mask losses (Mask2Former, sections 3.3 and 4.1), plus the
pilot's losses with their fixed assignment (MP-Former, section 3).

Masks are products of mask embeddings and mask features. Matching cost and losses sample the *features* at their points
and multiply afterwards, so no mask is formed. Ground truth stays in bytes.

Pixels that no mask covers, void ones too, are background of every mask, as in the official code.

Shape letters: B batch, Q queries, K classes, D mask feature channels, T targets of an image, M matched pairs,
P points, C candidate points.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_mpformer import MPFormerConfig
from .mask_losses import UncertainPointLosses, losses_at_own_points
from .mask_piloting import Pilot
from .point_sampling import ByteMasks, sample_features
from .targets import Targets


@dataclass
class Prediction:
    """What all queries `[pilot | matching]` say after one decoder layer.

    Attributes:
        class_logits: `[B, N, K + 1]`, the last class is "no object".
        mask_embeddings: `[B, N, D]`.
    """

    class_logits: Tensor
    mask_embeddings: Tensor

    def part(self, queries: slice) -> "Prediction":
        return Prediction(self.class_logits[:, queries], self.mask_embeddings[:, queries])


@dataclass
class Assignment:
    """M pairs of query and target, ordered by image.

    Attributes:
        batch_index, query, target: int64 `[M]`; `target` counts over the whole batch.
        counts: pairs of each image.
    """

    batch_index: Tensor
    query: Tensor
    target: Tensor
    counts: list[int]


UNUSED = -100  # label that cross-entropy passes over


@dataclass
class Part:
    """The matching or the pilot queries of one prediction, and how their losses count.

    Attributes:
        suffix: of the losses' names.
        prediction, assignment: what the queries say, and which have a target.
        other: label of those without: "no object", or `UNUSED`.
        class_norm, mask_norm: denominators, scalars.
        weights: of the losses, by kind; others do not count.
    """

    suffix: str
    prediction: Prediction
    assignment: Assignment
    other: int
    class_norm: Tensor
    mask_norm: Tensor
    weights: dict[str, float]


def mask_costs(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy and dice loss of every query with every target.

    Args:
        logits: `[Q, P]`.
        truth: `[T, P]` in [0, 1].

    Returns:
        two `[Q, T]`.
    """
    overlap = logits @ truth.T
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - overlap) / logits.shape[-1]
    probability = logits.sigmoid()
    total = probability.sum(-1, keepdim=True) + truth.sum(-1)
    return cross_entropy, 1 - (2 * (probability @ truth.T) + 1) / (total + 1)


class MPFormerCriterion(nn.Module):
    """Losses of all predictions.

    Args:
        config: weights of the losses (also of the matching cost), number of points, pilot options.
    """

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        self.config = config
        self.weights = {
            "cross_entropy": config.class_weight,
            "mask": config.mask_weight,
            "dice": config.dice_weight,
        }
        self.register_buffer("empty_weight", self.class_weights())  # in Mask2Former's checkpoints; the config decides

    def class_weights(self, device: torch.device | None = None) -> Tensor:
        """Weight of each class in the classification loss, float32 `[K + 1]`: 1, and less for "no object"."""
        weights = torch.ones(self.config.num_labels + 1, device=device)
        weights[-1] = self.config.no_object_weight
        return weights

    def forward(
        self,
        predictions: list[Prediction],
        mask_features: Tensor,
        targets: Targets,
        pilot: Pilot | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: one per decoder state, the final one last.
            mask_features: `[B, D, h, w]`.
            targets: ground truth of the batch.
            pilot: the pilot of this batch, whose queries come first in every prediction.
            generator: source of the sampling points, on the masks' device.

        Returns:
            weighted losses, scalars: `loss_cross_entropy`, `loss_mask`, `loss_dice` of the final prediction; with
            suffix `_{i}` of prediction i before it; `_pilot` and `_pilot_{i}` of the pilot.
        """
        with torch.autocast(mask_features.device.type, enabled=False):
            mask_features = mask_features.float()
            predictions = [Prediction(p.class_logits.float(), p.mask_embeddings.float()) for p in predictions]
            truth = ByteMasks(targets.masks)
            start = 0 if pilot is None else pilot.num_queries
            matching = [p.part(slice(start, None)) for p in predictions]
            assignments = self.match(matching, mask_features, targets, truth, generator)
            groups = 0 if pilot is None else pilot.groups
            num_targets, class_norm, pilot_norm = self.normalisers(matching[0], targets, groups)
            suffixes = [f"_{index}" for index in range(len(predictions) - 1)] + [""]
            no_object = self.config.num_labels
            parts = [
                Part(suffix, prediction, assignment, no_object, class_norm, num_targets, self.weights)
                for suffix, prediction, assignment in zip(suffixes, matching, assignments, strict=True)
            ]
            weights = {kind: weight * self.config.pilot_loss_weight for kind, weight in self.weights.items()}
            if not self.config.pilot_class_loss:
                del weights["cross_entropy"]
            if pilot is not None:
                fixed = Assignment(pilot.batch_index, pilot.slot, pilot.target, pilot.counts)
                parts += [
                    Part(f"_pilot{suffix}", p.part(slice(start)), fixed, UNUSED, pilot_norm, pilot_norm, weights)
                    for suffix, p in zip(suffixes, predictions, strict=True)
                ]
            losses = self.losses_of(parts, mask_features, targets, truth, generator)
            if self.training and self.config.mask_piloting and pilot is None:
                names = [f"loss_{kind}_pilot{suffix}" for kind in weights for suffix in suffixes]
                losses |= {name: mask_features.new_zeros(()) for name in names}
            return losses

    def losses_of(
        self,
        parts: list[Part],
        mask_features: Tensor,
        targets: Targets,
        truth: ByteMasks,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """Three weighted losses of each part, by name."""
        losses = {}
        if self.config.mask_loss_points == "prediction":
            pairs = [self.mask_losses([part], mask_features, targets, truth, generator) for part in parts]
            mask, dice = (torch.cat(losses) for losses in zip(*pairs, strict=True))
        else:
            mask, dice = self.mask_losses(parts, mask_features, targets, truth, generator)
        for index, part in enumerate(parts):
            logits, pairs = part.prediction.class_logits, part.assignment
            labels = targets.labels.new_full(logits.shape[:2], part.other)
            labels[pairs.batch_index, pairs.query] = targets.labels[pairs.target]
            found = {
                "cross_entropy": self.class_loss(logits, labels, part.class_norm),
                "mask": mask[index] / part.mask_norm,
                "dice": dice[index] / part.mask_norm,
            }
            losses |= {f"loss_{kind}{part.suffix}": found[kind] * weight for kind, weight in part.weights.items()}
        return losses

    def normalisers(self, prediction: Prediction, targets: Targets, groups: int) -> Tensor:
        """Denominators, means over all processes: targets; class weights of the matching queries; pilot queries.

        Known before any matching, since every prediction of an image matches min(targets, queries) queries. So one
        reduction serves the whole step, and n processes give the loss of one with all their images.

        Returns:
            float32 `[3]`.
        """
        batch, queries = prediction.class_logits.shape[:2]
        total = sum(targets.counts)
        matched = sum(min(count, queries) for count in targets.counts)
        weight = matched + self.config.no_object_weight * (batch * queries - matched)
        norms = prediction.class_logits.new_tensor([total, weight, total * groups])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(norms)
            norms = norms / torch.distributed.get_world_size()
        floor = norms.new_tensor([1.0, torch.finfo(norms.dtype).tiny, 1.0])
        return torch.maximum(norms, floor)

    @torch.no_grad()
    def match(
        self,
        predictions: list[Prediction],
        mask_features: Tensor,
        targets: Targets,
        truth: ByteMasks,
        generator: torch.Generator | None = None,
    ) -> list[Assignment]:
        """Hungarian assignment of every prediction; costs as in Mask2Former, section 3.3.

        One set of points serves all predictions and images of the step, so features and ground truth are sampled
        once; all costs go to the host in one copy.
        """
        device = mask_features.device
        points = torch.rand(1, self.config.train_num_points, 2, device=device, generator=generator)
        features = sample_features(mask_features, points.expand(len(mask_features), -1, -1))  # [B, P, D]
        sampled = truth.sample(torch.arange(len(targets.masks), device=device), points)
        truths, labels = sampled.split(targets.counts), targets.labels.split(targets.counts)
        costs = []
        for prediction in predictions:
            probabilities = prediction.class_logits.softmax(-1)
            for image, count in enumerate(targets.counts):
                if count:
                    logits = prediction.mask_embeddings[image] @ features[image].T
                    cross_entropy, dice = mask_costs(logits, truths[image])
                    costs.append(
                        self.weights["mask"] * cross_entropy
                        + self.weights["dice"] * dice
                        - self.weights["cross_entropy"] * probabilities[image][:, labels[image]]
                    )
        return self.solve(costs, targets.counts, len(predictions), device)

    @staticmethod
    def solve(costs: list[Tensor], counts: list[int], num_predictions: int, device: torch.device) -> list[Assignment]:
        """One device-to-host copy of all costs, then the assignment problems. Costs that are not finite count as
        very large, so that a broken step reports its loss instead of failing here."""
        shapes = [cost.shape for cost in costs]
        flat = torch.cat([cost.flatten() for cost in costs]) if costs else torch.empty(0)
        host = flat.nan_to_num(1e10, 1e10, -1e10).clamp(-1e10, 1e10).cpu()
        tables = iter(host.split([shape.numel() for shape in shapes]))
        shapes = iter(shapes)
        assignments = []
        for _ in range(num_predictions):
            columns, offset = [], 0
            for image, count in enumerate(counts):
                column = torch.empty(3, 0, dtype=torch.int64)
                if count:
                    query, target = linear_sum_assignment(next(tables).view(next(shapes)).numpy())
                    query, target = torch.from_numpy(query), torch.from_numpy(target)
                    column = torch.stack((torch.full_like(query, image), query, target + offset))
                columns.append(column)
                offset += count
            table = torch.cat(columns, dim=1)
            assignments.append(Assignment(*table.to(device), counts=[column.shape[1] for column in columns]))
        return assignments

    def class_loss(self, logits: Tensor, labels: Tensor, norm: Tensor) -> Tensor:
        """Weighted cross-entropy over `[..., K + 1]` logits and int64 `[...]` labels, divided by `norm`."""
        weight = self.class_weights(logits.device)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight, reduction="sum") / norm

    def candidate_points(self, batch: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Points of the mask losses, float32 `[B, C, 2]`: those that masks choose from, then those of all masks."""
        uncertain, random = self.point_counts()
        drawn = int(self.config.train_num_points * self.config.oversample_ratio) if uncertain else 0
        return torch.rand(batch, drawn + random, 2, device=device, generator=generator)

    def point_counts(self) -> tuple[int, int]:
        """How many points a mask chooses, and how many it does not."""
        uncertain = int(self.config.train_num_points * self.config.importance_sample_ratio)
        return uncertain, self.config.train_num_points - uncertain

    def mask_losses(
        self,
        parts: list[Part],
        mask_features: Tensor,
        targets: Targets,
        truth: ByteMasks,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice loss of the assigned masks, each summed over the masks of a part: two
        `[parts]`."""
        device = mask_features.device
        embeddings = [p.prediction.mask_embeddings[p.assignment.batch_index, p.assignment.query] for p in parts]
        pairs = [part.assignment for part in parts]
        order = torch.cat([a.batch_index for a in pairs]).argsort(stable=True)
        target = torch.cat([a.target for a in pairs])[order]
        owner = torch.cat([torch.full_like(a.query, index) for index, a in enumerate(pairs)])[order]
        per_image = [sum(numbers) for numbers in zip(*(a.counts for a in pairs), strict=True)]
        if self.config.mask_loss_points == "mask":
            uncertain, random = self.point_counts()
            candidates = int(self.config.train_num_points * self.config.oversample_ratio)
            losses = losses_at_own_points(
                torch.cat(embeddings)[order], mask_features, truth, target, per_image, (candidates, uncertain, random)
            )
        else:
            points = self.candidate_points(len(mask_features), device, generator)
            features = sample_features(mask_features, points)
            with torch.no_grad():
                own = torch.arange(len(targets.masks), device=device).split(targets.counts)
                truths = torch.cat([truth.sample(rows, part) for rows, part in zip(own, points.split(1), strict=True)])
            losses = UncertainPointLosses.apply(
                torch.cat(embeddings)[order], features, truths, target, per_image, *self.point_counts()
            )
        cross_entropy, dice = (loss.new_zeros(len(parts)).index_add(0, owner, loss) for loss in losses)
        return cross_entropy, dice
