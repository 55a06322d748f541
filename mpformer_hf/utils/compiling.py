"""Compilation of a model, whole or by block."""

from accelerate.utils import compile_regions_deepspeed
from torch import nn


def compile_model(model: nn.Module, part: str) -> None:
    """Compile in place; names of modules and parameters stay.

    Args:
        model: a module.
        part: `"none"`; `"model"`, as one graph; or `"blocks"`, the layers of backbone and decoders one by one, which
            compiles sooner, since layers of equal shapes share their code.
    """
    if part == "model":
        model.compile()
    elif part == "blocks":
        compile_regions_deepspeed(model)  # unlike `compile_regions`, in place
