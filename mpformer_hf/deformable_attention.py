"""Multi-scale deformable attention: the one operator of the pixel decoder.

Sampling is one weighted gather: every bilinear corner of every sampling point is a row of the value table, weighted
by (bilinear weight) x (attention weight). `embedding_bag` does that sum without materialising the samples.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def deformable_sampling(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples (Deformable DETR, equation 3), zero outside the maps.

    Shape letters: B batch, S positions of all levels, N heads, D channels per head, Q queries, L levels, P points.

    Args:
        value: `[B, S, N, D]` float, the levels one after the other, each row-major.
        shapes: `(height, width)` of each level; their areas sum to S.
        locations: `[B, Q, N, L, P, 2]` float, (x, y) in units of a level's width and height: 0 is its left or upper
            edge, 1 the right or lower one; pixel centres lie at (i + 0.5) / side.
        weights: `[B, Q, N, L, P]` float.

    Returns:
        `[B, Q, N * D]`, dtype of `value`.
    """
    B, S, N, D = value.shape
    Q = locations.shape[1]
    sides = locations.new_tensor([(width, height) for height, width in shapes])  # [L, 2]
    width, height = sides.long().unbind(-1)
    starts = torch.tensor([0, *(h * w for h, w in shapes[:-1])], device=value.device).cumsum(0)
    batch = torch.arange(B, device=value.device).view(B, 1, 1, 1, 1) * (S * N)
    head = torch.arange(N, device=value.device).view(N, 1, 1)
    offset = batch + head + (starts * N).view(-1, 1)  # row of cell (0, 0) in the [B * S * N, D] table

    position = locations * sides[:, None] - 0.5
    corner = position.floor()
    (fx, fy), (x, y) = (position - corner).unbind(-1), corner.long().unbind(-1)
    rows, row_weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            column, line = x + dx, y + dy
            inside = (column >= 0) & (column < width[:, None]) & (line >= 0) & (line < height[:, None])
            cell = line * width[:, None] + column
            rows.append((offset + cell * N).where(inside, 0))
            row_weights.append(((fx if dx else 1 - fx) * (fy if dy else 1 - fy) * weights).where(inside, 0))
    bags = B * Q * N
    sampled = F.embedding_bag(
        torch.stack(rows, -1).view(bags, -1),
        value.reshape(B * S * N, D),
        mode="sum",
        per_sample_weights=torch.stack(row_weights, -1).view(bags, -1),
    )
    return sampled.view(B, Q, N * D)


class MultiScaleDeformableAttention(nn.Module):
    """Every query attends to `num_points` learned places of each level around its reference point.

    Args:
        dim: channels of queries and values.
        num_heads, num_levels, num_points: attention heads, feature levels, sampling points per head and level.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int = 3, num_points: int = 4):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def initial_offsets(self) -> Tensor:
        """Bias of `sampling_offsets` `[num_heads * num_levels * num_points * 2]`: head i looks in direction i, point
        k at k + 1 cells (Deformable DETR, appendix A.4)."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        reach = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * reach[:, None]
        return offsets.expand(-1, self.num_levels, -1, -1).flatten()

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """
        Args:
            query: `[B, Q, dim]`, content plus position.
            value: `[B, S, dim]`, the levels one after the other.
            reference: `[Q, 2]`, (x, y) in [0, 1].
            shapes: `(height, width)` of each level.

        Returns:
            `[B, Q, dim]`.
        """
        B, Q, dim = query.shape
        N, L, P = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).view(B, Q, N, L, P, 2)
        weights = self.attention_weights(query).view(B, Q, N, L * P).softmax(-1).view(B, Q, N, L, P)
        sides = reference.new_tensor([(width, height) for height, width in shapes])
        table = self.value_proj(value).view(B, -1, N, dim // N)
        with torch.autocast(query.device.type, enabled=False):  # sampling places need more than 8 bits of mantissa
            wide = torch.promote_types(table.dtype, torch.float32)
            locations = reference[:, None, None, None] + offsets.to(wide) / sides[:, None]
            sampled = deformable_sampling(table.to(wide), shapes, locations, weights.to(wide))
        return self.output_proj(sampled.to(query.dtype))
