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

from .chunks import make_chunks
from .incomplete_labels import VOID_LOGIT, hide_void, known_points
from .point_sampling import ByteMasks


def point_losses(logits: Tensor, truth: Tensor, with_void: bool = False) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy and dice loss over points.

    Args:
        logits: `[..., P]`.
        truth: `[..., P]` in [0, 1].
        with_void: whether logits may be `VOID_LOGIT`, at points that do not count, where the truth is 0.

    Returns:
        two `[...]`.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    cross_entropy = (
        cross_entropy.sum(-1) / known_points(logits.detach())[..., 0] if with_void else cross_entropy.mean(-1)
    )
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * truth).sum(-1) + 1) / (probability.sum(-1) + truth.sum(-1) + 1)
    return cross_entropy, dice


class UncertainPointLosses(torch.autograd.Function):
    """`point_losses` of each mask at its most uncertain candidates, those of smallest |logit|, and at random points.

    The custom backward pass takes 0.6 times as long as `torch.utils.checkpoint` per chunk on a CPU, with equal results.
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
        void: Tensor | None = None,
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
            void: bool `[B, C]`, candidates that do not count; the truth is 0 there.

        Returns:
            cross-entropy and dice loss, `[M]` each.
        """
        candidates = features.shape[1]
        chunks, places = make_chunks(counts, candidates, embeddings.device)
        losses, saved = [embeddings.new_zeros(2, 0)], []
        for chunk in chunks:
            logits = embeddings[chunk.rows] @ features[chunk.images].mT
            if void is not None:
                logits = hide_void(logits, void[chunk.images])
            uncertainty = -logits[..., : candidates - random].abs()
            selected = uncertainty.topk(uncertain, dim=-1, sorted=False).indices
            sampled = torch.cat((logits.gather(-1, selected), logits[..., candidates - random :]), dim=-1)
            sampled_truth = truth_at(truth, target[chunk.rows], selected, random)
            losses.append(torch.stack(point_losses(sampled, sampled_truth, void is not None)).flatten(1))
            saved += [selected.to(torch.int32), sampled]
        ctx.chunks, ctx.random, ctx.with_void = chunks, random, void is not None
        ctx.save_for_backward(embeddings, features, truth, target, places, *saved)
        cross_entropy, dice = torch.cat(losses, dim=1)[:, places]
        return cross_entropy, dice

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):  # gradients are float32, as the losses
            return *UncertainPointLosses.gradients(ctx, grads), None, None, None, None, None, None

    @staticmethod
    def gradients(ctx, grads: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Gradients of embeddings and features."""
        embeddings, features, truth, target, places, *saved = ctx.saved_tensors
        both, candidates = torch.stack(grads), features.shape[1]
        parts, grad_features = [embeddings.new_zeros(0, embeddings.shape[1])], torch.zeros_like(features)
        for chunk, selected, logits in zip(ctx.chunks, saved[::2], saved[1::2], strict=True):
            selected, logits = selected.long(), logits.detach().requires_grad_()
            sampled_truth = truth_at(truth, target[chunk.rows], selected, ctx.random)
            with torch.enable_grad():
                losses = point_losses(logits, sampled_truth, ctx.with_void)
            (grad,) = torch.autograd.grad(losses, logits, list(both[:, chunk.rows] * chunk.used))
            grad_logits = grad.new_zeros(*grad.shape[:-1], candidates)  # at all candidates
            grad_logits.scatter_(-1, selected, grad[..., : selected.shape[-1]])
            grad_logits[..., candidates - ctx.random :] = grad[..., selected.shape[-1] :]
            parts.append((grad_logits @ features[chunk.images]).flatten(0, 1))
            grad_features[chunk.images].baddbmm_(grad_logits.mT, embeddings[chunk.rows])
        return torch.cat(parts)[places], grad_features


def point_losses_per_mask(
    embeddings: Tensor,
    maps: Tensor,
    truth: ByteMasks,
    target: Tensor,
    counts: list[int],
    points: tuple[int, int, int],
    void: ByteMasks | None = None,
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
        void: void pixels of the images, which do not count.

    Returns:
        cross-entropy and dice loss, `[M]` each.
    """
    candidates, uncertain, random = points

    def chunk_losses(embeddings: Tensor, maps: Tensor, target: Tensor, images: Tensor) -> Tensor:
        masks = torch.einsum("bmd,bdhw->bmhw", embeddings, maps).flatten(0, 1)[:, None]
        with torch.no_grad():
            drawn = torch.rand(len(masks), candidates + random, 2, device=masks.device)
            logits = sample_masks(masks, drawn[:, :candidates])
            if void is not None:
                logits = logits.masked_fill(void.sample(images, drawn[:, :candidates]) > 0, VOID_LOGIT)
            selected = logits.abs().topk(uncertain, dim=1, largest=False, sorted=False).indices
            points = drawn.gather(1, selected[..., None].expand(-1, -1, 2))
            points = torch.cat((points, drawn[:, candidates:]), dim=1)
            point_truth = truth.sample(target, points)
        logits = sample_masks(masks, points)
        if void is not None:
            hidden = void.sample(images, points) > 0
            logits, point_truth = logits.masked_fill(hidden, VOID_LOGIT), point_truth.masked_fill(hidden, 0.0)
        return torch.stack(point_losses(logits, point_truth, void is not None))

    chunks, places = make_chunks(counts, maps[0, 0].numel(), maps.device)
    every = torch.arange(len(maps), device=maps.device)
    losses = [
        checkpoint(
            chunk_losses,
            embeddings[chunk.rows],
            maps[chunk.images],
            target[chunk.rows].flatten(),
            every[chunk.images, None].expand_as(chunk.rows).flatten(),
            use_reentrant=False,
        )
        for chunk in chunks
    ]
    if not losses:
        return embeddings.sum(1), embeddings.sum(1)
    cross_entropy, dice = torch.cat(losses, dim=1)[:, places]
    return cross_entropy, dice


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples `[M, P]` of masks `[M, 1, h, w]` at points `[M, P, 2]` in [0, 1], zero outside."""
    return F.grid_sample(masks, 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def truth_at(truth: Tensor, target: Tensor, selected: Tensor, random: int) -> Tensor:
    """Ground truth `[..., U + random]` of masks at their selected candidates, int64 `[..., U]`, and the random points.

    Args:
        truth: `[T, C]`.
        target: int64 `[...]`, row of each mask.
        selected: candidates of each mask.
        random: number of last candidates.
    """
    candidates = truth.shape[1]
    chosen = truth.take(selected + target[..., None] * candidates)
    return torch.cat((chosen, truth[:, candidates - random :][target]), dim=-1)
