"""Models whose weights are spread over processes (FSDP), and the whole ones that are evaluated and saved."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor


def prepare_sharding(accelerator: Accelerator) -> bool:
    """Whether the run spreads its weights; then they and their gradients stay float32 and the arithmetic is under
    autocast, as without.

    Raises:
        ValueError: accelerate is configured for the first version of FSDP, or to load the model in one process only,
            which it cannot do with running statistics.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return False
    if not accelerator.is_fsdp2:
        raise ValueError("fsdp_config: fsdp_version must be 2, see training/accelerate/sharded.yaml.")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_config: fsdp_cpu_ram_efficient_loading must be false, see training/accelerate/sharded.yaml."
        )
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return True


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers, running statistics for one: only weights are spread, and a checkpoint
    takes each buffer from any process."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)


@torch.no_grad()
def gather_weights(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy all weights and buffers into the same model in one piece; all processes call it together."""
    share_buffers(sharded)
    parts = sharded.state_dict()
    for name, tensor in whole.state_dict().items():
        part = parts[name]
        tensor.copy_(part.full_tensor() if isinstance(part, DTensor) else part)
