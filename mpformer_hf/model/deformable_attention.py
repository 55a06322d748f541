"""Multi-scale deformable attention: the one operator of the pixel decoder.

Sampling is a weighted gather: each bilinear corner of each sampling point is a row of the value table with the weight
(bilinear weight) x (attention weight). `embedding_bag` computes the sum without storing the samples. On NVIDIA GPUs the
kernels of `deformable_triton.py` do the same in one pass.
"""

import math
import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMPLEMENTATIONS = ("auto", "fused", "torch")
GPU_NUMBERS = 2**29  # rows x columns of one `embedding_bag`


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


chosen = "auto"  # set by `use_implementation`


def use_implementation(name: str) -> None:
    """Choose the operator of all models of this process; so does the environment variable
    `MPFORMER_DEFORMABLE_ATTENTION`.

    Args:
        name: `"fused"`, the Triton kernels; `"torch"`, operators of torch; `"auto"`, the kernels on CUDA devices with
            Triton.

    Raises:
        ValueError: the name is unknown, or Triton is missing.
    """
    global chosen
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"The implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {name!r}.")
    if name == "fused" and not has_triton():
        raise ValueError("The fused implementation needs Triton: pip install triton")
    chosen = name


VARIABLE = "MPFORMER_DEFORMABLE_ATTENTION"
try:
    use_implementation(os.environ.get(VARIABLE, "auto"))  # now: compiled code cannot choose
except ValueError as error:
    raise ValueError(f"The environment variable {VARIABLE}: {error}") from error


def is_fused(value: Tensor) -> bool:
    """Whether the Triton kernels are used for values of this device and dtype."""
    if chosen == "torch" or value.dtype == torch.float64 or torch.compiler.is_exporting():
        return False
    return chosen == "fused" or (value.device.type == "cuda" and torch.version.hip is None and has_triton())


def weighted_row_sum(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: `out[m] = sum_k weights[m, k] * table[rows[m, k]]`.

    Args:
        table: `[R, D]` float.
        rows: `[M, K]`, int32 or int64.
        weights: `[M, K]`, dtype of `table`.

    Returns:
        `[M, D]`.
    """
    # `embedding_bag` would be exported as a loop, and `grid_sample` is wrong in some runtimes.
    if torch.compiler.is_exporting():
        return (table.index_select(0, rows.flatten()).view(*rows.shape, -1) * weights[..., None]).sum(1)
    differentiable = torch.is_grad_enabled() and (table.requires_grad or weights.requires_grad)
    if differentiable and table.device.type == "cpu" and not torch.compiler.is_compiling():
        return WeightedRowSum.apply(table, rows, weights)
    most = GPU_NUMBERS // max(32, table.shape[1])  # a warp has 32 columns
    if table.device.type != "cpu" and rows.numel() > most:
        return sum_in_parts(table, rows, weights, most)
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


def sum_in_parts(table: Tensor, rows: Tensor, weights: Tensor, entries: int) -> Tensor:
    """`weighted_row_sum`, same shapes, at most `entries` of the M * K rows at a time. The backward pass of
    `embedding_bag` on CUDA reads outside its tensors where the number of rows times their length is 2**31 or more, and
    stores all rows."""
    bags = max(1, entries // rows.shape[1])
    parts = zip(rows.split(bags), weights.split(bags), strict=True)
    return torch.cat([F.embedding_bag(r, table, mode="sum", per_sample_weights=w) for r, w in parts])


class WeightedRowSum(torch.autograd.Function):
    """`weighted_row_sum` with a custom backward pass for the CPU: both gradients are sparse matrix products. Forward
    and backward take 0.4 times as long as with that of `embedding_bag`.
    """

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.length = len(table)
        ctx.save_for_backward(table if ctx.needs_input_grad[2] else None, rows, weights)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows, weights = ctx.saved_tensors
        grad = grad.contiguous()
        grad_table = scatter_rows(grad, rows, weights, ctx.length) if ctx.needs_input_grad[0] else None
        grad_weights = dot_rows(grad, table, rows) if ctx.needs_input_grad[2] else None
        return grad_table, None, grad_weights


def scatter_rows(grad: Tensor, rows: Tensor, weights: Tensor, length: int) -> Tensor:
    """`out[r]` = sum of `weights[m, k] * grad[m]` over all (m, k) with `rows[m, k] = r`; `[length, D]`. After sorting
    by row, the entries of a row are a bag."""
    ordered, positions = rows.flatten().sort()
    starts = torch.searchsorted(ordered, torch.arange(length, dtype=rows.dtype))
    sources = positions // rows.shape[1]
    return F.embedding_bag(sources, grad, starts, mode="sum", per_sample_weights=weights.flatten()[positions])


def dot_rows(grad: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """`out[m, k] = grad[m] . table[rows[m, k]]`; `[M, K]`: a sampled matrix product."""
    bags, size = rows.shape
    ends = torch.arange(0, bags * size + 1, size, dtype=rows.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse CSR tensors are in beta
        pattern = torch.sparse_csr_tensor(
            ends, rows.flatten(), grad.new_zeros(bags * size), (bags, len(table)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(pattern, grad, table.T, beta=0.0).values().view(bags, size)


def per_point(numbers: list[int], points: int, like: Tensor) -> Tensor:
    """One number per level, repeated for its points: `[L * P]`. Filled, so that exported sizes remain symbolic."""
    return torch.cat([like.new_full((points,), number) for number in numbers])


def deformable_sampling(value: Tensor, shapes: list[tuple[int, int]], x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples (Deformable DETR, equation 3), zero outside the maps.

    Each map is padded with a border of zeros, and positions outside are clamped onto it, so corners need no bounds
    check.

    Shape letters: B batch, S cells of all levels, N heads, D channels per head, Q queries, L levels, P points,
    R cells of all levels with their borders.

    Args:
        value: `[B, S, N, D]` float, levels concatenated, each row-major.
        shapes: `(height, width)` of each level; their areas sum to S.
        x, y: `[B * Q, N, L * P]` float, positions in cells of the level: 0 is the left or upper edge, i + 0.5 the
            centre of cell i. (With four dimensions the compiler would choose a channels-last layout.)
        weights: `[B * Q, N, L * P]` float.

    Returns:
        `[B * Q, N * D]`, dtype of `value`.
    """
    if is_fused(value):
        from .deformable_triton import fused_sampling  # needs Triton

        return fused_sampling(value, [side for shape in shapes for side in shape], x, y, weights)
    B, _, N, D = value.shape
    points = x.shape[-1] // len(shapes)
    heights, widths = ([shape[side] for shape in shapes] for side in (0, 1))
    maps = value.flatten(2).split([height * width for height, width in shapes], dim=1)
    bordered = [
        F.pad(map_.unflatten(1, shape), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
        for map_, shape in zip(maps, shapes, strict=True)
    ]
    table = torch.cat(bordered, dim=1)  # [B, R, N * D]
    starts = [sum(map_.shape[1] for map_ in bordered[:level]) for level in range(len(shapes))]

    def locate(position: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:  # upper or left corner, and fraction
        position = (position + 0.5).clamp(torch.zeros_like(last), last + 1)  # in cells of the padded map
        corner = torch.minimum(position.detach().floor(), last)
        return corner, position - corner

    pitch = per_point([width + 2 for width in widths], points, x)
    left, fx = locate(x, pitch - 2)
    top, fy = locate(y, per_point(heights, points, y))
    cell = (top * pitch + left + per_point(starts, points, x)).to(torch.int32)  # exact below 2**24
    head = torch.arange(N, device=value.device, dtype=torch.int32)[:, None]
    upper = cell.clamp(min=0) * N + head  # row of the upper left corner; the clamp is for NaN
    lower = upper + (pitch * N).to(torch.int32)
    rows = torch.cat((upper, upper + N, lower, lower + N), -1)
    image = torch.arange(B, device=value.device, dtype=torch.int32)[:, None, None] * (table.shape[1] * N)
    rows = (rows.view(B, -1, N * rows.shape[-1]) + image).view(-1, rows.shape[-1])  # of the [B * R * N, D] table

    lower_weight = fy * weights
    upper_weight = weights - lower_weight
    upper_right, lower_right = upper_weight * fx, lower_weight * fx
    corner_weights = (upper_weight - upper_right, upper_right, lower_weight - lower_right, lower_right)
    sampled = weighted_row_sum(table.view(-1, D), rows, torch.cat(corner_weights, -1).flatten(0, 1))
    return sampled.view(-1, N * D)


class ZeroInitLinear(nn.Linear):
    """A linear layer whose initial weights are 0, see `MPFormerPreTrainedModel._init_weights`."""


class SamplingOffsets(ZeroInitLinear):
    """Linear layer from queries to sampling offsets, `[..., num_heads * num_levels * num_points * 2]`, in cells."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int):
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        super().__init__(dim, num_heads * num_levels * num_points * 2)

    def initial_bias(self) -> Tensor:
        """Initial offsets, float32 `[num_heads * num_levels * num_points * 2]`: point k of head i is k + 1 cells away
        in direction i (Deformable DETR, appendix A.4)."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * distance[:, None]
        return offsets.expand(-1, self.num_levels, -1, -1).flatten()


class MultiScaleDeformableAttention(nn.Module):
    """Every query attends to `num_points` learned positions per level around its reference point.

    Args:
        dim: channels of queries and values.
        num_heads, num_levels, num_points: attention heads, feature levels, sampling points per head and level.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int = 3, num_points: int = 4):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = SamplingOffsets(dim, num_heads, num_levels, num_points)
        self.attention_weights = ZeroInitLinear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """
        Args:
            query: `[B, Q, dim]`, content plus position.
            value: `[B, S, dim]`, levels concatenated.
            reference: `[Q, 2]`, (x, y) in [0, 1].
            shapes: `(height, width)` of each level.

        Returns:
            `[B, Q, dim]`.
        """
        B, Q, dim = query.shape
        N, L, P = self.num_heads, self.num_levels, self.num_points
        x, y = self.sampling_offsets(query).view(B * Q, N, L * P, 2).unbind(-1)
        weights = self.attention_weights(query).view(B * Q, N, L * P).softmax(-1)
        table = self.value_proj(value).view(B, -1, N, dim // N)
        with torch.autocast(query.device.type, enabled=False):  # positions need more than 8 bits of mantissa
            wide = torch.promote_types(table.dtype, torch.float32)

            def in_cells(offset: Tensor, centre: Tensor, sides: list[int]) -> Tensor:
                return offset.to(wide) + centre.repeat(B)[:, None, None] * per_point(sides, P, centre)

            x = in_cells(x, reference[:, 0], [width for _, width in shapes])
            y = in_cells(y, reference[:, 1], [height for height, _ in shapes])
            table = table if is_fused(table) else table.to(wide)  # the kernels have float32 sums
            sampled = deformable_sampling(table, shapes, x, y, weights.to(wide))
        return self.output_proj(sampled.view(B, Q, dim).to(query.dtype))
