"""Pixel decoder: a deformable-attention encoder over three feature levels, then an FPN step to stride 4.

Deformable DETR (encoder) and Mask2Former (sections 3.2.2 and 4.1, "MSDeformAttn pixel decoder").
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .configuration_mpformer import MPFormerConfig
from .deformable_attention import MultiScaleDeformableAttention
from .position_embedding import sine_position_embedding


class MPFormerPixelDecoderEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward network, each followed by a layer norm."""

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        dim = config.feature_size
        self.dropout = config.dropout
        self.self_attn = MultiScaleDeformableAttention(dim, config.num_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.encoder_feedforward_dim)
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def forward(self, hidden: Tensor, position: Tensor, reference: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """`hidden` `[B, S, dim]`, `position` `[S, dim]`, `reference` `[S, 2]` -> `[B, S, dim]`."""
        attended = self.self_attn(hidden + position, hidden, reference, shapes)
        hidden = self.self_attn_layer_norm(hidden + self._dropout(attended))
        expanded = self._dropout(F.relu_(self.fc1(hidden)))  # in place: it is the largest tensor of the encoder
        return self.final_layer_norm(hidden + self._dropout(self.fc2(expanded)))


class MPFormerPixelDecoderEncoder(nn.Module):
    """The encoder layers.

    Attributes:
        recompute: whether activations are recomputed in the backward pass (checkpointing), which saves a third of the
            training memory.
    """

    recompute = True

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        self.layers = nn.ModuleList(MPFormerPixelDecoderEncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, hidden: Tensor, position: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        reference = cell_centres(shapes, hidden.device, hidden.dtype)
        for layer in self.layers:
            inputs = (hidden, position, reference, shapes)
            if self.recompute and torch.is_grad_enabled() and not torch.compiler.is_exporting():
                hidden = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=bool(layer.dropout))
            else:
                hidden = layer(*inputs)
        return hidden


def cell_centres(shapes: list[tuple[int, int]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Centres (x, y) of the cells of all levels, in [0, 1] relative to the level's size: `[S, 2]`, at least float32."""
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centres.append(torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).flatten(0, 1))
    return torch.cat(centres).to(torch.promote_types(dtype, torch.float32))


class MPFormerPixelDecoder(nn.Module):
    """Backbone feature maps to mask features and three feature levels for the transformer decoder.

    Args:
        config: sizes; `feature_size` channels inside, `mask_feature_size` for the mask features.
        channels: channels of the backbone's feature maps at strides 4, 8, 16, 32.
    """

    def __init__(self, config: MPFormerConfig, channels: list[int]):
        super().__init__()
        dim = config.feature_size
        finest, *levels = channels
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, dim, kernel_size=1), nn.GroupNorm(32, dim)) for c in reversed(levels)
        )
        self.level_embed = nn.Parameter(torch.empty(len(levels), dim))
        self.encoder = MPFormerPixelDecoderEncoder(config)
        self.adapter_1 = nn.Sequential(nn.Conv2d(finest, dim, kernel_size=1, bias=False), nn.GroupNorm(32, dim))
        self.layer_1 = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False), nn.GroupNorm(32, dim), nn.ReLU(inplace=True)
        )
        self.mask_projection = nn.Conv2d(dim, config.mask_feature_size, kernel_size=1)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """
        Args:
            features: four feature maps `[B, C_i, H / s, W / s]`, s = 4, 8, 16, 32.

        Returns:
            mask features `[B, mask_feature_size, H / 4, W / 4]` and the levels `[B, feature_size, H / s, W / s]`,
            s = 32, 16, 8.
        """
        finest, *levels = features
        maps = [project(x) for project, x in zip(self.input_projections, reversed(levels), strict=True)]
        shapes = [tuple(x.shape[-2:]) for x in maps]
        hidden = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        dim = hidden.shape[-1]
        position = torch.cat(
            [
                sine_position_embedding(height, width, dim, hidden.device, hidden.dtype) + embed.to(hidden.dtype)
                for (height, width), embed in zip(shapes, self.level_embed, strict=True)
            ]
        )
        hidden = self.encoder(hidden, position, shapes)

        parts = hidden.split([height * width for height, width in shapes], dim=1)
        maps = [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(parts, shapes, strict=True)]
        fine = self.adapter_1(finest.contiguous(memory_format=torch.channels_last))
        coarse = maps[-1].clone(memory_format=torch.channels_last)  # from a slice of the sequence to a map
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_projection(self.layer_1(fine.add_(coarse))), maps
