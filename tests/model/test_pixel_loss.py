"""The loss of the mask features: against its definition, point by point; what is not labelled has no part in it."""

import math

import pytest
import torch
from torch.nn import functional as F

from mpformer_hf.model.pixel_loss import TEMPERATURE, pixel_loss, segment_loss
from mpformer_hf.model.point_sampling import ByteMasks
from mpformer_hf.model.targets import Targets
from tests.tiny import batch_of, tiny_model


def test_it_is_the_mean_of_the_segments():
    """Each segment has the same weight, whatever its size; a point of two segments may be near either."""
    torch.manual_seed(0)
    features = F.normalize(torch.randn(7, 3), dim=-1)
    segments = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0], [0] * 7, [0, 0, 0, 0, 0, 0, 1]]).bool()
    used = [segments[0], segments[1], segments[3]]
    centres = [F.normalize(features[own].mean(0), dim=0) for own in used]
    total = weights = 0.0
    for point in range(7):
        exponentials = [math.exp(float(features[point] @ centre) / TEMPERATURE) for centre in centres]
        near = sum(e for e, own in zip(exponentials, used, strict=True) if own[point])
        weight = sum(1 / int(own.sum()) for own in used if own[point])
        total -= weight * math.log(near / sum(exponentials)) if weight else 0
        weights += weight
    assert float(segment_loss(features, segments)) == pytest.approx(total / weights, rel=1e-5)
    assert segment_loss(features, segments[:1]) is None, "one segment has nothing to be told from"


def targets_of(**known):
    masks = torch.zeros(3, 32, 32, dtype=torch.uint8)
    masks[0, :10, :10], masks[1, 20:, 20:], masks[2, 4:20, 4:20] = 1, 1, 1
    return Targets(masks, torch.zeros(3, dtype=torch.int64), [2, 1], **known)


def loss_of(features, targets):
    return pixel_loss(features, targets, ByteMasks(targets.masks), torch.Generator().manual_seed(0))


def test_void_and_unlabelled_background_have_no_part():
    features = torch.randn(2, 4, 8, 8)
    void = torch.zeros(2, 32, 32, dtype=torch.uint8)
    void[:, :, 12:] = 1
    masks = targets_of().masks.clone()
    masks[:, :, 12:] = 0
    targets = Targets(masks, torch.zeros(3, dtype=torch.int64), [2, 1], void=void)
    changed = features.clone()
    changed[:, :, :, 5:] += torch.randn(2, 4, 8, 3)  # from column 18 on: bilinear samples before 12 do not read it
    assert loss_of(features, targets) == loss_of(changed, targets) != loss_of(features, targets_of())
    changed = features.clone()
    changed[0, :, 4, 1] += 5  # background of the first image
    incomplete = targets_of(complete=torch.tensor([False, True]))
    assert loss_of(features, incomplete) == loss_of(changed, incomplete)
    assert loss_of(features, targets_of()) != loss_of(changed, targets_of())
    nothing = Targets(torch.zeros(0, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), [0, 0])
    assert loss_of(features, nothing) == 0


def test_it_lowers_with_training_and_changes_nothing_without_its_weight():
    torch.manual_seed(0)
    model, batch = tiny_model(num_labels=3).train(), batch_of([3], (64, 64), num_labels=3)
    plain = model(**batch, generator=torch.Generator().manual_seed(0))
    assert "loss_pixels" not in plain.loss_dict
    model.config.pixel_loss_weight = 2.0
    output = model(**batch, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(output.loss_dict[name], value) for name, value in plain.loss_dict.items())
    torch.testing.assert_close(output.loss, plain.loss + output.loss_dict["loss_pixels"])
    pixels = model.model.pixel_level_module.decoder.mask_projection.weight
    grads = torch.autograd.grad(
        output.loss_dict["loss_pixels"], [pixels, model.class_predictor.weight], allow_unused=True
    )
    assert grads[0].abs().sum() > 0 and grads[1] is None, "features only"
