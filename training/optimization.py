"""AdamW groups and learning-rate schedules of the official recipes."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .arguments import OptimizationArguments

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
BACKBONE = "pixel_level_module.encoder."


def parameter_groups(model: nn.Module, args: OptimizationArguments) -> list[dict]:
    """Up to four groups: backbone or not, decayed or not.

    Norms, embeddings and Swin's position tables are not decayed; the pixel decoder's `level_embed`, a bare parameter,
    is. Frozen parameters are left out.
    """
    groups: dict[tuple[float, float], list] = {}
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            plain = isinstance(module, (*NORMS, nn.Embedding)) or name in (
                "relative_position_bias_table",
                "position_embeddings",
            )
            in_backbone = BACKBONE in f"{module_name}."
            lr = args.learning_rate * (args.backbone_lr_multiplier if in_backbone else 1.0)
            groups.setdefault((lr, 0.0 if plain else args.weight_decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def build_optimizer(model: nn.Module, args: OptimizationArguments) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, args), lr=args.learning_rate)


def lr_factor(step: int, total: int, args: OptimizationArguments) -> float:
    """Factor on the learning rate after `step` of `total` optimizer steps."""
    warmup = min(1.0, (step + 1) / args.warmup_steps) if args.warmup_steps else 1.0
    if args.lr_schedule == "poly":
        return warmup * (1 - min(step, total) / total) ** args.poly_power
    if args.lr_schedule == "step":
        return warmup * 0.1 ** sum(step >= round(share * total) for share in args.lr_milestones)
    return warmup


def build_scheduler(optimizer: torch.optim.Optimizer, args: OptimizationArguments, total: int) -> LambdaLR:
    """Schedule over `total` optimizer steps.

    Raises:
        ValueError: unknown schedule.
    """
    if args.lr_schedule not in ("step", "poly", "constant"):
        raise ValueError(f"lr_schedule must be step, poly or constant, got {args.lr_schedule!r}.")
    return LambdaLR(optimizer, lambda step: lr_factor(step, total, args))
