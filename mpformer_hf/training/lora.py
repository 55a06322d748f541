"""Low-rank adapters (LoRA, Hu et al. 2022) of the backbone, with peft."""

import copy
import logging

from torch import nn

from ..model.modeling_mpformer import MPFormerForUniversalSegmentation, MPFormerPixelLevelModule

logger = logging.getLogger(__name__)


def add_adapters(module: MPFormerPixelLevelModule, rank: int) -> None:
    """Add trainable adapters to all linear layers and 1x1 convolutions of the backbone, in place; everything else of it
    is frozen. At first the outputs do not change. Adapters that get no gradient are frozen too, with a warning: those
    of layers after the last feature map, or of layers whose weights are read but which are not called.

    Args:
        module: has the backbone.
        rank: of the adapters. Their output is not scaled (alpha = rank).

    Raises:
        ImportError: peft is missing; the message has the command.
        ValueError: the backbone has no such layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('lora_rank needs peft: pip install "mpformer-hf[lora]"') from error
    backbone = module.encoder
    layers = [name for name, layer in backbone.named_modules() if is_adapted(layer)]
    if not layers:
        raise ValueError("lora_rank: the backbone has no linear layers and no 1x1 convolutions.")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), backbone)
    module.find_unused()
    lost = sum("lora_A" in name for name in module.unused)
    if lost:
        logger.warning("lora_rank: adapters of %d of %d layers get no gradient and are not trained.", lost, len(layers))


def is_adapted(module: nn.Module) -> bool:
    """Whether a layer gets an adapter."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def merge_adapters(model: MPFormerForUniversalSegmentation) -> MPFormerForUniversalSegmentation:
    """A copy of the model with the adapters added to the weights, whose layers and names are those of a model without
    adapters. The model itself, if it has none."""
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return model
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge()
            merged.set_submodule(name, module.get_base_layer())
    return merged.requires_grad_(True)
