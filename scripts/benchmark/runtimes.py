"""Exported files beside the model: difference, equal pixels and time on five photos, for each installed runtime.
Weights are random, so most pixels are near a decision; a trained model has more equal pixels.

python -m scripts.benchmark --preset runtimes --backbone r50 --output_file training/results/runtimes_r50.json
"""

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import skimage.data
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.data.arguments import ModelDataArguments
from mpformer_hf.evaluation.arguments import ComparedModels
from mpformer_hf.evaluation.comparison import compare
from mpformer_hf.export.arguments import ExportArguments
from mpformer_hf.export.exporter import export, fix_size
from mpformer_hf.export.targets import TARGETS
from mpformer_hf.utils.files import write_json

from .models import BACKBONES, build

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left")


def is_possible(suffix: str) -> bool:
    """Whether files of a kind can be written and run here."""
    try:
        TARGETS[suffix].require()
    except ValueError:
        return False
    return TARGETS[suffix].runs


def main(argv: list[str]) -> dict:
    """Export a model, compare, print and write the table; returns the content of the JSON file.

    Raises:
        ValueError: the output file exists.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="r50")
    parser.add_argument("--side", type=int, default=512, help="of the images in pixels")
    parser.add_argument("--output_file", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.output_file.exists():
        raise ValueError(f"{args.output_file} exists; choose another name.")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "photos").mkdir()
        for name in PHOTOS:
            found = next(Path(skimage.data.__file__).parent.glob(f"{name}.*"))
            Image.open(found).convert("RGB").save(root / "photos" / f"{name}.png")
        build(args.backbone, mask_piloting=False).save_pretrained(root / "model")
        processor = MPFormerImageProcessor(task="semantic")
        fix_size(processor, args.side, args.side)
        processor.save_pretrained(root / "model")
        files = []
        for number, suffix in enumerate(suffix for suffix in TARGETS if is_possible(suffix)):
            files.append(str(root / f"file{number}{suffix}"))
            export(ExportArguments(str(root / "model"), Path(files[-1]), args.side, args.side))
        models = ComparedModels(models=[str(root / "model"), *files], no_labels=True, device="cpu")
        rows = compare(ModelDataArguments(dataset_name=str(root / "photos"), task="semantic"), models, {})
    content = {
        "backbone": args.backbone,
        "side": args.side,
        "photos": list(PHOTOS),
        "rows": rows,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime", "openvino")},
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }
    write_json(content, args.output_file)
    print(json.dumps(content, indent=2))
    return content
