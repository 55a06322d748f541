"""Training loss: Hungarian matching and point-sampled mask losses (Mask2Former, sections 3.3 and 4.1), and the pilot's
losses with their fixed assignment (MP-Former, section 3).

Ground-truth masks stay in bytes. Pixels that no mask covers are background of every mask. What the labels do not say
has no loss, see `incomplete_labels.py`; the official code has void as background too.

Shape letters: B batch, N queries, K classes, D mask feature channels, M assigned masks, C candidate points.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .chunks import to_device
from .configuration_mpformer import MPFormerConfig
from .incomplete_labels import no_object_or_unknown
from .mask_losses import UncertainPointLosses, point_losses_per_mask
from .mask_piloting import Pilot
from .matcher import Assignment, HungarianMatcher, Prediction
from .point_sampling import ByteMasks, points_on, sample_features, sample_targets
from .targets import Targets

IGNORE_INDEX = -100  # label that cross-entropy ignores


@dataclass
class LossGroup:
    """Queries whose losses are reported together: the matching or the pilot queries after one layer.

    Attributes:
        suffix: suffix of the names of the losses.
        prediction: outputs of the queries.
        assignment: their targets.
        unmatched_label: label of queries without a target: "no object", or `IGNORE_INDEX`.
        class_norm, mask_norm: denominators, scalars.
        weights: loss weights by kind; kinds that are missing have no loss.
    """

    suffix: str
    prediction: Prediction
    assignment: Assignment
    unmatched_label: int
    class_norm: Tensor
    mask_norm: Tensor
    weights: dict[str, float]


class MPFormerCriterion(nn.Module):
    """Losses of all predictions. All weights are read from the config when the loss is computed.

    Args:
        config: loss weights, number of points, pilot options.
    """

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        self.config = config
        self.matcher = HungarianMatcher(config)

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
            predictions: outputs of the queries `[pilot | matching]` for the initial queries and after each layer.
            mask_features: `[B, D, h, w]`.
            targets: ground truth of the batch.
            pilot: pilot of the batch, or None.
            generator: source of the points, on the device of the masks.

        Returns:
            weighted losses, scalars: `loss_cross_entropy`, `loss_mask`, `loss_dice` of the last prediction; with suffix
            `_{i}` of the earlier prediction i; with `_pilot` and `_pilot_{i}` of the pilot.
        """
        config = self.config
        with torch.autocast(mask_features.device.type, enabled=False):
            mask_features = mask_features.float()
            predictions = [Prediction(p.class_logits.float(), p.mask_embeddings.float()) for p in predictions]
            truth = ByteMasks(targets.masks)
            num_pilot = 0 if pilot is None else pilot.num_queries
            matching = [p.select(slice(num_pilot, None)) for p in predictions]
            assignments = self.matcher(matching, mask_features, targets, truth, generator)
            pilot_groups = 0 if pilot is None else pilot.groups
            num_targets, pilot_norm, *class_norms = self.normalisers(matching[0], targets, pilot_groups, assignments)
            suffixes = [f"_{index}" for index in range(len(predictions) - 1)] + [""]
            weights = {"cross_entropy": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}
            loss_groups = [
                LossGroup(suffix, prediction, assignment, config.num_labels, class_norm, num_targets, weights)
                for suffix, prediction, assignment, class_norm in zip(
                    suffixes, matching, assignments, class_norms, strict=True
                )
            ]
            if pilot is not None:
                fixed = Assignment(pilot.batch_index, pilot.slot, pilot.target, pilot.counts)
                weights = {kind: weight * config.pilot_loss_weight for kind, weight in weights.items()}
                if not config.pilot_class_loss:
                    del weights["cross_entropy"]
                loss_groups += [
                    LossGroup(
                        f"_pilot{suffix}",
                        prediction.select(slice(num_pilot)),
                        fixed,
                        IGNORE_INDEX,
                        pilot_norm,
                        pilot_norm,
                        weights,
                    )
                    for suffix, prediction in zip(suffixes, predictions, strict=True)
                ]
            return self.group_losses(loss_groups, mask_features, targets, truth, generator)

    def group_losses(
        self,
        loss_groups: list[LossGroup],
        mask_features: Tensor,
        targets: Targets,
        truth: ByteMasks,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """Weighted losses of all groups, by name."""
        mask, dice = self.mask_losses(loss_groups, mask_features, targets, truth, generator)
        norms = torch.stack([group.mask_norm for group in loss_groups])
        losses = {"mask": mask / norms, "dice": dice / norms, "cross_entropy": self.class_losses(loss_groups, targets)}
        kinds = list(losses)
        weights = torch.tensor([[group.weights.get(kind, 0.0) for group in loss_groups] for kind in kinds])
        weighted = torch.stack([losses[kind] for kind in kinds]) * to_device(weights, mask.device)
        scalars = dict(zip(kinds, (row.unbind() for row in weighted), strict=True))
        return {
            f"loss_{kind}{group.suffix}": scalars[kind][index]
            for index, group in enumerate(loss_groups)
            for kind in group.weights
        }

    def class_losses(self, loss_groups: list[LossGroup], targets: Targets) -> Tensor:
        """Weighted cross-entropy of the queries of each group, divided by its `class_norm`, `[groups]`; 0 where the
        group has no such loss. Groups with equally many queries are computed together."""
        sums: dict[int, Tensor] = {}
        by_queries: dict[tuple, list[int]] = {}
        for index, group in enumerate(loss_groups):
            if "cross_entropy" in group.weights:
                key = (group.prediction.class_logits.shape[1], group.unmatched_label)
                by_queries.setdefault(key, []).append(index)
        for (_, unmatched), indices in by_queries.items():
            groups = [loss_groups[index] for index in indices]
            logits = torch.stack([group.prediction.class_logits for group in groups])  # [G, B, N, K + 1]
            labels = targets.labels.new_full(logits.shape[:-1], unmatched)
            pairs = [group.assignment for group in groups]
            which = torch.arange(len(groups)).repeat_interleave(torch.tensor([sum(a.counts) for a in pairs]))
            batch_index, query, target = (
                torch.cat([getattr(a, name) for a in pairs]) for name in ("batch_index", "query", "target")
            )
            labels[to_device(which, labels.device), batch_index, query] = targets.labels[target]
            if targets.annotated is not None and unmatched != IGNORE_INDEX:
                either = no_object_or_unknown(logits, targets.annotated)
                logits = torch.where((labels == unmatched)[..., None], either, logits)
            weight = logits.new_ones(logits.shape[-1])
            weight[-1].fill_(self.config.no_object_weight)  # `weight[-1] = number` would wait for the device
            loss = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weight, reduction="none")
            if pairs[0].unmatched_weights is not None:
                factors = torch.stack([a.unmatched_weights for a in pairs if a.unmatched_weights is not None])
                loss = loss * torch.where(labels == unmatched, factors, 1.0).flatten()
            loss = loss.view(len(groups), -1).sum(1) / torch.stack([group.class_norm for group in groups])
            sums |= dict(zip(indices, loss.unbind(), strict=True))
        zero = loss_groups[0].mask_norm.new_zeros(())
        return torch.stack([sums.get(index, zero) for index in range(len(loss_groups))])

    def normalisers(
        self, prediction: Prediction, targets: Targets, pilot_groups: int, assignments: list[Assignment]
    ) -> Tensor:
        """Denominators of the losses, averaged over all processes: number of targets; number of pilot queries; for each
        prediction the sum of the class weights of the matching queries. One all-reduce per step is enough, and n
        processes have the loss of one process with all their images.

        In every prediction, min(targets, queries) queries of an image are matched; the others have `no_object_weight`,
        times the weight that incomplete labels leave them.

        Returns:
            float32 `[2 + predictions]`.
        """
        batch, queries = prediction.class_logits.shape[:2]
        total = sum(targets.counts)
        matched = sum(min(count, queries) for count in targets.counts)
        weight = matched + self.config.no_object_weight * (batch * queries - matched)
        floor = torch.tensor([1.0, 1.0] + [torch.finfo(torch.float32).tiny] * len(assignments))
        values = torch.tensor([total, total * pilot_groups] + [weight] * len(assignments), dtype=torch.float32)
        norms, floor = to_device(torch.stack((values, floor)), prediction.class_logits.device)
        for index, assignment in enumerate(assignments, start=2):
            if (factors := assignment.unmatched_weights) is not None:
                lost = (1 - factors).index_put((assignment.batch_index, assignment.query), factors.new_zeros(()))
                norms[index] -= self.config.no_object_weight * lost.sum()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(norms)
            norms = norms / torch.distributed.get_world_size()
        return torch.maximum(norms, floor)

    def point_counts(self) -> tuple[int, int]:
        """Points per mask: the most uncertain candidates, and random points."""
        uncertain = int(self.config.train_num_points * self.config.importance_sample_ratio)
        return uncertain, self.config.train_num_points - uncertain

    def candidate_points(self, batch: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Random points in [0, 1], float32 `[B, C, 2]`: candidates for uncertain points, then random points."""
        uncertain, random = self.point_counts()
        candidates = int(self.config.train_num_points * self.config.oversample_ratio) if uncertain else 0
        return torch.rand(batch, candidates + random, 2, device=device, generator=generator)

    def mask_losses(
        self,
        loss_groups: list[LossGroup],
        mask_features: Tensor,
        targets: Targets,
        truth: ByteMasks,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice loss of the assigned masks, summed over the masks of each group: two
        `[groups]`."""
        device = mask_features.device
        pairs = [group.assignment for group in loss_groups]
        own = [g.prediction.mask_embeddings[g.assignment.batch_index, g.assignment.query] for g in loss_groups]
        order = torch.cat([a.batch_index for a in pairs]).argsort(stable=True)
        embeddings, target = torch.cat(own)[order], torch.cat([a.target for a in pairs])[order]
        group_index = torch.cat([torch.full_like(a.query, index) for index, a in enumerate(pairs)])[order]
        per_image = [sum(counts) for counts in zip(*(a.counts for a in pairs), strict=True)]
        if self.config.mask_loss_points == "mask":
            uncertain, random = self.point_counts()
            candidates = int(self.config.train_num_points * self.config.oversample_ratio)
            void = None if targets.void is None else ByteMasks(targets.void)
            losses = point_losses_per_mask(
                embeddings, mask_features, truth, target, per_image, (candidates, uncertain, random), void
            )
        else:
            points = self.candidate_points(len(mask_features), device, generator)
            features = sample_features(mask_features, points)
            with torch.no_grad():
                truths, hidden = sample_targets(truth, targets, points), points_on(targets.void, points)
                if hidden is not None:
                    truths = truths.masked_fill(hidden[targets.image], 0.0)
            numbers = self.point_counts()
            losses = UncertainPointLosses.apply(embeddings, features, truths, target, per_image, *numbers, hidden)
        cross_entropy, dice = (loss.new_zeros(len(loss_groups)).index_add(0, group_index, loss) for loss in losses)
        return cross_entropy, dice
