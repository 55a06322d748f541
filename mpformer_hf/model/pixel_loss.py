"""A loss of the mask features alone, for training: the pixels of a segment are near its mean feature and far from those
of the other segments of their image. That is the instance discrimination of MaX-DeepLab (Wang et al. 2021, section
3.4), here with the background as a segment too. Decoder and queries have no part in it, so it teaches the features from
the first step on. The model has no parameter for it, and inference does not change.

Shape letters: B batch, D mask feature channels, T targets of an image, P points, R segments with points.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .point_sampling import ByteMasks, points_on_void, sample_features, sample_targets
from .targets import Targets

POINTS, TEMPERATURE = 1024, 0.3


def pixel_loss(
    mask_features: Tensor, targets: Targets, truth: ByteMasks, generator: torch.Generator | None = None
) -> Tensor:
    """The loss of a batch, a mean over its images with at least two segments; 0 without any.

    Args:
        mask_features: float32 `[B, D, h, w]`.
        targets: ground truth of the batch. Void has no part in it, and the background has none where objects may be
            without label.
        truth: its masks.
        generator: source of the points, on the device of the features.

    Returns:
        scalar.
    """
    device = mask_features.device
    points = torch.rand(len(mask_features), POINTS, 2, device=device, generator=generator)
    features = F.normalize(sample_features(mask_features, points), dim=-1)  # [B, P, D]
    inside = sample_targets(truth, targets, points) > 0.5  # [T of the batch, P]
    void, losses = points_on_void(targets, points), []
    for image, masks in enumerate(inside.split(targets.counts)):
        known = torch.ones_like(masks[:0].any(0)) if void is None else ~void[image]
        rest = ~masks.any(0, keepdim=True) & known & is_labelled(targets, image)
        loss = segment_loss(features[image], torch.cat((masks & known, rest)))
        if loss is not None:
            losses.append(loss)
    return torch.stack(losses).mean() if losses else mask_features.sum() * 0


def is_labelled(targets: Targets, image: int) -> bool:
    """Whether all objects of an image have labels, so that the rest is background."""
    complete = targets.complete is None or bool(targets.complete[image])
    return complete and (targets.annotated is None or bool(targets.annotated[image].all()))


def segment_loss(features: Tensor, segments: Tensor) -> Tensor | None:
    """-log of the probability that a point is of its segments, where all segments have the same weight; None if fewer
    than two have points.

    Args:
        features: `[P, D]`, of length 1.
        segments: bool `[R, P]`.
    """
    segments = segments[segments.any(1)].float()
    if len(segments) < 2:
        return None
    share = segments / segments.sum(1, keepdim=True)  # weights of the points of each segment
    centres = F.normalize(share @ features, dim=-1)
    log_probability = (features @ centres.T / TEMPERATURE).log_softmax(-1)  # [P, R]
    own = torch.logsumexp(log_probability.masked_fill(segments.T == 0, -torch.inf), -1)
    weight = share.sum(0)
    return -(own.masked_fill(weight == 0, 0.0) * weight).sum() / weight.sum()
