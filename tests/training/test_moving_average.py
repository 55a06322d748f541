"""Tests of `moving_average`."""

import torch
from torch import nn

from mpformer_hf.training.moving_average import MovingAverage


def test_a_moving_average_has_the_weights_of_its_formula():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average, expected = MovingAverage(model, 0.75, torch.device("cpu")), None
    for step in range(1, 4):
        model(torch.randn(4, 2))  # running statistics and the counter of batches
        with torch.no_grad():
            model[0].weight += torch.randn(3, 2)
        average.update(model, first=step == 1)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        expected = state if step == 1 else {name: 0.75 * expected[name] + 0.25 * state[name] for name in state}
        expected["1.num_batches_tracked"] = state["1.num_batches_tracked"]
    torch.testing.assert_close(average.module.state_dict(), expected)
