"""Sharded training (FSDP), and unsharded copies of the model for evaluation and saving."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy


def prepare_sharding(accelerator: Accelerator) -> bool:
    """Whether the run uses FSDP. If so, parameters and gradients are kept in float32 and autocast sets the precision of
    computations, as without FSDP.

    Raises:
        ValueError: accelerate is configured for the first version of FSDP, or for `cpu_ram_efficient_loading`, which
            fails for models with running statistics.
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
def broadcast_buffers(model: nn.Module) -> None:
    """Copy the buffers (running statistics) of the first process to all processes: FSDP shards parameters only, and a
    checkpoint may take a buffer from any process."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)


@torch.no_grad()
def gather_parameters(sharded: nn.Module, unsharded: nn.Module) -> None:
    """Copy all parameters and buffers into an unsharded copy of the model. A collective call of all processes."""
    broadcast_buffers(sharded)
    unsharded.load_state_dict(get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True)))
