"""AdamW parameter groups and learning-rate schedules of the official recipes."""

import re
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, LinearLR, LRScheduler, MultiStepLR, PolynomialLR
from transformers import PreTrainedModel

from .arguments import OptimizationArguments

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
BACKBONE = "pixel_level_module.encoder."
LAYER = re.compile(r"\.(?:layer|layers|blocks)\.(\d+)\.")  # of a ViT, of transformers or timm


def parameter_groups(model: PreTrainedModel, args: OptimizationArguments) -> list[dict]:
    """Parameter groups by learning rate (backbone or not) and weight decay.

    Norms, embeddings and Swin's position tables have no weight decay; the pixel decoder's `level_embed`, which is not
    an `nn.Embedding`, has. Frozen parameters are left out. With `layer_decay` d, layer i of n of a ViT learns at
    d ** (n - i) of the backbone's rate, its embeddings at d ** (n + 1) (BEiT, Bao et al. 2022, appendix).

    Raises:
        ValueError: `layer_decay` is set and the backbone is not a ViT.
    """
    decay_of = layer_decays(model, args.layer_decay)
    groups: dict[tuple[float, float], list] = {}
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            no_decay = isinstance(module, (*NORMS, nn.Embedding)) or name in (
                "relative_position_bias_table",
                "position_embeddings",
            )
            in_backbone = BACKBONE in f"{module_name}."
            lr = args.learning_rate
            if in_backbone:
                lr *= args.backbone_lr_multiplier * decay_of(f"{module_name}.{name}")
            groups.setdefault((lr, 0.0 if no_decay else args.weight_decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def layer_decays(model: PreTrainedModel, decay: float) -> Callable[[str], float]:
    """Factor on the learning rate of a parameter of the backbone, by its name.

    Raises:
        ValueError: the backbone has no single stack of layers.
    """
    if decay == 1:
        return lambda name: 1.0
    layers = {
        int(found[1]) for name, _ in model.named_parameters() if BACKBONE in name and (found := LAYER.search(name))
    }
    last = max(layers, default=0)
    if model.model.pixel_level_module.feature_pyramid is None or last == 0:
        raise ValueError("layer_decay needs a ViT backbone: one stack of layers.")

    def factor(name: str) -> float:
        if found := LAYER.search(name):
            return decay ** (last - int(found[1]))
        return decay ** (last + 1) if "embed" in name else 1.0  # norms after the layers: the full rate

    return factor


def build_optimizer(model: PreTrainedModel, args: OptimizationArguments, device: torch.device) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; fused, in one kernel, if the model is trained on a CUDA device."""
    fused = True if device.type == "cuda" else None
    groups = parameter_groups(model, args)
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.adam_beta2), fused=fused)


def build_scheduler(optimizer: torch.optim.Optimizer, args: OptimizationArguments, total: int) -> LRScheduler:
    """Learning-rate schedule over `total` optimizer steps."""
    schedule: LRScheduler
    if args.lr_schedule == "step":
        schedule = MultiStepLR(optimizer, [round(share * total) for share in args.lr_milestones], gamma=0.1)
    elif args.lr_schedule == "poly":
        schedule = PolynomialLR(optimizer, total, args.poly_power)
    else:
        schedule = ConstantLR(optimizer, factor=1.0)
    if args.warmup_steps <= 1:
        return schedule
    warmup = LinearLR(optimizer, start_factor=1 / args.warmup_steps, total_iters=args.warmup_steps - 1)
    return ChainedScheduler([warmup, schedule])
