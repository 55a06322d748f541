"""Tiny models, batches and fixtures that several test files need."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import ConvNextConfig, ResNetConfig, SwinConfig

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation
from mpformer_hf.hub.conversion import convert_state_dict
from mpformer_hf.model.targets import Targets, collect_targets

FIXTURES = Path(__file__).parent / "fixtures"
STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "swin": SwinConfig(embed_dim=12, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=STAGES),
    "resnet": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=STAGES
    ),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=STAGES),
}
SIZES = {
    "hidden_dim": 32,
    "feature_size": 32,
    "mask_feature_size": 32,
    "encoder_feedforward_dim": 64,
    "dim_feedforward": 64,
    "encoder_layers": 1,
    "decoder_layers": 5,
    "num_attention_heads": 4,
    "num_queries": 8,
    "train_num_points": 64,
}


def tiny_config(backbone: str = "resnet", **fields) -> MPFormerConfig:
    return MPFormerConfig(backbone_config=BACKBONES[backbone], **{**SIZES, "num_labels": 4, **fields})


def tiny_model(backbone: str = "resnet", **fields) -> MPFormerForUniversalSegmentation:
    model = MPFormerForUniversalSegmentation(tiny_config(backbone, **fields))
    with torch.no_grad():  # initial sampling places are the same everywhere: move them apart
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def random_targets(counts, size=(64, 96), num_labels=4) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Rectangles at random places: mask_labels, class_labels."""
    masks, labels = [], []
    for count in counts:
        image = torch.zeros(count, *size, dtype=torch.bool)
        for mask in image:
            y, x = int(torch.randint(size[0] - 16, ())), int(torch.randint(size[1] - 16, ()))
            height, width = (int(side) for side in torch.randint(4, 32, (2,)))
            mask[y : y + height, x : x + width] = True
        masks.append(image)
        labels.append(torch.randint(num_labels, (count,)))
    return masks, labels


def batch_of(counts, size=(64, 96), **kwargs) -> dict:
    masks, labels = random_targets(counts, size, **kwargs)
    return {"pixel_values": torch.randn(len(counts), 3, *size), "mask_labels": masks, "class_labels": labels}


class GoldenDecoder:
    """The official decoder fixture through our model: its decoder, pilot and criterion, without backbone."""

    def __init__(self):
        inputs = load_file(FIXTURES / "decoder_inputs.safetensors")
        self.expected = load_file(FIXTURES / "decoder_expected.safetensors")
        self.criterion = json.loads((FIXTURES / "criterion.json").read_text())
        self.points = load_file(FIXTURES / "criterion.safetensors")
        self.config = tiny_config(
            hidden_dim=64,
            feature_size=64,
            mask_feature_size=64,
            num_attention_heads=8,
            dim_feedforward=128,
            num_queries=10,
            num_labels=5,
            decoder_layers=7,
            query_position_embeddings=False,
            pilot_label_noise=0.0,
            train_num_points=self.criterion["num_points"],
        )
        self.model = MPFormerForUniversalSegmentation(self.config)
        official = {
            f"sem_seg_head.predictor.{name.removeprefix('weights.')}": tensor.float()
            for name, tensor in self.expected.items()
            if name.startswith("weights.")
        }
        converted = convert_state_dict(official)
        own = set(self.model.state_dict())
        decoder = {name for name in own if "transformer_module" in name or "class_predictor" in name}
        assert set(converted) == decoder
        self.model.load_state_dict(converted, strict=False)
        self.mask_features = inputs["inputs.mask_features"].float()
        levels = load_file(FIXTURES / "decoder_levels.safetensors")
        self.levels = [levels[f"inputs.multi_scale_{i}"].float() for i in range(3)]
        masks = [torch.from_numpy(np.unpackbits(inputs[f"targets.{i}.packed_masks"].numpy(), -1)) for i in range(2)]
        labels = [inputs[f"targets.{i}.labels"] for i in range(2)]
        self.targets: Targets = collect_targets(masks, labels, (256, 384))
        self.level_shapes = [tuple(level.shape[-2:]) for level in self.levels]
