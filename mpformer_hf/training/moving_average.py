"""Moving average of the weights."""

import copy

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average of all parameters and buffers, in a copy of the model.

    Other than `torch.optim.swa_utils.AveragedModel`, an update does not make the host wait for the device, and buffers
    of integers are copied.

    Args:
        model: where the average starts.
        decay: share of the old average in an update, in [0, 1).
        device: of the average.
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device):
        self.module, self.decay = copy.deepcopy(model).to(device), decay

    @torch.no_grad()
    def update(self, model: nn.Module, first: bool) -> None:
        """Add the current weights of a model; with `first` they replace the average."""
        pairs = list(zip(state_tensors(self.module), state_tensors(model), strict=True))
        weighted = [] if first else [pair for pair in pairs if pair[0].is_floating_point()]
        if weighted:
            averages, current = map(list, zip(*weighted, strict=True))
            torch._foreach_lerp_(averages, current, 1 - self.decay)
        for average, value in pairs:
            if first or not average.is_floating_point():
                average.copy_(value, non_blocking=True)


def state_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]
