"""MP-Former: backbone, pixel decoder, masked-attention decoder and, in training, the mask pilot. Wiring only.

At inference it is Mask2Former. Parameter names are those of transformers' Mask2Former, so that its checkpoints load
as they are; only the pilot's class embedding comes on top.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    initialization,
)
from transformers.utils import ModelOutput

from .configuration_mpformer import MPFormerConfig
from .criterion import MPFormerCriterion, Prediction
from .deformable_attention import MultiScaleDeformableAttention
from .mask_piloting import Pilot, build_pilot
from .pixel_decoder import MPFormerPixelDecoder, MPFormerPixelDecoderEncoderLayer
from .targets import Targets, collect_targets
from .transformer_decoder import (
    DecoderOutput,
    MPFormerCrossAttention,
    MPFormerDecoderLayer,
    MPFormerMaskPredictor,
    MPFormerTransformerModule,
)


@dataclass
class MPFormerModelOutput(ModelOutput):
    """Mask2FormerModelOutput's fields, and what lazy masks are made of.

    B batch, N queries `[pilot | matching]`, D mask feature channels, H and W the padded image size.

    Attributes:
        encoder_last_hidden_state: `[B, C, H / 32, W / 32]`, last backbone map.
        pixel_decoder_last_hidden_state: `[B, D, H / 4, W / 4]`, the mask features.
        transformer_decoder_last_hidden_state: `[B, N, hidden_dim]`.
        encoder_hidden_states, pixel_decoder_hidden_states, transformer_decoder_hidden_states: all maps and states,
            with `output_hidden_states=True`.
        transformer_decoder_intermediate_states: normed states of every prediction, `[B, N, hidden_dim]` each.
        masks_queries_logits: masks of every prediction, `[B, N, H / 4, W / 4]` each, unless `output_masks=False`.
        attentions: self-attention weights `[B, heads, N, N]` of every layer, with `output_attentions=True`.
        mask_embeddings: of every prediction, `[B, N, D]` each; a mask is their product with the mask features.
        pilot: the pilot of this batch (training with targets only).
    """

    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_intermediate_states: tuple[Tensor, ...] | None = None
    masks_queries_logits: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    mask_embeddings: tuple[Tensor, ...] | None = None
    pilot: Pilot | None = None


@dataclass
class MPFormerForUniversalSegmentationOutput(ModelOutput):
    """Mask2FormerForUniversalSegmentationOutput's fields, `loss_dict` and `pixel_mask`.

    B batch, Q matching queries, K classes, H and W the padded image size. Pilot queries are not in it.

    Attributes:
        loss: scalar, the sum of `loss_dict`; with labels only.
        class_queries_logits: `[B, Q, K + 1]`, the last class is "no object".
        masks_queries_logits: `[B, Q, H / 4, W / 4]` logits.
        auxiliary_logits: of each earlier prediction a dict of these two, with `output_auxiliary_logits=True`.
        encoder_last_hidden_state ... attentions: see [`MPFormerModelOutput`].
        loss_dict: weighted losses, see [`MPFormerCriterion`].
        pixel_mask: `[B, H, W]` as given, 1 = image, 0 = padding; post-processing crops with it.
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None
    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loss_dict: dict[str, Tensor] | None = None
    pixel_mask: Tensor | None = None


def form_masks(embeddings: Tensor, features: Tensor) -> Tensor:
    """Mask logits `[B, N, h, w]` from embeddings `[B, N, D]` and features `[B, D, h, w]`."""
    return torch.einsum("bnd,bdhw->bnhw", embeddings, features)


class MPFormerPixelLevelModule(nn.Module):
    """Backbone and pixel decoder.

    Args:
        config: `backbone_config` is any that `AutoBackbone` knows with maps at strides 4, 8, 16, 32.

    Raises:
        ValueError: the backbone does not give four maps.
    """

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        self.encoder = AutoBackbone.from_config(config.backbone_config)
        if len(self.encoder.channels) != 4:
            raise ValueError(
                f"backbone_config: out_features must name four stages (strides 4, 8, 16, 32), "
                f"got {self.encoder.out_features}."
            )
        # Swin normalises its last map twice over: as a backbone output, and for a pooler that is not there.
        unused = getattr(getattr(self.encoder, "swin", None), "layernorm", None)
        if unused is not None:
            unused.requires_grad_(False)
        self.decoder = MPFormerPixelDecoder(config, list(self.encoder.channels))

    def forward(self, pixel_values: Tensor) -> tuple[tuple[Tensor, ...], Tensor, list[Tensor]]:
        """`[B, 3, H, W]` -> backbone maps, mask features, decoder levels."""
        # Channels last: convolutions are as fast or faster, and maps become sequences (and back) without a copy.
        features = self.encoder(pixel_values.contiguous(memory_format=torch.channels_last)).feature_maps
        return features, *self.decoder(list(features))


class MPFormerPreTrainedModel(PreTrainedModel):
    config_class = MPFormerConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("MPFormerPixelDecoderEncoderLayer", "MPFormerDecoderLayer")

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # For code outside of transformers it passes over modules without parameters of their own, to spare weights
        # that were loaded. Ours initialise the layers inside them, with functions that spare such weights anyway.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Xavier for attention, feed-forward networks and projections (gain `init_xavier_std`), N(0, 1) for queries
        and embeddings, N(0, `init_std`) for the class predictor, PyTorch's own for the mask perceptron."""
        init, gain = initialization, self.config.init_xavier_std
        if isinstance(module, MultiScaleDeformableAttention):
            init.zeros_(module.sampling_offsets.weight)
            init.copy_(module.sampling_offsets.bias, module.initial_offsets())
            init.zeros_(module.attention_weights.weight)
            init.zeros_(module.attention_weights.bias)
            linears = (module.value_proj, module.output_proj)
        elif isinstance(module, MPFormerPixelDecoderEncoderLayer):
            linears = (module.fc1, module.fc2)
        elif isinstance(module, MPFormerDecoderLayer):
            attention = module.self_attn
            linears = (module.fc1, module.fc2, *(getattr(attention, f"{name}_proj") for name in ("q", "k", "v", "out")))
        elif isinstance(module, MPFormerCrossAttention):
            init.xavier_uniform_(module.in_proj_weight, gain=gain)
            init.zeros_(module.in_proj_bias)
            linears = (module.out_proj,)
        elif isinstance(module, MPFormerPixelDecoder):
            init.normal_(module.level_embed)
            linears = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        elif isinstance(module, MPFormerTransformerModule):
            linears = [layer for layer in module.input_projections if isinstance(layer, nn.Conv2d)]
            for embedding in module.children():
                if isinstance(embedding, nn.Embedding):
                    init.normal_(embedding.weight)
        elif isinstance(module, MPFormerMaskPredictor):
            linears = ()
            for linear in (layer for layer in module.modules() if isinstance(layer, nn.Linear)):
                init.kaiming_uniform_(linear.weight, a=5**0.5)
                init.uniform_(linear.bias, -(linear.in_features**-0.5), linear.in_features**-0.5)
        elif isinstance(module, MPFormerForUniversalSegmentation):
            linears = ()
            init.normal_(module.class_predictor.weight, std=self.config.init_std)
            init.zeros_(module.class_predictor.bias)
        elif isinstance(module, MPFormerCriterion):
            linears = ()
            init.copy_(module.empty_weight, module.class_weights())
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            linears = ()
            init.ones_(module.weight)
            init.zeros_(module.bias)
        else:
            return
        for linear in linears:
            init.xavier_uniform_(linear.weight, gain=gain)
            if linear.bias is not None:
                init.zeros_(linear.bias)


class MPFormerModel(MPFormerPreTrainedModel):
    """Everything but the class predictor and the loss."""

    def __init__(self, config: MPFormerConfig):
        super().__init__(config)
        self.pixel_level_module = MPFormerPixelLevelModule(config)
        self.transformer_module = MPFormerTransformerModule(config)
        self.post_init()

    def get_input_embeddings(self) -> None:
        """There is no table of input embeddings; tools for any model, sharding for one, ask for it."""

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        targets: Targets | None = None,
        generator: torch.Generator | None = None,
        output_masks: bool = True,
    ) -> MPFormerModelOutput | tuple:
        """
        Args:
            pixel_values: float `[B, 3, H, W]`, normalised, padded with zeros.
            pixel_mask: `[B, H, W]`; the network does not look at it, as in the official code: padding is part of what
                it sees, and it was trained so.
            output_hidden_states, output_attentions, return_dict: as everywhere in transformers.
            targets: ground truth; in training its pilot queries come before the matching ones.
            generator: source of the pilot's noise.
            output_masks: False leaves `masks_queries_logits` to the caller, to be formed from `mask_embeddings`.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        return_dict = config.return_dict if return_dict is None else return_dict

        features, mask_features, levels = self.pixel_level_module(pixel_values)
        pilot = None
        if self.training and targets is not None:
            pilot = build_pilot(targets, [tuple(level.shape[-2:]) for level in levels], config, generator)
        decoded: DecoderOutput = self.transformer_module(mask_features, levels, pilot, bool(output_attentions))
        output = MPFormerModelOutput(
            encoder_last_hidden_state=features[-1],
            pixel_decoder_last_hidden_state=mask_features,
            transformer_decoder_last_hidden_state=decoded.hidden_states[-1],
            encoder_hidden_states=tuple(features) if output_hidden_states else None,
            pixel_decoder_hidden_states=tuple(levels) if output_hidden_states else None,
            transformer_decoder_hidden_states=decoded.hidden_states if output_hidden_states else None,
            transformer_decoder_intermediate_states=decoded.normed_states,
            masks_queries_logits=tuple(form_masks(e, mask_features) for e in decoded.mask_embeddings)
            if output_masks
            else None,
            attentions=decoded.attentions,
            mask_embeddings=decoded.mask_embeddings,
            pilot=pilot,
        )
        return output if return_dict else output.to_tuple()


class MPFormerForUniversalSegmentation(MPFormerPreTrainedModel):
    """MP-Former with class predictor and criterion: semantic, instance and panoptic segmentation."""

    def __init__(self, config: MPFormerConfig):
        super().__init__(config)
        self.model = MPFormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.criterion = MPFormerCriterion(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> MPFormerForUniversalSegmentationOutput | tuple:
        """
        Args:
            pixel_values: float `[B, 3, H, W]`, normalised, padded with zeros.
            mask_labels: per image `[T, H, W]`, any dtype, non-zero = foreground; T may be 0 and may exceed the queries.
            class_labels: per image int64 `[T]`, 0..num_labels - 1.
            pixel_mask: `[B, H, W]`, 1 = image, 0 = padding; handed on to post-processing.
            output_hidden_states, output_attentions, return_dict: as everywhere in transformers.
            output_auxiliary_logits: also return the earlier predictions.
            generator: source of the pilot's noise and of the sampling points, on the model's device; dropout and drop
                path use PyTorch's own.

        Raises:
            ValueError: only one kind of label is given, or labels do not fit the images or each other.
        """
        config = self.config
        return_dict = config.return_dict if return_dict is None else return_dict
        if output_auxiliary_logits is None:
            output_auxiliary_logits = config.output_auxiliary_logits
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("mask_labels and class_labels go together: one of them is missing.")
        if pixel_values.shape[1] != config.backbone_config.num_channels:
            raise ValueError(
                f"pixel_values has {pixel_values.shape[1]} channels, the backbone takes "
                f"{config.backbone_config.num_channels}."
            )
        targets = None
        if mask_labels is not None:
            size = tuple(pixel_values.shape[-2:])
            targets = collect_targets(mask_labels, class_labels, size, config.num_labels)
            if len(targets.counts) != len(pixel_values):
                raise ValueError(f"pixel_values has {len(pixel_values)} images, mask_labels has {len(targets.counts)}.")

        outputs: MPFormerModelOutput = self.model(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            targets=targets,
            generator=generator,
            output_masks=False,
        )
        mask_features = outputs.pixel_decoder_last_hidden_state
        num_pilot = 0 if outputs.pilot is None else outputs.pilot.num_queries
        matching = slice(num_pilot, None)
        wanted = (targets is not None and config.use_auxiliary_loss) or output_auxiliary_logits
        states = list(zip(outputs.transformer_decoder_intermediate_states, outputs.mask_embeddings, strict=True))[
            0 if wanted else -1 :
        ]
        predictions = [Prediction(self.class_predictor(state), embeddings) for state, embeddings in states]

        loss = loss_dict = None
        if targets is not None:
            counted = predictions if config.use_auxiliary_loss else predictions[-1:]
            loss_dict = self.criterion(counted, mask_features, targets, outputs.pilot, generator)
            loss = sum(loss_dict.values())
            if self.training and config.mask_piloting and outputs.pilot is None:
                # Without any target the class embedding has no part in the loss; DDP waits for its gradient.
                loss = loss + 0.0 * self.model.transformer_module.pilot_class_embedder.weight.sum()

        def form(prediction: Prediction) -> dict[str, Tensor]:
            own = prediction.part(matching)
            return {
                "masks_queries_logits": form_masks(own.mask_embeddings, mask_features),
                "class_queries_logits": own.class_logits,
            }

        def cut(tensors: tuple[Tensor, ...] | None, *parts: slice) -> tuple[Tensor, ...] | None:
            return None if tensors is None else tuple(tensor[(slice(None), *parts)] for tensor in tensors)

        final = form(predictions[-1])
        output = MPFormerForUniversalSegmentationOutput(
            loss=loss,
            **final,
            auxiliary_logits=[form(p) for p in predictions[:-1]] if output_auxiliary_logits else None,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            pixel_decoder_last_hidden_state=mask_features,
            transformer_decoder_last_hidden_state=outputs.transformer_decoder_last_hidden_state[:, matching],
            encoder_hidden_states=outputs.encoder_hidden_states,
            pixel_decoder_hidden_states=outputs.pixel_decoder_hidden_states,
            transformer_decoder_hidden_states=cut(outputs.transformer_decoder_hidden_states, matching),
            attentions=cut(outputs.attentions, slice(None), matching, matching),
            loss_dict=loss_dict,
            pixel_mask=pixel_mask,
        )
        return output if return_dict else output.to_tuple()

    def to_mask2former(self) -> Mask2FormerForUniversalSegmentation:
        """A plain Mask2Former with equal outputs, on the same device and in the same dtype: the pilot's class
        embedding is left out, missing query positions become zeros."""
        fields = self.config.to_dict()
        own = set(MPFormerConfig().to_dict()) - set(Mask2FormerConfig().to_dict())
        for name in own | {"model_type", "architectures", "auto_map", "_name_or_path", "custom_pipelines"}:
            fields.pop(name, None)
        plain = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**fields)).to(self.device, self.dtype)
        weights = self.state_dict()
        weights.pop("model.transformer_module.pilot_class_embedder.weight", None)
        positions = "model.transformer_module.queries_embedder.weight"
        weights.setdefault(positions, torch.zeros_like(plain.state_dict()[positions]))
        plain.load_state_dict(weights)
        return plain.train(self.training)
