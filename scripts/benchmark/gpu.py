"""Training on a GPU: whole steps, memory, waits and kernels of our model and of transformers'.

python -m scripts.benchmark --preset gpu --output_file training/results/benchmark_gpu.json
python -m scripts.benchmark --preset gpu --backbones r50 --batches 1 4 --precisions bf16 --side 512

A step is forward and backward pass, clipping of gradients and AdamW (fused). Models of one row have the same weights
and inputs and take turns in one process, after three steps of each: ours with the pilot, without, with the pilot and
compiled (not with `--eager_only`), and transformers' Mask2Former. Memory is the peak above the loaded models and their
optimizer states. Waits and kernels of a step are counted by torch's profiler. Models that do not fit together are
measured alone. On a CPU it runs too, to try the command.
"""

import argparse
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from mpformer_hf.utils.files import write_json

from .gpu_steps import PRECISIONS, step_row
from .models import BACKBONES, DEVICE

COLUMNS = ("error", "images_per_second", "ratio", "memory_mib", "waits", "kernels")


def print_table(title: str, rows: dict[str, dict], columns: tuple[str, ...]) -> None:
    """Print a markdown table: a line for each row, a dash for what was not measured."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, row in rows.items():
        cells = ("-" if row.get(column) is None else row[column] for column in columns)
        print(f"| {name} | {' | '.join(map(str, cells))} |", flush=True)


def measure_steps(args: argparse.Namespace, result: dict) -> None:
    """Add `steps` to the result; the file is written after each row."""
    result["steps"] = []
    for backbone in args.backbones:
        for precision in args.precisions:
            for batch_size in sorted(set(args.batches)):
                about = {"backbone": backbone, "precision": precision, "batch": batch_size}
                row = step_row(backbone, batch_size, precision, args)
                result["steps"].append(about | {"models": row})
                print_table(", ".join(map(str, about.values())), row, COLUMNS)
                if args.output_file:
                    write_json(result, args.output_file)


def positive(text: str) -> int:
    """A number of the command line, at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def main(argv: list[str]) -> dict:
    """Measure and print everything; returns the content of the JSON file.

    Raises:
        ValueError: the output file exists.
    """
    parser = argparse.ArgumentParser(
        "python -m scripts.benchmark --preset gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbones", nargs="+", choices=tuple(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 4, 16], help="images of a step")
    parser.add_argument("--precisions", nargs="+", choices=tuple(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--side", type=positive, default=1024, help="side of the images in pixels")
    parser.add_argument("--targets", type=positive, default=20, help="objects of an image")
    parser.add_argument("--rounds", type=positive, default=10, help="timed steps of each model")
    parser.add_argument("--eager_only", action="store_true", help="do not compile a model")
    parser.add_argument("--output_file", type=Path, help="new JSON file, written after each row")
    args = parser.parse_args(argv)
    if args.output_file and args.output_file.exists():
        raise ValueError(f"{args.output_file} exists; choose another file.")
    result = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{platform.machine()}, CPU",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "side": args.side,
        "targets": args.targets,
        "rounds": args.rounds,
    }
    measure_steps(args, result)
    return result
