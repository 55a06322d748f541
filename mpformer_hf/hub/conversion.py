"""Conversion of official checkpoints of MP-Former and Mask2Former (detectron2): names, architecture, weights.

Each rule is a pattern of official names and the new name. A key that no rule matches is an error.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import ResNetConfig, SwinConfig

from ..model.configuration_mpformer import MPFormerConfig
from ..model.modeling_mpformer import MPFormerForUniversalSegmentation

STAGES = ["stage1", "stage2", "stage3", "stage4"]
ENCODER = "model.pixel_level_module.encoder."
PIXEL = "model.pixel_level_module.decoder."
MODULE = "model.transformer_module."
LAYER = MODULE + r"decoder.layers.\1."
SELF = r"predictor\.transformer_self_attention_layers\.(\d+)\."
CROSS = r"predictor\.transformer_cross_attention_layers\.(\d+)\."
FFN = r"predictor\.transformer_ffn_layers\.(\d+)\."
PIXEL_LAYER = r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\."
SWIN_BLOCK = ENCODER + r"swin.encoder.layers.\1.blocks.\2."
RESNET_BLOCK = ENCODER + r"encoder.stages.{stage}.layers.\2."

# (official pattern, new name). With several new names, the tensor is split into equal parts along its first axis.
RULES: list[tuple[str, str | tuple[str, ...]]] = [
    # transformer decoder
    (SELF + r"self_attn\.in_proj_(weight|bias)", tuple(LAYER + rf"self_attn.{name}_proj.\2" for name in "qkv")),
    (SELF + r"self_attn\.out_proj\.(\w+)", LAYER + r"self_attn.out_proj.\2"),
    (SELF + r"norm\.(\w+)", LAYER + r"self_attn_layer_norm.\2"),
    (CROSS + r"multihead_attn\.(.+)", LAYER + r"cross_attn.\2"),
    (CROSS + r"norm\.(\w+)", LAYER + r"cross_attn_layer_norm.\2"),
    (FFN + r"linear([12])\.(\w+)", LAYER + r"fc\2.\3"),
    (FFN + r"norm\.(\w+)", LAYER + r"final_layer_norm.\2"),
    (r"predictor\.decoder_norm\.(\w+)", MODULE + r"decoder.layernorm.\1"),
    (r"predictor\.mask_embed\.layers\.(\d)\.(\w+)", MODULE + r"decoder.mask_predictor.mask_embedder.\1.0.\2"),
    (r"predictor\.query_feat\.weight", MODULE + "queries_features.weight"),
    (r"predictor\.query_embed\.weight", MODULE + "queries_embedder.weight"),
    (r"predictor\.level_embed\.weight", MODULE + "level_embed.weight"),
    (r"predictor\.label_enc\.weight", MODULE + "pilot_class_embedder.weight"),
    (r"predictor\.input_proj\.(\d)\.(\w+)", MODULE + r"input_projections.\1.\2"),
    (r"predictor\.class_embed\.(\w+)", r"class_predictor.\1"),
    # pixel decoder
    (r"pixel_decoder\.input_proj\.(\d)\.([01])\.(\w+)", PIXEL + r"input_projections.\1.\2.\3"),
    (r"pixel_decoder\.transformer\.level_embed", PIXEL + "level_embed"),
    (PIXEL_LAYER + r"self_attn\.(.+)", PIXEL + r"encoder.layers.\1.self_attn.\2"),
    (PIXEL_LAYER + r"norm1\.(\w+)", PIXEL + r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (PIXEL_LAYER + r"norm2\.(\w+)", PIXEL + r"encoder.layers.\1.final_layer_norm.\2"),
    (PIXEL_LAYER + r"linear([12])\.(\w+)", PIXEL + r"encoder.layers.\1.fc\2.\3"),
    (r"pixel_decoder\.mask_features\.(\w+)", PIXEL + r"mask_projection.\1"),
    (r"pixel_decoder\.(adapter|layer)_1\.weight", PIXEL + r"\1_1.0.weight"),
    (r"pixel_decoder\.(adapter|layer)_1\.norm\.(\w+)", PIXEL + r"\1_1.1.\2"),
    # ResNet
    (r"backbone\.stem\.conv1\.weight", ENCODER + "embedder.embedder.convolution.weight"),
    (r"backbone\.stem\.conv1\.norm\.(\w+)", ENCODER + r"embedder.embedder.normalization.\1"),
    (r"backbone\.res(\d)\.(\d+)\.shortcut\.weight", RESNET_BLOCK + "shortcut.convolution.weight"),
    (r"backbone\.res(\d)\.(\d+)\.shortcut\.norm\.(\w+)", RESNET_BLOCK + r"shortcut.normalization.\3"),
    (r"backbone\.res(\d)\.(\d+)\.conv(\d)\.weight", RESNET_BLOCK + "layer.{conv}.convolution.weight"),
    (r"backbone\.res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)", RESNET_BLOCK + r"layer.{conv}.normalization.\4"),
    # Swin
    (r"backbone\.patch_embed\.proj\.(\w+)", ENCODER + r"swin.embeddings.patch_embeddings.projection.\1"),
    (r"backbone\.patch_embed\.norm\.(\w+)", ENCODER + r"swin.embeddings.norm.\1"),
    (r"backbone\.layers\.(\d)\.blocks\.(\d+)\.norm1\.(\w+)", SWIN_BLOCK + r"layernorm_before.\3"),
    (r"backbone\.layers\.(\d)\.blocks\.(\d+)\.norm2\.(\w+)", SWIN_BLOCK + r"layernorm_after.\3"),
    (
        r"backbone\.layers\.(\d)\.blocks\.(\d+)\.attn\.qkv\.(\w+)",
        tuple(SWIN_BLOCK + rf"attention.{name}_proj.\3" for name in "qkv"),
    ),
    (r"backbone\.layers\.(\d)\.blocks\.(\d+)\.attn\.proj\.(\w+)", SWIN_BLOCK + r"attention.o_proj.\3"),
    (
        r"backbone\.layers\.(\d)\.blocks\.(\d+)\.attn\.relative_position_bias_table",
        SWIN_BLOCK + "attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"backbone\.layers\.(\d)\.blocks\.(\d+)\.mlp\.(fc\d)\.(\w+)", SWIN_BLOCK + r"mlp.\3.\4"),
    (r"backbone\.layers\.(\d)\.downsample\.(.+)", ENCODER + r"swin.encoder.layers.\1.downsample.\2"),
    (r"backbone\.norm(\d)\.(\w+)", ENCODER + r"hidden_states_norms.stage{norm}.\2"),
]
# Constants, which are not parameters of the new model.
CONSTANTS = (
    r"criterion\.empty_weight",
    r"backbone\.layers\.\d\.blocks\.\d+\.attn\.relative_position_index",
    r"pixel_(mean|std)",
)


def current_names(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights without `sem_seg_head.`, with the names of the latest official version. Earlier files have
    `static_query` for the query features and no `pixel_decoder` in the names of its weights."""
    weights = {}
    for key, tensor in official.items():
        name = key.removeprefix("sem_seg_head.").replace("predictor.static_query.", "predictor.query_feat.")
        if key.startswith("sem_seg_head.") and not name.startswith(("predictor.", "pixel_decoder.")):
            name = f"pixel_decoder.{name}"
        weights[name] = tensor
    return weights


def rename(key: str) -> tuple[str, ...] | None:
    """New names of a key of `current_names` (several if the tensor is split, none for a constant), or
    None for an unknown key."""
    if any(re.fullmatch(pattern, key) for pattern in CONSTANTS):
        return ()
    for pattern, new in RULES:
        match = re.fullmatch(pattern, key)
        if match:
            groups = match.groups()
            shifted = {  # indices with another offset
                "stage": int(groups[0]) - 2 if "{stage}" in str(new) else None,
                "conv": int(groups[2]) - 1 if "{conv}" in str(new) else None,
                "norm": int(groups[0]) + 1 if "{norm}" in str(new) else None,
            }
            names = (new,) if isinstance(new, str) else new
            return tuple(match.expand(name.format(**shifted)) for name in names)
    return None


def convert_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights with their new names.

    Args:
        official: the `model` entry of a detectron2 checkpoint.

    Raises:
        ValueError: it has unknown keys; the message lists the first of them.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in current_names(official).items():
        names = rename(key)
        if names is None:
            unknown.append(key)
            continue
        converted |= dict(zip(names, tensor.chunk(len(names)) if names else (), strict=True))
    if unknown:
        listed = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise ValueError(f"{len(unknown)} keys of the checkpoint are not MP-Former's or Mask2Former's: {listed}")
    return converted


def infer_config(official: Mapping[str, Tensor], **fields) -> MPFormerConfig:
    """Configuration from the shapes of official weights (R50, R101, Swin).

    Args:
        official: the `model` entry of a detectron2 checkpoint.
        fields: other fields of the configuration, for example `id2label`, or `mask_piloting=True` to train a
            Mask2Former with the pilot.

    Raises:
        ValueError: it is not an MP-Former or Mask2Former; the message lists the missing keys.
    """
    weights = current_names(official)
    required = ("predictor.class_embed.weight", "predictor.query_feat.weight", "pixel_decoder.mask_features.weight")
    missing = [key for key in required if key not in weights]
    if missing:
        raise ValueError(f"Not an image checkpoint of MP-Former or Mask2Former: {', '.join(missing)} missing.")

    def layers(prefix: str) -> int:
        matches = {re.match(re.escape(prefix) + r"(\d+)\.", key) for key in weights}
        return len({match[1] for match in matches if match})

    layer = "pixel_decoder.transformer.encoder.layers.0."
    architecture = {
        "num_labels": weights["predictor.class_embed.weight"].shape[0] - 1,
        "backbone_config": infer_backbone_config(weights, layers),
        "feature_size": weights["pixel_decoder.mask_features.weight"].shape[1],
        "mask_feature_size": weights["pixel_decoder.mask_features.weight"].shape[0],
        "hidden_dim": weights["predictor.query_feat.weight"].shape[1],
        "encoder_feedforward_dim": weights[layer + "linear1.weight"].shape[0],
        "encoder_layers": layers("pixel_decoder.transformer.encoder.layers."),
        "decoder_layers": layers("predictor.transformer_ffn_layers.") + 1,
        "num_attention_heads": weights[layer + "self_attn.attention_weights.bias"].shape[0] // 12,  # 3 levels, 4 points
        "dim_feedforward": weights["predictor.transformer_ffn_layers.0.linear1.weight"].shape[0],
        "num_queries": weights["predictor.query_feat.weight"].shape[0],
        "enforce_input_projection": "predictor.input_proj.0.weight" in weights,
        "mask_piloting": "predictor.label_enc.weight" in weights,
        "query_position_embeddings": "predictor.query_embed.weight" in weights,
    }
    return MPFormerConfig(**{**architecture, **fields})


def infer_backbone_config(weights: Mapping[str, Tensor], layers) -> ResNetConfig | SwinConfig:
    """Configuration of the backbone from its weights; `layers(prefix)` counts the indices after a prefix.

    Raises:
        ValueError: it is neither a ResNet nor a Swin.
    """
    if "backbone.patch_embed.proj.weight" in weights:
        tables = [weights[f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table"].shape for i in range(4)]
        return SwinConfig(
            embed_dim=weights["backbone.patch_embed.proj.weight"].shape[0],
            depths=[layers(f"backbone.layers.{i}.blocks.") for i in range(4)],
            num_heads=[heads for _, heads in tables],
            window_size=(int(tables[0][0] ** 0.5) + 1) // 2,
            drop_path_rate=0.3,
            out_features=STAGES,
        )
    if "backbone.stem.conv1.weight" in weights:
        return ResNetConfig(
            embedding_size=weights["backbone.stem.conv1.weight"].shape[0],
            hidden_sizes=[weights[f"backbone.res{i}.0.shortcut.weight"].shape[0] for i in range(2, 6)],
            depths=[layers(f"backbone.res{i}.") for i in range(2, 6)],
            layer_type="bottleneck",
            out_features=STAGES,
        )
    raise ValueError("Neither a ResNet nor a Swin backbone: backbone.stem.conv1 and backbone.patch_embed are missing.")


def convert_checkpoint(official: Mapping[str, Tensor], **fields) -> MPFormerForUniversalSegmentation:
    """A model with the official weights, in evaluation mode.

    Args:
        official: the `model` entry of a detectron2 checkpoint.
        fields: fields of the configuration, for example `id2label`.

    Raises:
        ValueError: a key is unknown or missing, or has another shape.
    """
    config = infer_config(official, **fields)
    weights = convert_state_dict(official)
    model = MPFormerForUniversalSegmentation(config).eval()
    own = model.state_dict()
    unused = model.unused_weights()
    for key in own:  # not in official checkpoints
        if key in unused or any(part in key for part in ("num_batches_tracked", "pilot_class_embedder.")):
            weights.setdefault(key, own[key])
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    if missing or extra:
        raise ValueError(
            f"The checkpoint does not fit the model: missing keys {missing[:8]}, unexpected keys {extra[:8]}."
        )
    wrong = [key for key in own if own[key].shape != weights[key].shape]
    if wrong:
        raise ValueError(f"Shapes differ: {', '.join(wrong[:8])}")
    model.load_state_dict({key: tensor.to(torch.float32) for key, tensor in weights.items()})
    return model
