"""Multi-scale deformable attention as two Triton kernels, for GPUs: forward, and all gradients in one pass.

A program handles several queries of one head. It reads the values of a sampling point's four corners and keeps their
weighted sum in registers, so that samples never reach memory. Values may be float32, bfloat16 or float16; positions are
float32, and so are all sums. The operators are registered with torch, so that `torch.compile` and `torch.export` know
their shapes. `TRITON_INTERPRET=1` runs them on the CPU, for tests.

Shape letters are those of `deformable_attention.py`: B batch, S cells of all levels, N heads, D channels per head, Q
queries, L levels, P points. M: queries of a program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # queries x channels of a program
WARPS = 4


@triton.jit
def locate(x, y, at, inside, height, width):
    """Upper left corner int32 `[M]`, fractions, and whether any corner is on the map; zeros if none is. Positions that
    are NaN are on no map, but their fraction is NaN, and so is the result."""
    px = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - 0.5
    py = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) - 0.5
    left, top = tl.floor(px), tl.floor(py)
    near = inside & (px > -1) & (px < width) & (py > -1) & (py < height)
    fx = tl.where(near, px - left, tl.where(px == px, 0.0, px))
    fy = tl.where(near, py - top, tl.where(py == py, 0.0, py))
    return tl.where(near, left, 0.0).to(tl.int32), tl.where(near, top, 0.0).to(tl.int32), fx, fy, near


@triton.jit
def corner(row, column, near, height, width, channels, N: tl.constexpr, D: tl.constexpr):
    """Offsets `[M, D]` of the values of a corner in a map, and which of them exist."""
    there = near & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    offsets = (row * width + column)[:, None] * (N * D) + channels[None, :]
    return offsets, there[:, None] & (channels[None, :] < D)


@triton.jit
def forward_kernel(
    value,  # [B, S, N, D]
    x,  # [B * Q, N, L * P]
    y,
    weights,
    out,  # [B * Q, N * D]
    shapes,  # L pairs of height and width
    queries,  # Q
    cells,  # S
    N: tl.constexpr,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,  # next power of two
    L: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
):
    query, head, image = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside, channels = query < queries, tl.arange(0, D_BLOCK)
    row = (image * queries + query) * N + head
    total = tl.zeros((M, D_BLOCK), tl.float32)
    map_ = value + (image * cells * N + head) * D
    for level in tl.static_range(L):
        height, width = shapes[2 * level], shapes[2 * level + 1]
        for point in range(P):  # not unrolled: fewer registers, more programs at once
            at = row * (L * P) + level * P + point
            left, top, fx, fy, near = locate(x, y, at, inside, height, width)
            weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
            for k in tl.static_range(4):
                down, right = k // 2, k % 2
                share = (fy if down else 1 - fy) * (fx if right else 1 - fx) * weight
                offsets, there = corner(top + down, left + right, near, height, width, channels, N, D)
                total += share[:, None] * tl.load(map_ + offsets, mask=there, other=0.0).to(tl.float32)
        map_ += height * width * N * D
    kept = inside[:, None] & (channels[None, :] < D)
    tl.store(out + row[:, None] * D + channels[None, :], total.to(out.dtype.element_ty), mask=kept)


@triton.jit
def backward_kernel(
    grad,  # [B * Q, N * D]
    value,
    x,
    y,
    weights,
    grad_value,  # float32 [B, S, N, D], zeros
    grad_x,  # float32 [B * Q, N, L * P]
    grad_y,
    grad_weights,
    shapes,
    queries,
    cells,
    N: tl.constexpr,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
):
    query, head, image = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside, channels = query < queries, tl.arange(0, D_BLOCK)
    row = (image * queries + query) * N + head
    kept = inside[:, None] & (channels[None, :] < D)
    g = tl.load(grad + row[:, None] * D + channels[None, :], mask=kept, other=0.0).to(tl.float32)
    start = (image * cells * N + head) * D
    for level in tl.static_range(L):
        height, width = shapes[2 * level], shapes[2 * level + 1]
        for point in range(P):  # not unrolled: fewer registers, more programs at once
            at = row * (L * P) + level * P + point
            left, top, fx, fy, near = locate(x, y, at, inside, height, width)
            weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
            to_weight, to_x, to_y = tl.zeros((M,), tl.float32), tl.zeros((M,), tl.float32), tl.zeros((M,), tl.float32)
            for k in tl.static_range(4):
                down, right = k // 2, k % 2
                vertical, horizontal = fy if down else 1 - fy, fx if right else 1 - fx
                offsets, there = corner(top + down, left + right, near, height, width, channels, N, D)
                values = tl.load(value + start + offsets, mask=there, other=0.0).to(tl.float32)
                product = tl.sum(g * values, axis=1)
                to_weight += vertical * horizontal * product
                to_x += vertical * product * (1 if right else -1)
                to_y += horizontal * product * (1 if down else -1)
                share = (vertical * horizontal * weight)[:, None] * g
                tl.atomic_add(grad_value + start + offsets, share, mask=there, sem="relaxed")
            tl.store(grad_weights + at, to_weight, mask=inside)
            tl.store(grad_x + at, weight * to_x, mask=inside)
            tl.store(grad_y + at, weight * to_y, mask=inside)
        start += height * width * N * D


def launch_options(value: Tensor, x: Tensor, shapes: list[int]) -> tuple[tuple[int, int, int], dict]:
    """Grid and constants of both kernels."""
    B, S, N, D = value.shape
    queries, levels, d_block = x.shape[0] // max(B, 1), len(shapes) // 2, triton.next_power_of_2(D)
    m = max(1, BLOCK // d_block)
    constants = {"queries": queries, "cells": S, "N": N, "D": D, "D_BLOCK": d_block}
    constants |= {"L": levels, "P": x.shape[2] // levels, "M": m, "num_warps": WARPS}
    return (triton.cdiv(queries, m), N, B), constants


@torch.library.custom_op("mpformer::deformable_sampling", mutates_args=())
def fused_sampling(value: Tensor, shapes: list[int], x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """`deformable_sampling` in one kernel.

    Args:
        value: `[B, S, N, D]` float32, bfloat16 or float16, on a GPU.
        shapes: height and width of each level, one after the other.
        x, y, weights: float32 `[B * Q, N, L * P]`.

    Returns:
        `[B * Q, N * D]`, dtype of `value`.
    """
    value, x, y, weights = (t.contiguous() for t in (value, x, y, weights))
    out = value.new_empty(x.shape[0], value.shape[2] * value.shape[3])
    grid, constants = launch_options(value, x, shapes)
    if out.numel():
        forward_kernel[grid](value, x, y, weights, out, tuple(shapes), **constants)
    return out


@torch.library.custom_op("mpformer::deformable_sampling_backward", mutates_args=())
def fused_sampling_backward(
    grad: Tensor, value: Tensor, shapes: list[int], x: Tensor, y: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `fused_sampling` for value, x, y and weights, in their dtypes; sums are float32."""
    grad, value, x, y, weights = (t.contiguous() for t in (grad, value, x, y, weights))
    to_value = torch.zeros_like(value, dtype=torch.float32)
    to_x, to_y, to_weights = (torch.empty_like(t, dtype=torch.float32) for t in (x, y, weights))
    grid, constants = launch_options(value, x, shapes)
    if x.numel():
        backward_kernel[grid](grad, value, x, y, weights, to_value, to_x, to_y, to_weights, tuple(shapes), **constants)
    return to_value.to(value.dtype), to_x.to(x.dtype), to_y.to(y.dtype), to_weights.to(weights.dtype)


@fused_sampling.register_fake
def _(value: Tensor, shapes: list[int], x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(x.shape[0], value.shape[2] * value.shape[3])


@fused_sampling_backward.register_fake
def _(grad: Tensor, value: Tensor, shapes: list[int], x: Tensor, y: Tensor, weights: Tensor):
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (value, x, y, weights))


def save_inputs(ctx, inputs, output) -> None:
    value, ctx.shapes, x, y, weights = inputs
    ctx.save_for_backward(value, x, y, weights)


def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, x, y, weights = ctx.saved_tensors
    to_value, to_x, to_y, to_weights = fused_sampling_backward(grad, value, ctx.shapes, x, y, weights)
    return to_value, None, to_x, to_y, to_weights


fused_sampling.register_autograd(backward, setup_context=save_inputs)
