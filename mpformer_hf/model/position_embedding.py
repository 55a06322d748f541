"""Sine position embedding of a feature map."""

import math

import torch
from torch import Tensor


def sine_position_embedding(
    height: int, width: int, dim: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Normalised 2-D sine embedding (DETR, section 3.2; normalisation as in Mask2Former).

    Rows and columns count from 1 and are divided by the side, so the last one maps to 2 pi. The first half of the
    channels encodes y, the second half x; sine and cosine alternate.

    Args:
        height, width: size of the feature map, in cells.
        dim: number of channels, a multiple of 4.

    Returns:
        `[height * width, dim]`, row-major.
    """

    def positions(length: int) -> Tensor:
        return torch.arange(1, length + 1, device=device, dtype=torch.float32) / (length + 1e-6)

    y = encode(positions(height), dim // 2)[:, None].expand(-1, width, -1)
    x = encode(positions(width), dim // 2)[None].expand(height, -1, -1)
    return torch.cat((y, x), dim=-1).flatten(0, 1).to(dtype)


def encode(position: Tensor, channels: int) -> Tensor:
    """Sine and cosine of positions in [0, 1], float32 `[...]`, at `channels / 2` wavelengths; float32 `[...,
    channels]`."""
    steps = torch.arange(channels, device=position.device, dtype=torch.float32)
    wavelength = 10000 ** (2 * (steps // 2) / channels)
    angle = (position * (2 * math.pi))[..., None] / wavelength
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)
