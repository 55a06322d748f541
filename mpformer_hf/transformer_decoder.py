"""Masked-attention transformer decoder (Mask2Former, section 3.2), with room for pilot queries before its own.

Queries are `[pilot | matching]`. The decoder knows nothing of ground truth: a pilot brings its query contents, a
self-attention mask, and a cross-attention mask for the layers that it pilots.

Shape letters: B batch, N queries (pilot and matching), Q matching queries, C channels, K cells of one level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_mpformer import MPFormerConfig
from .mask_piloting import Pilot
from .position_embedding import sine_position_embedding


@dataclass
class DecoderOutput:
    """What the decoder says after 0, 1, ... layers; entry 0 belongs to the initial queries.

    `normed_states` and `mask_embeddings` are tuples of `[B, N, C]` and `[B, N, mask_feature_size]`; `hidden_states`
    the raw `[B, N, C]`; `attentions` the self-attention weights `[B, heads, N, N]` of each layer, or None.
    """

    normed_states: tuple[Tensor, ...]
    mask_embeddings: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...] | None


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, allowed: Tensor | None, dropout: float, explicit: bool
) -> tuple[Tensor, Tensor | None]:
    """Multi-head scaled dot-product attention on `[B, length, C]` tensors.

    Args:
        allowed: bool, broadcasts to `[B, heads, queries, keys]`; True = may attend. No row may be all False.
        explicit: form and return the weights `[B, heads, queries, keys]`; otherwise the second result is None.
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = None
    if explicit:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        weights = scores.softmax(-1)
        out = F.dropout(weights, dropout) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2), weights


class MPFormerSelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, position: Tensor | None, allowed: Tensor | None, explicit: bool):
        """`[B, N, C]` -> the same and, if `explicit`, the weights `[B, heads, N, N]`."""
        placed = hidden if position is None else hidden + position
        dropout = self.dropout if self.training else 0.0
        query, key, value = self.q_proj(placed), self.k_proj(placed), self.v_proj(hidden)
        out, weights = attend(query, key, value, self.heads, allowed, dropout, explicit)
        return self.out_proj(out), weights


class MPFormerCrossAttention(nn.Module):
    """Attention with `nn.MultiheadAttention`'s packed parameters, so that Mask2Former's weights fit."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, position: Tensor | None, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        """`hidden` `[B, N, C]`; `key`, `value` `[B, K, C]`; `allowed` `[B, 1 or heads, N, K]`. Returns `[B, N, C]`."""
        placed = hidden if position is None else hidden + position
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (F.linear(x, w, b) for x, w, b in zip((placed, key, value), weights, biases, strict=True))
        dropout = self.dropout if self.training else 0.0
        out, _ = attend(query, key, value, self.heads, allowed, dropout, explicit=False)
        return self.out_proj(out)


class MPFormerDecoderLayer(GradientCheckpointingLayer):
    """Masked cross-attention, self-attention, feed-forward network; norms after (default) or before each."""

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        dim, heads = config.hidden_dim, config.num_attention_heads
        self.dropout, self.pre_norm = config.dropout, config.pre_norm
        self.self_attn = MPFormerSelfAttention(dim, heads, config.dropout)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.cross_attn = MPFormerCrossAttention(dim, heads, config.dropout)
        self.cross_attn_layer_norm = nn.LayerNorm(dim)
        self.activation = ACT2FN[config.activation_function]
        self.fc1 = nn.Linear(dim, config.dim_feedforward)
        self.fc2 = nn.Linear(config.dim_feedforward, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def enter(self, norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
        return norm(hidden) if self.pre_norm else hidden

    def leave(self, norm: nn.LayerNorm, hidden: Tensor, change: Tensor) -> Tensor:
        hidden = hidden + self.drop(change)
        return hidden if self.pre_norm else norm(hidden)

    def forward(
        self,
        hidden: Tensor,
        key: Tensor,
        value: Tensor,
        cross_allowed: Tensor,
        self_allowed: Tensor | None,
        position: Tensor | None,
        explicit: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the new `[B, N, C]` and, if `explicit`, the self-attention weights `[B, heads, N, N]`."""
        norm = self.cross_attn_layer_norm
        change = self.cross_attn(self.enter(norm, hidden), position, key, value, cross_allowed)
        hidden = self.leave(norm, hidden, change)
        norm = self.self_attn_layer_norm
        change, weights = self.self_attn(self.enter(norm, hidden), position, self_allowed, explicit)
        hidden = self.leave(norm, hidden, change)
        norm = self.final_layer_norm
        expanded = self.drop(self.activation(self.fc1(self.enter(norm, hidden))))
        return self.leave(norm, hidden, self.fc2(expanded)), weights


class MPFormerMaskPredictor(nn.Module):
    """Three-layer perceptron from query states to mask embeddings."""

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        dim = config.hidden_dim
        self.mask_embedder = nn.Sequential(
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU()),
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU()),
            nn.Sequential(nn.Linear(dim, config.mask_feature_size)),
        )

    def forward(self, states: Tensor) -> Tensor:
        return self.mask_embedder(states)


class MPFormerMaskedAttentionDecoder(nn.Module):
    def __init__(self, config: MPFormerConfig):
        super().__init__()
        self.layers = nn.ModuleList(MPFormerDecoderLayer(config) for _ in range(config.decoder_layers - 1))
        self.layernorm = nn.LayerNorm(config.hidden_dim)
        self.mask_predictor = MPFormerMaskPredictor(config)

    def forward(
        self,
        hidden: Tensor,
        position: Tensor | None,
        keys: list[Tensor],
        values: list[Tensor],
        level_features: list[Tensor],
        pilot: Pilot | None,
        explicit: bool,
    ) -> DecoderOutput:
        """
        Args:
            hidden: `[B, N, C]`, `[pilot | matching]`.
            position: `[N, C]` or None.
            keys, values: `[B, K, C]` of the three levels.
            level_features: mask features resized to the three levels, `[B, mask_feature_size, K]`, no gradient.
            pilot: masks of the first `N - Q` queries, or None.
            explicit: return self-attention weights.
        """
        normed, embeddings, states, attentions = [], [], [hidden], []

        def predict(hidden: Tensor) -> Tensor:
            normed.append(self.layernorm(hidden))
            embeddings.append(self.mask_predictor(normed[-1]))
            return embeddings[-1]

        self_allowed = None if pilot is None else pilot.self_attention
        embedding = predict(hidden)
        for index, layer in enumerate(self.layers):
            level = index % len(keys)
            allowed = attention_mask(embedding, level_features[level], pilot, index, level)
            hidden, weights = layer(hidden, keys[level], values[level], allowed, self_allowed, position, explicit)
            embedding = predict(hidden)
            states.append(hidden)
            attentions.append(weights)
        return DecoderOutput(tuple(normed), tuple(embeddings), tuple(states), tuple(attentions) if explicit else None)


@torch.no_grad()
def attention_mask(embedding: Tensor, features: Tensor, pilot: Pilot | None, layer: int, level: int) -> Tensor:
    """Where each query may attend in cross-attention `layer` (Mask2Former, equation 2).

    A query attends to the cells where its predicted mask is at least 0.5; a piloted query to the cells of its
    ground-truth mask. A query that could attend nowhere attends everywhere.

    Args:
        embedding: `[B, N, D]` mask embeddings.
        features: `[B, D, K]` mask features resized to the level: resizing commutes with the product, so no mask is
            ever formed at full resolution.

    Returns:
        bool `[B, 1 or heads, N, K]`.
    """
    # Not "logit >= 0": near 0 the sigmoid rounds to 0.5, so that a logit of rounding noise does not block its cell.
    allowed = ((embedding @ features).sigmoid() >= 0.5)[:, None]
    if pilot is not None and pilot.steers(layer):
        ground_truth = pilot.cross_attention(level)
        matching = allowed[:, :, ground_truth.shape[2] :].expand(-1, ground_truth.shape[1], -1, -1)
        allowed = torch.cat((ground_truth, matching), dim=2)
    return allowed | ~allowed.any(-1, keepdim=True)


class MPFormerTransformerModule(nn.Module):
    """Queries, level embeddings and the decoder.

    Args:
        config: sizes and pilot options.
    """

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        dim, levels = config.hidden_dim, 3
        if config.query_position_embeddings:
            self.queries_embedder = nn.Embedding(config.num_queries, dim)
        self.queries_features = nn.Embedding(config.num_queries, dim)
        if config.mask_piloting:
            self.pilot_class_embedder = nn.Embedding(config.num_labels, dim)
        project = config.feature_size != dim or config.enforce_input_projection
        self.input_projections = nn.ModuleList(
            nn.Conv2d(config.feature_size, dim, kernel_size=1) if project else nn.Identity() for _ in range(levels)
        )
        self.decoder = MPFormerMaskedAttentionDecoder(config)
        self.level_embed = nn.Embedding(levels, dim)

    def forward(
        self, mask_features: Tensor, levels: list[Tensor], pilot: Pilot | None = None, explicit: bool = False
    ) -> DecoderOutput:
        """
        Args:
            mask_features: `[B, mask_feature_size, H / 4, W / 4]`.
            levels: `[B, feature_size, H / s, W / s]`, s = 32, 16, 8.
            pilot: pilot queries, or None.
            explicit: form and return the self-attention weights.
        """
        keys, values, level_features = [], [], []
        # Embeddings are called, not read: offloaded weights are there during a call only.
        level_embeds = self.level_embed(torch.arange(len(levels), device=mask_features.device))
        for x, project, embed in zip(levels, self.input_projections, level_embeds, strict=True):
            x = project(x)
            values.append(x.flatten(2).transpose(1, 2) + embed)
            keys.append(values[-1] + sine_position_embedding(*x.shape[-2:], x.shape[1], x.device, x.dtype))
            with torch.no_grad():
                resized = F.interpolate(mask_features, size=x.shape[-2:], mode="bilinear", align_corners=False)
            level_features.append(resized.flatten(2))

        queries = torch.arange(self.queries_features.num_embeddings, device=mask_features.device)
        hidden = self.queries_features(queries).expand(mask_features.shape[0], -1, -1)
        position = self.queries_embedder(queries) if hasattr(self, "queries_embedder") else None
        if pilot is not None:
            shown = self.pilot_class_embedder(pilot.shown_labels) * pilot.valid[..., None]
            hidden = torch.cat((shown.to(hidden.dtype), hidden), dim=1)
            if position is not None:  # a pilot query's place is its mask, not a learned position
                position = F.pad(position, (0, 0, pilot.num_queries, 0))
        return self.decoder(hidden, position, keys, values, level_features, pilot, explicit)
