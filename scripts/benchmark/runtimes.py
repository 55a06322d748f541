"""Exported files beside the model: difference, equal pixels and time for each installed runtime.

python -m scripts.benchmark --preset runtimes --backbone r50 --output_file training/results/runtimes_r50.json
python -m scripts.benchmark --preset runtimes --model outputs/quickstart/model --data outputs/quickstart/data --side 128
    --output_file training/results/runtimes_quickstart.json

The first has random weights, so most pixels are near a decision, and five photos. The second has a trained model and
images with labels: scores too, and files of fp16 and of int8, whose ranges are those of 32 training images.
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
from mpformer_hf.data.arguments import DataArguments, ModelDataArguments
from mpformer_hf.data.opening import open_dataset
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


def save_photos(folder: Path, data: str | None) -> None:
    """Save photographs of scikit-image, or 32 training images of a dataset."""
    folder.mkdir()
    if data is None:
        for name in PHOTOS:
            found = next(Path(skimage.data.__file__).parent.glob(f"{name}.*"))
            Image.open(found).convert("RGB").save(folder / f"{name}.png")
        return
    split = open_dataset(DataArguments(dataset_name=data, task="panoptic"), "train", 32)
    for row in range(len(split)):
        Image.fromarray(split[row][0].permute(1, 2, 0).numpy()).save(folder / f"{row}.png")


def main(argv: list[str]) -> dict:
    """Export a model, compare, print and write the table; returns the content of the JSON file.

    Raises:
        ValueError: the output file exists.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="r50")
    parser.add_argument("--model", type=Path, help="saved model; default: random weights of --backbone")
    parser.add_argument("--data", help="model: its dataset, whose test split is scored")
    parser.add_argument("--side", type=int, default=512, help="of the images in pixels")
    parser.add_argument("--output_file", type=Path, required=True)
    args = parser.parse_args(argv)
    if (args.model is None) != (args.data is None):
        raise ValueError("Give --model and --data together.")
    if args.output_file.exists():
        raise ValueError(f"{args.output_file} exists; choose another name.")
    with tempfile.TemporaryDirectory() as folder:
        root, model, files = Path(folder), args.model, []
        save_photos(root / "photos", args.data)
        if model is None:
            model = root / "model"
            build(args.backbone, mask_piloting=False).save_pretrained(model)
            processor = MPFormerImageProcessor(task="semantic")
            fix_size(processor, args.side, args.side)
            processor.save_pretrained(model)
        kinds = [(suffix, "fp32") for suffix in TARGETS if is_possible(suffix)]
        kinds += [(".onnx", "fp16"), (".onnx", "int8")] if args.data and is_possible(".onnx") else []
        for number, (suffix, precision) in enumerate(kinds):
            files.append(str(root / f"{number}_{precision}{suffix}"))
            sizes = {"height": args.side, "width": args.side}
            photos = root / "photos" if precision == "int8" else None
            export(ExportArguments(str(model), Path(files[-1]), **sizes, precision=precision, photos=photos))
        models = ComparedModels(models=[str(model), *files], no_labels=args.data is None, device="cpu")
        data = ModelDataArguments(dataset_name=args.data or str(root / "photos"), eval_split="test")
        rows = compare(data, models, {})
    content = {
        "model": str(args.model or args.backbone),
        "side": args.side,
        "images": f"{args.data}, test" if args.data else list(PHOTOS),
        "rows": rows,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime", "openvino")},
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }
    write_json(content, args.output_file)
    print(json.dumps(content, indent=2))
    return content
