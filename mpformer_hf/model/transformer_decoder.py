"""Masked-attention transformer decoder (Mask2Former, section 3.2) with optional pilot queries.

Queries are `[pilot | matching]`. The decoder does not use ground truth itself: the pilot provides the contents of its
queries, the self-attention mask, and cross-attention masks for the piloted layers.

Shape letters: B batch, N queries (pilot and matching), Q matching queries, C channels, K cells of one level.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_mpformer import MPFormerConfig
from .image_sizes import size_of
from .mask_piloting import Pilot
from .position_embedding import sine_position_embedding


@dataclass
class DecoderMemory:
    """What the queries attend to: the three feature levels of a batch.

    Attributes:
        keys, values: `[B, K, C]` each.
        mask_features: mask features resized to the levels, `[B, mask_feature_size, K]` each, without gradient.
        shapes: (height, width) of the levels.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask_features: list[Tensor]
    shapes: list[tuple[int, int]]


@dataclass
class DecoderOutput:
    """Outputs for the initial queries (entry 0) and after each layer.

    Attributes:
        normed_states: `[B, N, C]` each, after the final layer norm.
        mask_embeddings: `[B, N, mask_feature_size]` each.
        last_hidden_state: `[B, Q, C]`, of the matching queries, before the layer norm.
        hidden_states: `[B, Q, C]` each, of the matching queries, before the layer norm, or None.
        attentions: self-attention weights `[B, heads, Q, Q]` of the matching queries in each layer, or None.
    """

    normed_states: tuple[Tensor, ...]
    mask_embeddings: tuple[Tensor, ...]
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    attention_mask: Tensor | None,
    dropout: float,
    attentions_from: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head scaled dot-product attention.

    Args:
        query, key, value: `[B, length, C]`.
        attention_mask: bool, broadcasts to `[B, heads, queries, keys]`; True = may attend. No row may be all False.
        attentions_from: also return the attention weights of the queries and keys from this index on; this is slower.

    Returns:
        `[B, queries, C]`, and the weights `[B, heads, queries, keys]` or None.
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    returned = None
    if attentions_from is not None:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, float("-inf"))
        weights = scores.softmax(-1)
        returned = weights[:, :, attentions_from:, attentions_from:] if attentions_from else weights
        out = F.dropout(weights, dropout) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2), returned


QueryStates = tuple[Tensor, Tensor | None]  # inputs of a layer's self-attention: `[B, N, C]`, and positions `[N, C]`


class MPFormerSelfAttention(nn.Module):
    """Self-attention of the queries; positions are added to queries and keys."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self,
        hidden: Tensor,
        position: Tensor | None,
        attention_mask: Tensor | None,
        attentions_from: int | None,
        others: QueryStates | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`[B, N, C]` -> `[B, N, C]`, and the weights of the queries from `attentions_from` on, or None. Queries also
        attend to `others`, which come after them."""
        hidden_with_pos = attended_with_pos = hidden if position is None else hidden + position
        attended, dropout = hidden, self.dropout if self.training else 0.0
        if others is not None:
            other, other_position = others
            with_pos = other if other_position is None else other + other_position
            attended = torch.cat((hidden, other), 1)
            attended_with_pos = torch.cat((hidden_with_pos, with_pos), 1)
        query, key, value = self.q_proj(hidden_with_pos), self.k_proj(attended_with_pos), self.v_proj(attended)
        out, weights = attend(query, key, value, self.heads, attention_mask, dropout, attentions_from)
        return self.out_proj(out), weights


class MPFormerCrossAttention(nn.Module):
    """Cross-attention with the packed parameters of `nn.MultiheadAttention`, as in Mask2Former's checkpoints."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, hidden: Tensor, position: Tensor | None, key: Tensor, value: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """`hidden` `[B, N, C]`; `key`, `value` `[B, K, C]`; `attention_mask` `[B, 1 or heads, N, K]` -> `[B, N, C]`."""
        hidden_with_pos = hidden if position is None else hidden + position
        inputs, weights, biases = (
            (hidden_with_pos, key, value),
            self.in_proj_weight.chunk(3),
            self.in_proj_bias.chunk(3),
        )
        query, key, value = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        dropout = self.dropout if self.training else 0.0
        out, _ = attend(query, key, value, self.heads, attention_mask, dropout)
        return self.out_proj(out)


class MPFormerDecoderLayer(GradientCheckpointingLayer):
    """Masked cross-attention, self-attention and feed-forward network, with norms after (default) or before each."""

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

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _pre_norm(self, norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
        return norm(hidden) if self.pre_norm else hidden

    def _residual(self, norm: nn.LayerNorm, hidden: Tensor, update: Tensor) -> Tensor:
        hidden = hidden + self._dropout(update)
        return hidden if self.pre_norm else norm(hidden)

    def forward(
        self,
        hidden: Tensor,
        key: Tensor,
        value: Tensor,
        cross_attention_mask: Tensor,
        self_attention_mask: Tensor | None,
        position: Tensor | None,
        attentions_from: int | None,
        others: QueryStates | None = None,
        record: list[QueryStates] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            hidden: `[B, N, C]`.
            key, value: `[B, K, C]`.
            cross_attention_mask: bool `[B, 1 or heads, N, K]`, True = may attend.
            self_attention_mask: bool `[B, 1, N, N]` or None, True = may attend.
            position: `[N, C]` or None.
            attentions_from: also return the self-attention weights of the queries from this one on.
            others: queries that self-attention attends to besides.
            record: list that the inputs of self-attention are appended to.

        Returns:
            `[B, N, C]`, and the self-attention weights or None.
        """
        norm = self.cross_attn_layer_norm
        update = self.cross_attn(self._pre_norm(norm, hidden), position, key, value, cross_attention_mask)
        hidden = self._residual(norm, hidden, update)
        norm = self.self_attn_layer_norm
        states = self._pre_norm(norm, hidden)
        if record is not None:
            record.append((states, position))
        update, weights = self.self_attn(states, position, self_attention_mask, attentions_from, others)
        hidden = self._residual(norm, hidden, update)
        norm = self.final_layer_norm
        expanded = self._dropout(self.activation(self.fc1(self._pre_norm(norm, hidden))))
        return self._residual(norm, hidden, self.fc2(expanded)), weights


class MaskEmbedderLinear(nn.Linear):
    """A linear layer with PyTorch's default initialisation, see `MPFormerPreTrainedModel._init_weights`."""


class MPFormerMaskPredictor(nn.Module):
    """MLP with three layers from query states `[..., hidden_dim]` to mask embeddings `[..., mask_feature_size]`."""

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        dim = config.hidden_dim
        self.mask_embedder = nn.Sequential(
            nn.Sequential(MaskEmbedderLinear(dim, dim), nn.ReLU()),
            nn.Sequential(MaskEmbedderLinear(dim, dim), nn.ReLU()),
            nn.Sequential(MaskEmbedderLinear(dim, config.mask_feature_size)),
        )

    def forward(self, states: Tensor) -> Tensor:
        return self.mask_embedder(states)


class MPFormerMaskedAttentionDecoder(nn.Module):
    """The decoder layers; a mask embedding is predicted before the first and after each of them."""

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        self.layers = nn.ModuleList(MPFormerDecoderLayer(config) for _ in range(config.decoder_layers - 1))
        self.layernorm = nn.LayerNorm(config.hidden_dim)
        self.mask_predictor = MPFormerMaskPredictor(config)

    def forward(
        self,
        hidden: Tensor,
        position: Tensor | None,
        memory: DecoderMemory,
        pilot: Pilot | None,
        output_hidden_states: bool,
        output_attentions: bool,
        matching: list[QueryStates] | None = None,
        record: list[QueryStates] | None = None,
    ) -> DecoderOutput:
        """
        Args:
            hidden: `[B, N, C]`, queries `[pilot | matching]`; only the pilot's with `matching`.
            position: `[N, C]` or None.
            memory: see `DecoderMemory`.
            pilot: attention masks of the pilot queries, or None.
            output_hidden_states, output_attentions: also return the hidden states and the self-attention weights of
                the matching queries.
            matching: states of the matching queries in each layer, which do not depend on the pilot's.
            record: list that the inputs of each layer's self-attention are appended to.
        """
        normed, embeddings, states, attentions = [], [], [], []
        num_pilot = 0 if pilot is None else pilot.num_queries

        def predict(hidden: Tensor) -> None:
            if output_hidden_states:
                states.append(hidden[:, num_pilot:] if num_pilot else hidden)
            normed.append(self.layernorm(hidden))
            embeddings.append(self.mask_predictor(normed[-1]))

        self_attention_mask = None if pilot is None else pilot.self_attention_mask[:, :, : hidden.shape[1]]
        attentions_from = num_pilot if output_attentions else None
        predict(hidden)
        for index, layer in enumerate(self.layers):
            level = index % len(memory.keys)
            mask = cross_attention_mask(embeddings[-1], memory.mask_features[level], pilot, index, level)
            key, value = memory.keys[level], memory.values[level]
            others = None if matching is None else matching[index]
            hidden, weights = layer(
                hidden, key, value, mask, self_attention_mask, position, attentions_from, others, record
            )
            predict(hidden)
            attentions.append(weights)
        return DecoderOutput(
            tuple(normed),
            tuple(embeddings),
            states[-1] if states else hidden[:, num_pilot:],
            tuple(states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )


def compute_masks(embeddings: Tensor, features: Tensor) -> Tensor:
    """Mask logits `[B, N, h, w]` from embeddings `[B, N, D]` and features `[B, D, h, w]`."""
    return torch.einsum("bnd,bdhw->bnhw", embeddings, features)


@torch.no_grad()
def cross_attention_mask(embedding: Tensor, features: Tensor, pilot: Pilot | None, layer: int, level: int) -> Tensor:
    """Attention mask of cross-attention `layer` (Mask2Former, equations 2 and 3).

    A query may attend to the cells where its predicted mask probability is at least 0.5, a pilot query to the cells of
    its ground-truth mask. A query without any such cell may attend to all cells.

    Args:
        embedding: mask embeddings `[B, N, D]`.
        features: mask features resized to the level, `[B, D, K]`. Resizing commutes with the product, so masks are
            never computed at full resolution.
        pilot: pilot of the batch, or None.
        layer, level: indices of the layer and of the feature level that it attends to.

    Returns:
        bool `[B, 1 or heads, N, K]`, True = may attend.
    """
    # Not "logit >= 0": the sigmoid of a tiny negative logit rounds to 0.5, so rounding errors do not block a cell.
    mask = ((embedding @ features).sigmoid() >= 0.5)[:, None]
    if pilot is not None and pilot.uses_gt_mask(layer):
        ground_truth = pilot.sample_attention_mask(level)
        matching = mask[:, :, ground_truth.shape[2] :].expand(-1, ground_truth.shape[1], -1, -1)
        mask = torch.cat((ground_truth, matching), dim=2)
    return mask | ~mask.any(-1, keepdim=True)


class MPFormerTransformerModule(nn.Module):
    """Queries, level embeddings and the decoder.

    Args:
        config: sizes and pilot options.
    """

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        dim, levels = config.hidden_dim, 3
        self.queries_embedder = nn.Embedding(config.num_queries, dim) if config.query_position_embeddings else None
        self.queries_features = nn.Embedding(config.num_queries, dim)
        self.pilot_class_embedder: Any = nn.Embedding(config.num_labels, dim) if config.mask_piloting else None
        project = config.feature_size != dim or config.enforce_input_projection
        self.input_projections = nn.ModuleList(
            nn.Conv2d(config.feature_size, dim, kernel_size=1) if project else nn.Identity() for _ in range(levels)
        )
        self.decoder = MPFormerMaskedAttentionDecoder(config)
        self.level_embed = nn.Embedding(levels, dim)

    def forward(
        self,
        mask_features: Tensor,
        levels: list[Tensor],
        pilot: Pilot | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> DecoderOutput:
        """
        Args:
            mask_features: `[B, mask_feature_size, H / 4, W / 4]`.
            levels: `[B, feature_size, H / s, W / s]`, s = 32, 16, 8.
            pilot: pilot queries, or None.
            output_hidden_states, output_attentions: also return those of the matching queries.
        """
        return self.decode(self.prepare(mask_features, levels), pilot, output_hidden_states, output_attentions)

    def prepare(self, mask_features: Tensor, levels: list[Tensor]) -> DecoderMemory:
        """What the queries attend to; arguments as those of `forward`."""
        keys, values, resized_features = [], [], []
        # Called instead of reading `.weight`, since accelerate's offloading loads weights in `forward` only.
        level_embeds = self.level_embed(torch.arange(len(levels), device=mask_features.device))
        for x, project, embed in zip(levels, self.input_projections, level_embeds, strict=True):
            x = project(x)
            values.append(x.flatten(2).transpose(1, 2) + embed)
            keys.append(values[-1] + sine_position_embedding(*size_of(x), x.shape[1], x.device, x.dtype))
            with torch.no_grad():
                resized = F.interpolate(mask_features, size=x.shape[-2:], mode="bilinear", align_corners=False)
            resized_features.append(resized.flatten(2))
        return DecoderMemory(keys, values, resized_features, [size_of(x) for x in levels])

    def decode(
        self,
        memory: DecoderMemory,
        pilot: Pilot | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        matching: list[QueryStates] | None = None,
        record: list[QueryStates] | None = None,
    ) -> DecoderOutput:
        """Run the decoder; `memory` is that of `prepare`, other arguments as those of `forward`. With the states of the
        `matching` queries in each layer, see `matching_states`, only the pilot's queries are computed. The inputs of
        each layer's self-attention are appended to `record`."""
        queries = torch.arange(self.queries_features.num_embeddings, device=memory.keys[0].device)
        hidden = self.queries_features(queries).expand(memory.keys[0].shape[0], -1, -1)
        position = None if self.queries_embedder is None else self.queries_embedder(queries)
        if pilot is not None:
            contents = self.pilot_class_embedder(pilot.noisy_labels) * pilot.valid[..., None]
            hidden = torch.cat((contents.to(hidden.dtype), hidden), dim=1)
            if position is not None:  # pilot queries have none
                position = F.pad(position, (0, 0, pilot.num_queries, 0))
        if matching is not None and pilot is not None:
            hidden = hidden[:, : pilot.num_queries]
            position = None if position is None else position[: pilot.num_queries]
        return self.decoder(hidden, position, memory, pilot, output_hidden_states, output_attentions, matching, record)

    def matching_states(self, memory: DecoderMemory) -> list[QueryStates]:
        """Inputs of each layer's self-attention for the matching queries, without a pilot."""
        found: list[QueryStates] = []
        self.decode(memory, record=found)
        return found
