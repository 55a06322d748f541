"""Models, inputs and single steps that are measured."""

import torch
from torch import nn
from transformers import ResNetConfig, SwinConfig

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN_LARGE = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12}
BACKBONES = {
    "r50": ResNetConfig(out_features=STAGES),
    "swin_t": SwinConfig(depths=[2, 2, 6, 2], drop_path_rate=0.3, out_features=STAGES),
    "swin_l": SwinConfig(**SWIN_LARGE, drop_path_rate=0.3, out_features=STAGES),
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(backbone: str, recompute_encoder: bool = True, **fields) -> MPFormerForUniversalSegmentation:
    """A model of the size of the COCO instance release, in training mode."""
    torch.manual_seed(0)
    config = MPFormerConfig(backbone_config=BACKBONES[backbone], num_labels=80, **fields)
    model = MPFormerForUniversalSegmentation(config).to(DEVICE).train()
    model.model.pixel_level_module.decoder.encoder.recompute = recompute_encoder
    return model


def make_batch(size: int, batch: int, targets: int) -> dict:
    """Random images with random rectangles as targets."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(batch, targets, size, size, dtype=torch.bool)
    for mask in masks.flatten(0, 1):
        y, x, height, width = (int(v) for v in torch.randint(size // 16, size // 2, (4,), generator=generator))
        mask[y : y + height, x : x + width] = True
    return {
        "pixel_values": torch.randn(batch, 3, size, size, generator=generator).to(DEVICE),
        "mask_labels": [mask.to(DEVICE) for mask in masks],
        "class_labels": list(torch.randint(80, (batch, targets), generator=generator).to(DEVICE)),
    }


def with_float_masks(batch: dict) -> dict:
    """The batch with float masks, as Mask2Former requires."""
    return {**batch, "mask_labels": [mask.float() for mask in batch["mask_labels"]]}


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to a dtype; off for None."""
    return torch.autocast(DEVICE.type, dtype, enabled=dtype is not None)


def train_step(model: nn.Module, batch: dict, dtype: torch.dtype | None = None) -> None:
    """Forward pass, under autocast to `dtype`, and backward pass."""
    with autocast(dtype):
        loss = model(**batch).loss
    loss.backward()
    model.zero_grad(set_to_none=True)


@torch.inference_mode()
def predict(model: nn.Module, pixel_values: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Forward pass, under autocast to `dtype`."""
    with autocast(dtype):
        model(pixel_values)
