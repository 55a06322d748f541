"""What the labels of an image do not say has no loss: void pixels, classes that were not annotated, and objects that
were not labelled.

A matched query and a pilot query are told what they see, and that is true in every image. An unmatched query is told
that it sees no object, which holds only as far as the image is labelled. The functions here say how far.

Shape letters: B batch, R queries, K classes, P points.
"""

import torch
from torch import Tensor

VOID_LOGIT = -1e4  # mask logit at points on void: its losses and their gradients are exactly 0 in float32
MOSTLY = 0.5  # share of a predicted mask that decides where it lies


def hide_void(logits: Tensor, void: Tensor) -> Tensor:
    """Mask logits `[B, R, P]` with `VOID_LOGIT` at the points on void, bool `[B, P]`."""
    return logits.masked_fill(void[:, None], VOID_LOGIT)


def known_points(logits: Tensor) -> Tensor:
    """Number of points that are not void, `[..., 1]`, at least 1."""
    return (logits > VOID_LOGIT).sum(-1, keepdim=True).clamp(min=1)


def no_object_or_unknown(logits: Tensor, annotated: Tensor) -> Tensor:
    """Class logits whose last one stands for "no object, or any class that was not annotated".

    Its probability is the sum of theirs, so its cross-entropy is -log of that sum. Where all classes are annotated,
    the logits stay as they are.

    Args:
        logits: float `[..., B, R, K + 1]`, the last class is "no object".
        annotated: bool `[B, K]`.
    """
    unknown = torch.nn.functional.pad(~annotated, (0, 1))[:, None]  # [B, 1, K + 1]
    either = torch.nn.functional.pad(~annotated, (0, 1), value=True)[:, None]
    merged = logits.masked_fill(~either, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat((logits.masked_fill(unknown, -torch.inf)[..., :-1], merged), dim=-1)


def unmatched_weights(
    logits: Tensor, covered: Tensor, unjudged: Tensor | None, complete: Tensor | None, weight: float
) -> Tensor:
    """Factors on the loss of queries that have no target, by where their masks lie.

    A mask that lies on void or crowds for the most part is no error, as in panoptic quality: 0. In an image that is not
    complete, a mask on a labelled object is a duplicate: 1. Any other query may be one of an object that was not
    labelled: `weight`.

    Args:
        logits: mask logits `[B, R, P]` at points that are uniform in the image.
        covered: bool `[B, P]`, points on a labelled object.
        unjudged: bool `[B, P]`, points on void or crowds.
        complete: bool `[B]`.
        weight: in [0, 1].

    Returns:
        float `[B, R]`.
    """
    inside = (logits > 0).float()
    area = inside.sum(-1)

    def lies_on(region: Tensor) -> Tensor:
        return (inside @ region.float()[..., None])[..., 0] > MOSTLY * area

    factors = torch.ones_like(area)
    if complete is not None:
        factors = torch.where(~complete[:, None] & ~lies_on(covered), weight, factors)
    if unjudged is not None:
        factors = torch.where(lies_on(unjudged), 0.0, factors)
    return factors
