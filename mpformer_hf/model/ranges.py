"""Ranges of numbers in interval notation, such as `[1, inf)`: declared once, checked for flags, recipes and config."""

import math
from numbers import Integral, Real
from typing import Any

MASK_NOISES = ("shift", "scale", "shift_scale", "patch", "box", "outline")  # drawn once for each pilot query
PILOT_NOISES = ("point", "shift", "scale", "shift_scale", "patch", "dropout", "box", "outline")
VOID_IN_LOSS = ("ignored", "background")
RANGES = {  # of configuration fields; the trainer's flags of the same names refer to them
    "pilot_groups": "[1, inf)",
    "pilot_query_budget": "[1, inf)",
    "pilot_layers": "[0, inf)",
    "pilot_noise_scale": "[0, inf)",
    "pilot_label_noise": "[0, 1]",
    "pilot_loss_weight": "[0, inf)",
    "incomplete_no_object_weight": "[0, 1]",
    "num_queries": "[1, 10000]",
    "hidden_dim": "[1, 65536]",
    "feature_size": "[1, 65536]",
    "mask_feature_size": "[1, 65536]",
    "encoder_feedforward_dim": "[1, 1048576]",
    "dim_feedforward": "[1, 1048576]",
    "num_attention_heads": "[1, 1024]",
    "encoder_layers": "[1, 100]",
    "decoder_layers": "[2, 101]",
    "dropout": "[0, 1)",
    "train_num_points": "[1, 1000000]",
    "oversample_ratio": "[1, 100]",
    "importance_sample_ratio": "[0, 1]",
    "no_object_weight": "[0, inf)",
    "class_weight": "[0, inf)",
    "mask_weight": "[0, inf)",
    "dice_weight": "[0, inf)",
}


def check_range(name: str, value, interval: str) -> None:
    """Check a number or every number of a list. None is always valid: it means "not set".

    Args:
        name: for the message.
        value: a number, a list of numbers, or None.
        interval: lower and upper bound; `[` and `]` include the bound, `(` and `)` do not.

    Raises:
        ValueError: a value is not a number, is NaN, or is outside; the message names it.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for number in value if isinstance(value, (list, tuple)) else [value]:
        if number is None:
            continue
        if not isinstance(number, Real):
            raise ValueError(f"{name} must be a number, got {number!r}.")
        real: Any = number  # `Real` has no comparisons in its annotations
        above = real >= low if interval[0] == "[" else real > low
        below = real <= high if interval[-1] == "]" else real < high
        if not (above and below):  # also for NaN
            raise ValueError(f"{name} must be {describe_range(interval)}, got {number}.")


def describe_range(interval: str) -> str:
    """`[1, inf)` -> "at least 1"; `(0, 1]` -> "greater than 0 and at most 1"."""
    low, high = (bound.strip() for bound in interval[1:-1].split(","))
    parts = []
    if math.isfinite(float(low)):
        parts.append(f"at least {low}" if interval[0] == "[" else f"greater than {low}")
    if math.isfinite(float(high)):
        parts.append(f"at most {high}" if interval[-1] == "]" else f"less than {high}")
    return " and ".join(parts) or "finite"


def is_color(color) -> bool:
    """Whether a value is a list of three integers from 0 to 255."""
    is_list = isinstance(color, (list, tuple)) and len(color) == 3
    return is_list and all(isinstance(x, Integral) and 0 <= int(x) <= 255 for x in color)
