"""Which backbones work, tried with random weights: a markdown table of parameters, strides, training and export.

python -m scripts.backbone_table training/results/backbones.md
python -m scripts.backbone_table table.md --backbones resnet dinov2 timm/convnextv2_atto

Each backbone has the size of its default configuration in transformers. "Trains": one training step of finite loss and
gradients. "Other sizes": inference at two image sizes whose sides are no multiples of 32. "Export": torch.export with
equal logits, for any image size or for the traced one.
"""

import argparse
import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, TimmBackboneConfig

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.backbone import probe_features
from mpformer_hf.cli.main import run_command
from mpformer_hf.exporting import ExportableModel, export_program, save_and_compare
from mpformer_hf.files import write_text
from mpformer_hf.inference import Predictor

BACKBONES = (
    *(
        "resnet",
        "convnext",
        "convnextv2",
        "dinov3_convnext",
        "swin",
        "swinv2",
        "pvt_v2",
        "hgnet_v2",
        "textnet",
        "hiera",
    ),
    *("dinov2", "dinov2_with_registers", "dinov3_vit", "vitdet", "beit"),
    *("timm/efficientnet_lite0", "timm/convnextv2_atto", "timm/mobilenetv4_conv_small", "timm/vit_small_patch16_224"),
)
SMALL = {"hidden_dim": 64, "feature_size": 64, "mask_feature_size": 64, "encoder_layers": 1, "decoder_layers": 3}
HEAD = "| backbone | parameters | strides | pyramid | trains | other sizes | export |"


def backbone_config(name: str):
    """Default configuration with the last four stages as feature maps."""
    if name.startswith("timm/"):
        return TimmBackboneConfig(backbone=name.removeprefix("timm/"), out_indices=[-4, -3, -2, -1])
    stages = AutoConfig.for_model(name).stage_names
    config = AutoConfig.for_model(name, out_indices=list(range(max(len(stages) - 4, 0), len(stages))))
    for field, value in vars(config).items():
        if isinstance(value, tuple):  # of a default; read from a file it is a list, which some backbones need
            setattr(config, field, list(value))
    return config


def trains(model: MPFormerForUniversalSegmentation, side: int) -> bool:
    """Whether a training step has a finite loss and finite gradients in the backbone."""
    masks = torch.zeros(2, side, side)
    masks[0, : side // 2], masks[1, side // 2 :] = 1, 1
    batch = {"pixel_values": torch.randn(2, 3, side, side), "mask_labels": [masks] * 2}
    model.train()(**batch, class_labels=[torch.tensor([0, 1])] * 2).loss.backward()
    grads = [p.grad for p in model.model.pixel_level_module.encoder.parameters() if p.grad is not None]
    model.zero_grad()
    return bool(grads) and all(torch.isfinite(grad).all() for grad in grads)


def exports(model: MPFormerForUniversalSegmentation, side: int) -> str:
    """ "any size", "one size" or "no"."""
    exportable = ExportableModel(model)
    try:
        with tempfile.TemporaryDirectory() as folder:
            check = partial(save_and_compare, exportable, file=Path(folder) / "model.pt2")
            return "any size" if export_program(exportable, side, side, check).smallest_side else "one size"
    except ValueError:
        return "no"


def table_row(name: str, export: bool) -> str:
    """Row of a backbone."""
    config = backbone_config(name)
    torch.manual_seed(0)
    model = MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=config, num_labels=3, **SMALL))
    module = model.model.pixel_level_module
    info = probe_features(module.encoder, config)
    side = module.image_size or 128
    parameters = sum(p.numel() for p in module.encoder.parameters()) / 1e6
    strides = ", ".join(f"{stride:g}" for stride in sorted(set(info.strides)))
    pyramid, works = "yes" if module.feature_pyramid else "", trains(model, side)
    sizes = f"{side}x{side} only"
    if module.image_size is None:
        processor = MPFormerImageProcessor(task="semantic", size={"shortest_edge": 96, "longest_edge": 192})
        predictor = Predictor(model.eval(), processor)
        sizes = (
            "yes" if all(predictor([torch.zeros(3, *s).byte()])[0].shape == s for s in ((70, 98), (99, 33))) else "no"
        )
    exported = exports(model.eval(), side) if export else "not tried"
    return (
        f"| {name} | {parameters:.1f} M | {strides} | {pyramid} | {'yes' if works else 'no'} | {sizes} | {exported} |"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="markdown file to write")
    parser.add_argument(
        "--backbones", nargs="+", default=list(BACKBONES), help="model types of transformers, or timm/NAME"
    )
    parser.add_argument("--no_export", action="store_true", help="leave out the export, which takes most of the time")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = [HEAD, "|---|---|---|---|---|---|---|"]
    for name in args.backbones:
        rows.append(table_row(name, not args.no_export))
        print(rows[-1], flush=True)
    write_text("\n".join(rows) + "\n", args.file)


if __name__ == "__main__":
    run_command(main)
