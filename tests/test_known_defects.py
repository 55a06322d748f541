"""Defects of the peers that are found nowhere else in these tests: one collective per step, masks in bytes, void."""

import torch

from mpformer_hf.criterion import MPFormerCriterion, Prediction
from mpformer_hf.point_sampling import ByteMasks
from mpformer_hf.targets import collect_targets
from tests.tiny import random_targets, tiny_config, tiny_model


def test_a_step_has_one_collective(monkeypatch):
    torch.manual_seed(0)
    model, (masks, labels) = tiny_model().train(), random_targets([2, 3])
    reduced = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: reduced.append(tensor.shape))
    output = model(pixel_values=torch.randn(2, 3, 64, 96), mask_labels=masks, class_labels=labels)
    assert len(output.loss_dict) == 6 * model.config.decoder_layers and reduced == [torch.Size([3])]


def test_ground_truth_stays_in_bytes():
    masks, labels = random_targets([2, 3])
    targets = collect_targets([mask.float() for mask in masks], labels, (64, 96))
    assert targets.masks.dtype == torch.uint8 and targets.masks.shape == (5, 64, 96)
    assert ByteMasks(targets.masks).windows.dtype == torch.uint8


def test_void_is_background_as_officially():
    """A prediction pays for pixels that no mask covers."""
    criterion = MPFormerCriterion(tiny_config(mask_piloting=False, train_num_points=2048))
    truth = torch.zeros(1, 32, 32, dtype=torch.uint8)
    truth[:, :16] = 1
    targets = collect_targets([truth], [torch.tensor([1])], (32, 32))
    features = torch.stack((torch.full((8, 8), 8.0), torch.full((8, 8), 8.0)))[None]
    features[0, 0, 4:] = -8  # the first channel stops where the mask does, the second goes on into void
    losses = []
    for embedding in ([1.0, 0.0], [0.0, 1.0]):
        prediction = Prediction(torch.zeros(1, 1, 5), torch.tensor([[embedding]]))
        losses.append(criterion([prediction], features, targets)["loss_mask"].item())
    assert losses[1] > 5 * losses[0]
