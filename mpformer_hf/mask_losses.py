"""Cross-entropy and dice loss of masks at uncertain points (PointRend, section 3.1; Mask2Former, section 3.3).

A mask is a product of its embedding and the image's features, and sampling is linear. All masks of an image, of all
predictions and of the pilot, select their points from the same candidates, where features and ground truth are sampled
once: the logits there are one matrix product, and no mask is computed. Autograd stores the selected points of a mask
and their logits.

Shape letters: B batch, D mask feature channels, T targets of the batch, M masks in the order of their images,
C candidate points, P points of the loss.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .point_sampling import ByteMasks

CHUNK = 2**22  # candidate logits at a time: 16 MB


def point_losses(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy and dice loss over points.

    Args:
        logits: `[M, P]`.
        truth: `[M, P]` in [0, 1].

    Returns:
        two `[M]`.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
    return cross_entropy, dice


class UncertainPointLosses(torch.autograd.Function):
    """`point_losses` of each mask at its most uncertain candidates, those of smallest |logit|, and at random points.

    The custom backward pass takes 0.6 times as long as `torch.utils.checkpoint` per chunk on a CPU, with equal results
    (`python -m scripts.benchmark --measure operators`).
    """

    @staticmethod
    def forward(
        ctx,
        embeddings: Tensor,
        features: Tensor,
        truth: Tensor,
        target: Tensor,
        counts: list[int],
        uncertain: int,
        random: int,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            embeddings: float `[M, D]`.
            features: float `[B, C, D]`, sampled at the candidates of each image.
            truth: float `[T, C]`, ground-truth masks sampled at the candidates of their image.
            target: int64 `[M]`, row of `truth` for each mask.
            counts: number of masks of each image; their sum is M.
            uncertain: number of points that each mask selects from the first C - `random` candidates.
            random: number of last candidates, which are points of every mask.

        Returns:
            cross-entropy and dice loss, `[M]` each.
        """
        ctx.counts, ctx.random = counts, random
        all_selected = target.new_empty(len(embeddings), uncertain, dtype=torch.int32)
        sampled = embeddings.new_empty(len(embeddings), uncertain + random)
        cross_entropy, dice = embeddings.new_empty(2, len(embeddings))
        for image, part in chunks(counts, features):
            logits = embeddings[part] @ features[image].T
            uncertainty = -logits[:, : logits.shape[1] - random].abs()
            selected = uncertainty.topk(uncertain, dim=1, sorted=False).indices
            all_selected[part] = selected
            sampled[part] = torch.cat((logits.gather(1, selected), logits[:, logits.shape[1] - random :]), dim=1)
            sampled_truth = truth_at(truth, target[part], selected, random)
            cross_entropy[part], dice[part] = point_losses(sampled[part], sampled_truth)
        ctx.save_for_backward(embeddings, features, truth, target, all_selected, sampled)
        return cross_entropy, dice

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):  # gradients are float32, as the losses
            return *UncertainPointLosses.gradients(ctx, grads), None, None, None, None, None

    @staticmethod
    def gradients(ctx, grads: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Gradients of embeddings and features."""
        embeddings, features, truth, target, all_selected, sampled = ctx.saved_tensors
        grad_embeddings, grad_features = torch.empty_like(embeddings), torch.zeros_like(features)
        for image, part in chunks(ctx.counts, features):
            selected, logits = all_selected[part].long(), sampled[part].requires_grad_()
            sampled_truth = truth_at(truth, target[part], selected, ctx.random)
            with torch.enable_grad():
                losses = point_losses(logits, sampled_truth)
            (grad,) = torch.autograd.grad(losses, logits, [grad[part] for grad in grads])
            grad_logits = grad.new_zeros(len(grad), features.shape[1])  # at all candidates
            grad_logits.scatter_(1, selected, grad[:, : selected.shape[1]])
            grad_logits[:, grad_logits.shape[1] - ctx.random :] = grad[:, selected.shape[1] :]
            grad_embeddings[part] = grad_logits @ features[image]
            grad_features[image].addmm_(grad_logits.T, embeddings[part])
        return grad_embeddings, grad_features


def point_losses_per_mask(
    embeddings: Tensor, maps: Tensor, truth: ByteMasks, target: Tensor, counts: list[int], points: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """`point_losses` with separate points for each mask, as in the official code: the most uncertain of its own random
    candidates, and further random points.

    Args:
        embeddings: float `[M, D]`.
        maps: mask features, float `[B, D, h, w]`.
        truth: ground truth of the batch.
        target: int64 `[M]`, which ground-truth mask each is compared with.
        counts: masks of each image; their sum is M.
        points: numbers of candidates, of the most uncertain ones that are selected, and of further random points.

    Returns:
        cross-entropy and dice loss, `[M]` each.
    """
    candidates, uncertain, random = points

    def chunk_losses(embeddings: Tensor, map_: Tensor, target: Tensor) -> Tensor:
        masks = torch.einsum("md,dhw->mhw", embeddings, map_)[:, None]
        with torch.no_grad():
            drawn = torch.rand(len(masks), candidates + random, 2, device=masks.device)
            logits = sample_masks(masks, drawn[:, :candidates])
            selected = logits.abs().topk(uncertain, dim=1, largest=False, sorted=False).indices
            points = drawn.gather(1, selected[..., None].expand(-1, -1, 2))
            points = torch.cat((points, drawn[:, candidates:]), dim=1)
            point_truth = truth.sample(target, points)
        return torch.stack(point_losses(sample_masks(masks, points), point_truth))

    losses = [
        checkpoint(chunk_losses, embeddings[part], maps[image], target[part], use_reentrant=False)
        for image, part in chunks(counts, maps[0, 0].flatten()[None])
    ]
    if not losses:
        return embeddings.sum(1), embeddings.sum(1)
    cross_entropy, dice = torch.cat(losses, dim=1)
    return cross_entropy, dice


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples `[M, P]` of masks `[M, 1, h, w]` at points `[M, P, 2]` in [0, 1], zero outside."""
    return F.grid_sample(masks, 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def chunks(counts: list[int], features: Tensor) -> list[tuple[int, slice]]:
    """Chunks (image, masks) with at most `CHUNK` candidate logits, on a GPU eight times as many."""
    limit = CHUNK if features.device.type == "cpu" else 8 * CHUNK
    size, parts, end = max(1, limit // max(1, features.shape[1])), [], 0
    for image, count in enumerate(counts):
        start, end = end, end + count
        parts += [(image, slice(first, min(first + size, end))) for first in range(start, end, size)]
    return parts


def truth_at(truth: Tensor, target: Tensor, selected: Tensor, random: int) -> Tensor:
    """Ground truth `[M, U + random]` of each mask at its selected candidates, int64 `[M, U]`, and the random points."""
    candidates = truth.shape[1]
    return torch.cat(
        (truth.take(selected + target[:, None] * candidates), truth[:, candidates - random :][target]), dim=1
    )
