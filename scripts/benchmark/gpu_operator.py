"""Deformable attention of one encoder layer: bytes and launches that it needs, and its time."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from mpformer_hf.deformable_attention import deformable_sampling, has_triton, use_implementation

from .measuring import seconds
from .models import DEVICE

REPEATS = 20 if DEVICE.type == "cuda" else 1
HEADS, CHANNELS, LEVELS, POINTS = 8, 32, 3, 4


class Traffic(TorchDispatchMode):
    """Counts operators that are not views, and the bytes of their operands and results."""

    def __init__(self):
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and "empty" not in str(function):
            self.launches += 1
            touched = [x for x in pytree.tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in touched)
        return result


def map_shapes(side: int) -> list[tuple[int, int]]:
    """(height, width) of the levels of a square image."""
    return [(side // stride, side // stride) for stride in (32, 16, 8)]


def make_inputs(
    side: int, batch_size: int, dtype: torch.dtype, device: torch.device, relative: bool
) -> tuple[Tensor, ...]:
    """Value, x, y and weights of `deformable_sampling` that need gradients; positions in cells, or `relative` to the
    size of the level."""
    shapes = map_shapes(side)
    cells, points = sum(h * w for h, w in shapes), LEVELS * POINTS
    x, y, weights = (torch.rand(batch_size * cells, HEADS, points, device=device) for _ in range(3))
    for level, (height, width) in enumerate(shapes):
        own = slice(level * POINTS, level * POINTS + POINTS)
        if not relative:
            x[..., own], y[..., own] = x[..., own] * width, y[..., own] * height
    value = torch.randn(batch_size, cells, HEADS, CHANNELS, device=device, dtype=dtype)
    return tuple(tensor.requires_grad_() for tensor in (value, x, y, weights))


def with_grid_sample(value: Tensor, shapes: list[tuple[int, int]], x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """transformers' operator, on the same arguments with relative positions."""
    batch_size = value.shape[0]
    split = (batch_size, -1, HEADS, LEVELS, POINTS)
    places = torch.stack((x, y), -1).view(*split, 2)
    return multi_scale_deformable_attention(value, shapes, places, weights.view(split))


def cases(fused: bool) -> Iterator[tuple[str, Callable, torch.dtype]]:
    """Name, operator and dtype of the values; the implementation is chosen while a case is used."""
    try:
        for name, operator, dtype in (
            ("transformers, float32", with_grid_sample, torch.float32),
            ("torch, float32", deformable_sampling, torch.float32),
            ("fused, float32", deformable_sampling, torch.float32),
            ("fused, bfloat16", deformable_sampling, torch.bfloat16),
        ):
            if fused or "fused" not in name:
                use_implementation("fused" if "fused" in name else "torch")
                yield name, operator, dtype
    finally:
        use_implementation("auto")


def traffic_rows(side: int, batch_size: int) -> dict:
    """Gigabytes and launches of forward and backward pass, counted on tensors without content: each operator reads its
    operands and writes its results once. Caches, and what gathers and atomic additions read several times, are not in
    this model."""
    rows, shapes = {}, map_shapes(side)
    for name, operator, dtype in cases(has_triton()):
        inputs = make_inputs(side, batch_size, dtype, torch.device("meta"), operator is with_grid_sample)
        with Traffic() as forward:
            out = operator(inputs[0], shapes, *inputs[1:])
        with Traffic() as backward:
            torch.autograd.grad(out, inputs, torch.empty_like(out))
        rows[name] = {
            f"{kind}_{unit}": value
            for kind, traffic in (("forward", forward), ("backward", backward))
            for unit, value in (("gb", round(traffic.bytes / 1e9, 2)), ("launches", traffic.launches))
        }
    return rows


def repeat(call: Callable[[], object]) -> None:
    """Several calls, so that the time of the host's launches does not count."""
    for _ in range(REPEATS):
        call()


def time_operator(work: Callable, inputs: tuple[Tensor, ...], rounds: int, bandwidth: float) -> dict:
    """Milliseconds of forward and backward pass, and the least bytes per second that they need: value, x, y, weights
    and result once; in the backward pass value, x, y, weights and their gradients, and that of the result."""
    out = work()
    grad = torch.ones_like(out)
    operands, result = (sum(x.numel() * x.element_size() for x in tensors) for tensors in (inputs, (out,)))
    row = {}
    for kind, call, bytes_ in (
        ("forward", work, operands + result),
        ("backward", lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True), 2 * operands + result),
    ):
        call()
        median = statistics.median(seconds(partial(repeat, call)) / REPEATS for _ in range(rounds))
        row[f"{kind}_ms"] = round(1000 * median, 3)
        row[f"{kind}_gb_per_second"] = round(bytes_ / median / 1e9, 1)
        row[f"{kind}_share_of_bandwidth"] = round(bytes_ / median / bandwidth, 3)
    return row


def operator_rows(side: int, batch_size: int, rounds: int) -> dict:
    """Times of transformers' operator and ours, beside the rate of a copy."""
    copied = torch.empty(2**26, device=DEVICE)  # 256 MiB
    copied.clone()
    bandwidth = 2 * copied.numel() * 4 / statistics.median(seconds(copied.clone) for _ in range(rounds))
    rows, shapes = {"copy": {"gb_per_second": round(bandwidth / 1e9, 1)}}, map_shapes(side)
    for name, operator, dtype in cases(has_triton() and DEVICE.type == "cuda"):
        inputs = make_inputs(side, batch_size, dtype, DEVICE, operator is with_grid_sample)
        work = lambda inputs=inputs, operator=operator: operator(inputs[0], shapes, *inputs[1:])  # noqa: E731
        rows[name] = time_operator(work, inputs, rounds, bandwidth)
    return rows
