"""MP-Former: backbone, pixel decoder, masked-attention decoder and, in training, the mask pilot.

At inference it is Mask2Former. Parameter names are those of transformers' Mask2Former, so its checkpoints load without
conversion; the only additional parameter is the pilot's class embedding.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, PreTrainedModel, initialization
from transformers.core_model_loading import revert_weight_conversion

from .backbone import build_backbone, image_channels, unused_parameters
from .configuration_mpformer import MPFormerConfig
from .criterion import MPFormerCriterion
from .deformable_attention import SamplingOffsets, ZeroInitLinear
from .image_sizes import size_of
from .mask_piloting import build_pilot
from .matcher import Prediction
from .outputs import MPFormerForUniversalSegmentationOutput, MPFormerModelOutput
from .pixel_decoder import MPFormerPixelDecoder
from .prompting import ImageFeatures, RefinedMasks, boxes_to_masks, check_prompts, refine_masks
from .targets import Targets, collect_targets
from .transformer_decoder import (
    DecoderOutput,
    MaskEmbedderLinear,
    MPFormerCrossAttention,
    MPFormerTransformerModule,
    compute_masks,
)


class MPFormerPixelLevelModule(nn.Module):
    """Backbone and pixel decoder.

    Args:
        config: its `backbone_config` is that of any `AutoBackbone`, see `build_backbone`.

    Raises:
        ValueError: the feature maps of the backbone cannot be used.
    """

    def __init__(self, config: MPFormerConfig):
        super().__init__()
        self.encoder, self.feature_pyramid, info = build_backbone(config)
        self.backbone_config, self.image_size, self.unused = config.backbone_config, info.image_size, info.unused
        self.freeze_unused()
        self.decoder = MPFormerPixelDecoder(config, info.channels)

    def find_unused(self) -> None:
        """Look again for parameters without gradient and freeze them, after layers of the backbone were replaced."""
        source = None if self.feature_pyramid is None else self.feature_pyramid.source
        self.unused = unused_parameters(self.encoder, self.backbone_config, self.image_size, source)
        self.freeze_unused()

    def freeze_unused(self) -> None:
        """Freeze the parameters of the backbone that get no gradient, see `unused_parameters`."""
        for name in self.unused:
            self.encoder.get_parameter(name).requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> tuple[tuple[Tensor, ...], Tensor, list[Tensor]]:
        """`[B, 3, H, W]` -> four feature maps, mask features, feature levels of the decoder.

        Raises:
            ValueError: the backbone takes images of another size only.
        """
        size = size_of(pixel_values)
        if self.image_size is not None and size != (self.image_size, self.image_size):
            sizes = f"{self.image_size}x{self.image_size} pixels only, got {size[0]}x{size[1]}"
            raise ValueError(f"The backbone takes images of {sizes}.")
        if self.feature_pyramid is not None:
            pixel_values = self.feature_pyramid.whole_patches(pixel_values)
        # Channels last: convolutions are at least as fast, and feature maps become sequences without a copy.
        features = self.encoder(pixel_values.contiguous(memory_format=torch.channels_last)).feature_maps
        if self.feature_pyramid is not None:
            features = self.feature_pyramid(features, size)
        return features, *self.decoder(list(features))


class MPFormerPreTrainedModel(PreTrainedModel):
    config_class = MPFormerConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("MPFormerPixelDecoderEncoderLayer", "MPFormerDecoderLayer")
    # constants in Mask2Former's checkpoints
    _keys_to_ignore_on_load_unexpected = (r"criterion\.empty_weight", r"relative_position_index")
    _keys_to_ignore_on_load_missing: Any = (r"pilot_class_embedder\.weight",)  # Mask2Former has none

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in other transformers models. Parameters that get no gradient are frozen again: loading replaces them."""
        loaded = super().from_pretrained(*args, **kwargs)
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            if isinstance(module, MPFormerPixelLevelModule):
                module.freeze_unused()
        return loaded

    @torch.no_grad()
    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode; afterwards the mode of each module is as before."""
        training = [module for module in self.modules() if module.training]
        if training:
            self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _init_weights(self, module: nn.Module):
        """Initialise a module: Xavier with gain `init_xavier_std` for linear layers and convolutions, N(0, 1) for
        embeddings, N(0, `init_std`) for the class predictor, PyTorch's default for the mask embedder."""
        gain = self.config.init_xavier_std
        if isinstance(module, ZeroInitLinear):
            initialization.zeros_(module.weight)
            if isinstance(module, SamplingOffsets):
                initialization.copy_(module.bias, module.initial_bias())
            else:
                initialization.zeros_(module.bias)
        elif isinstance(module, MaskEmbedderLinear):
            initialization.kaiming_uniform_(module.weight, a=5**0.5)
            initialization.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
        elif isinstance(module, ClassPredictor):
            initialization.normal_(module.weight, std=self.config.init_std)
            initialization.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            initialization.xavier_uniform_(module.weight, gain=gain)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, MPFormerCrossAttention):
            initialization.xavier_uniform_(module.in_proj_weight, gain=gain)
            initialization.zeros_(module.in_proj_bias)
        elif isinstance(module, MPFormerPixelDecoder):
            initialization.normal_(module.level_embed)
        elif isinstance(module, nn.Embedding):
            initialization.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)


def rename_saved_weights(model: PreTrainedModel, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Before `load_state_dict`: rename weights of a file of `save_pretrained`, which for some backbones (Swin) has the
    names of earlier versions of transformers, in place. `from_pretrained` renames them itself; Trainer does not when it
    resumes."""
    own = model.state_dict(keep_vars=True)
    if all(prefix + name in state_dict for name in own):
        return
    names = {id(tensor): name for name, tensor in own.items()}
    for saved, tensor in revert_weight_conversion(model, own).items():
        name = names.get(id(tensor))
        if name not in (None, saved) and prefix + saved in state_dict and saved not in own:
            state_dict[prefix + name] = state_dict.pop(prefix + saved)


class MPFormerModel(MPFormerPreTrainedModel):
    """MP-Former without class predictor and loss."""

    def __init__(self, config: MPFormerConfig):
        super().__init__(config)
        self.pixel_level_module = MPFormerPixelLevelModule(config)
        self.transformer_module = MPFormerTransformerModule(config)
        self.post_init()

    def get_input_embeddings(self) -> None:
        """None: there is no input embedding. FSDP and other tools call this method."""

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
            pixel_mask: `[B, H, W]`, ignored, as in the official code: padding is not masked out.
            output_hidden_states, output_attentions, return_dict: as in other transformers models.
            targets: ground truth; in training, pilot queries are added before the matching queries.
            generator: source of the pilot's noise.
            output_masks: if False, `masks_queries_logits` is None; it can be computed from `mask_embeddings`.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        return_dict = config.return_dict if return_dict is None else return_dict

        features, mask_features, levels = self.pixel_level_module(pixel_values)
        pilot = None
        if self.training and targets is not None:
            pilot = build_pilot(targets, [size_of(level) for level in levels], config, generator)
        decoded: DecoderOutput = self.transformer_module(
            mask_features, levels, pilot, bool(output_hidden_states), bool(output_attentions)
        )
        output = MPFormerModelOutput(
            encoder_last_hidden_state=features[-1],
            pixel_decoder_last_hidden_state=mask_features,
            transformer_decoder_last_hidden_state=decoded.last_hidden_state,
            encoder_hidden_states=tuple(features) if output_hidden_states else None,
            pixel_decoder_hidden_states=tuple(levels) if output_hidden_states else None,
            transformer_decoder_hidden_states=decoded.hidden_states,
            transformer_decoder_intermediate_states=decoded.normed_states,
            masks_queries_logits=tuple(compute_masks(e, mask_features) for e in decoded.mask_embeddings)
            if output_masks
            else None,
            attentions=decoded.attentions,
            mask_embeddings=decoded.mask_embeddings,
            pilot=pilot,
        )
        return output if return_dict else output.to_tuple()


class ClassPredictor(nn.Linear):
    """Linear layer from query states to class logits `[..., K + 1]`, see `MPFormerPreTrainedModel._init_weights`."""


class MPFormerForUniversalSegmentation(MPFormerPreTrainedModel):
    """MP-Former with class predictor and criterion: semantic, instance and panoptic segmentation."""

    def __init__(self, config: MPFormerConfig):
        super().__init__(config)
        self.model = MPFormerModel(config)
        self.class_predictor = ClassPredictor(config.hidden_dim, config.num_labels + 1)
        self.criterion = MPFormerCriterion(config)
        self.register_load_state_dict_pre_hook(rename_saved_weights)
        self.post_init()
        self._keys_to_ignore_on_load_missing |= {f"^{re.escape(name)}$" for name in self.unused_weights()}

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
        void_mask: Tensor | None = None,
        annotated_classes: Tensor | None = None,
        complete: Tensor | None = None,
    ) -> MPFormerForUniversalSegmentationOutput | tuple:
        """
        Args:
            pixel_values: float `[B, 3, H, W]`, normalised, padded with zeros.
            mask_labels: per image `[T, H, W]`, any dtype, non-zero = foreground; T may be 0 and may exceed the queries.
            class_labels: per image int64 `[T]`, 0..num_labels - 1.
            pixel_mask: `[B, H, W]`, 1 = image, 0 = padding; returned for post-processing.
            output_hidden_states, output_attentions, return_dict: as in other transformers models.
            output_auxiliary_logits: also return the earlier predictions.
            generator: source of the pilot's noise and of the sampling points, on the model's device. Dropout, drop path
                and loss points per mask (`mask_loss_points="mask"`) use PyTorch's default generator.
            void_mask: `[B, H, W]`, 0 = labelled, 2 = crowds: objects that are background of all masks, and on which
                predictions are no errors; other values = void: such pixels have no loss. None: all are labelled.
            annotated_classes: bool `[B, num_labels]`, classes whose objects are all labelled in the image. None: all.
            complete: bool `[B]`, False if objects of the image may have no label. None: all are complete.

        Raises:
            ValueError: only one kind of label is given, or labels and images do not fit.
        """
        config = self.config
        return_dict = config.return_dict if return_dict is None else return_dict
        if output_auxiliary_logits is None:
            output_auxiliary_logits = config.output_auxiliary_logits
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("mask_labels and class_labels must be given together; one of them is missing.")
        channels = image_channels(config.backbone_config)
        if pixel_values.shape[1] != channels:
            raise ValueError(f"pixel_values has {pixel_values.shape[1]} channels, the backbone takes {channels}.")
        if pixel_mask is not None and pixel_mask.shape != pixel_values[:, 0].shape:
            raise ValueError(
                f"pixel_mask has shape {tuple(pixel_mask.shape)}, expected {tuple(pixel_values[:, 0].shape)}."
            )
        targets = None
        if mask_labels is not None and class_labels is not None:
            size = size_of(pixel_values)
            void_mask = void_mask if config.void_in_loss == "ignored" else None
            known = (void_mask, annotated_classes, complete)
            targets = collect_targets(mask_labels, class_labels, size, config.num_labels, *known)
            targets = targets.to(pixel_values.device)
            if len(targets.counts) != len(pixel_values):
                raise ValueError(f"pixel_values has {len(pixel_values)} images, mask_labels has {len(targets.counts)}.")

        outputs: Any = self.model(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            targets=targets,
            generator=generator,
            output_masks=False,
        )
        mask_features = outputs.pixel_decoder_last_hidden_state
        states, embeddings = outputs.transformer_decoder_intermediate_states, outputs.mask_embeddings
        if not (output_auxiliary_logits or (targets is not None and config.use_auxiliary_loss)):
            states, embeddings = states[-1:], embeddings[-1:]
        predictions = [Prediction(self.class_predictor(s), e) for s, e in zip(states, embeddings, strict=True)]

        loss = loss_dict = None
        if targets is not None:
            with_loss = predictions if config.use_auxiliary_loss else predictions[-1:]
            loss_dict = self.criterion(with_loss, mask_features, targets, outputs.pilot, generator)
            loss = torch.stack(list(loss_dict.values())).sum()

        def matching_logits(prediction: Prediction) -> dict[str, Any]:
            matching = prediction.select(slice(outputs.num_pilot_queries, None))
            return {
                "masks_queries_logits": compute_masks(matching.mask_embeddings, mask_features),
                "class_queries_logits": matching.class_logits,
            }

        output = MPFormerForUniversalSegmentationOutput(
            loss=loss,
            **matching_logits(predictions[-1]),
            auxiliary_logits=[matching_logits(p) for p in predictions[:-1]] if output_auxiliary_logits else None,
            **outputs.shared_fields(),
            loss_dict=loss_dict,
            pixel_mask=pixel_mask,
        )
        return output if return_dict else output.to_tuple()

    def unused_weights(self) -> set[str]:
        """Names of the backbone's weights that change no feature map, such as a final norm. Checkpoints may lack them:
        earlier versions of transformers had no `layernorm` in Swin backbones."""
        return {f"model.pixel_level_module.encoder.{name}" for name in self.model.pixel_level_module.unused}

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> ImageFeatures:
        """Features of one image, float `[1, 3, H, W]`, in evaluation mode, for `refine`."""
        with self.evaluating():
            _, mask_features, levels = self.model.pixel_level_module(pixel_values)
            memory = self.model.transformer_module.prepare(mask_features, levels)
            matching = self.model.transformer_module.matching_states(memory)
        return ImageFeatures(mask_features, memory, matching, size_of(pixel_values))

    def refine(
        self,
        image: Tensor | ImageFeatures,
        masks: Tensor | None = None,
        boxes: Tensor | None = None,
        labels: Tensor | None = None,
        rounds: int = 1,
    ) -> RefinedMasks:
        """Refine masks or boxes, in evaluation mode, see `prompting.py`.

        Args:
            image: float `[1, 3, H, W]`, normalised and padded, or what `encode` made of it.
            masks: `[P, H, W]`, non-zero = inside; or
            boxes: `[P, 4]`, (x0, y0, x1, y1) in pixels of this image, x1 and y1 exclusive.
            labels: integers `[P]`, class of each prompt; -1 or None: not known, all classes are tried.
            rounds: the results are the prompts of the next round, until none changes.

        Raises:
            ValueError: the model has no pilot, or a prompt is invalid.
        """
        if not self.config.mask_piloting:
            raise ValueError("The model has no pilot (mask_piloting is False), so it cannot refine masks.")
        if (masks is None) == (boxes is None):
            raise ValueError("Give either masks or boxes.")
        features = image if isinstance(image, ImageFeatures) else self.encode(image)
        given = torch.as_tensor(masks) != 0 if boxes is None else boxes_to_masks(boxes, features.size)
        labels = check_prompts(given, labels, features.size, self.config.num_labels)
        given, labels = given.to(self.device, torch.uint8), labels.to(self.device)
        with self.evaluating():
            return refine_masks(self, features, given, labels, rounds)

    def to_mask2former(self) -> Mask2FormerForUniversalSegmentation:
        """A plain Mask2Former with equal outputs, on the same device and in the same dtype. The pilot's class embedding
        is dropped; missing query positions become zeros.

        Raises:
            ValueError: the model has a feature pyramid, which Mask2Former does not have, or adapters.
        """
        if self.model.pixel_level_module.feature_pyramid is not None:
            raise ValueError("A model with a feature pyramid cannot become a Mask2Former, which has none.")
        if any("lora_A" in name for name, _ in self.named_modules()):
            raise ValueError("The model has adapters; merge them into its weights first, with merge_and_unload().")
        fields = self.config.to_dict()
        added = set(MPFormerConfig().to_dict()) - set(Mask2FormerConfig().to_dict())
        for name in added | {"model_type", "architectures", "auto_map", "_name_or_path", "custom_pipelines"}:
            fields.pop(name, None)
        plain = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**fields)).to(self.device, self.dtype)
        weights = self.state_dict()
        weights.pop("model.transformer_module.pilot_class_embedder.weight", None)
        weights["criterion.empty_weight"] = plain.criterion.empty_weight
        positions = plain.model.transformer_module.queries_embedder.weight
        weights.setdefault("model.transformer_module.queries_embedder.weight", torch.zeros_like(positions))
        plain.load_state_dict(weights)
        return plain.train(self.training)
