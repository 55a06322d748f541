"""Speed and memory compared with transformers' Mask2Former: same weights and inputs, interleaved in one process per
row.

python -m scripts.benchmark --backbone r50 --output_file training/results/benchmark_r50_cpu.json
python -m scripts.benchmark --backbone swin_t --measure inference training --rounds 3
python -m scripts.benchmark --preset gpu --output_file training/results/benchmark_gpu.json

Each row has the ratio of medians, ours / theirs, and the smallest and largest ratio of consecutive runs; absolute times
depend on the machine and its load. Training steps are ours with the pilot and theirs without. Peak memory is measured
in separate processes, above that of the loaded model; on the CPU once with an allocator that returns freed blocks, to
measure the memory of tensors, and once with the default allocator. Uses a GPU if there is one; `--bf16`
runs the models under autocast. Three presets have flags of their own (`--preset gpu --help`): `gpu` measures
whole training steps on a GPU, `files` CPU time and memory beside the model, `runtimes` exported files.
"""

import argparse
import json
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers

from mpformer_hf.utils.command import run_command
from mpformer_hf.utils.files import write_json

from . import files, gpu, runtimes
from .model_rows import inference_rows, memory_rows, option_rows, pilot_rows, stage_rows, training_rows
from .models import BACKBONES, DEVICE

PRESETS = {"gpu": gpu.main, "files": files.main, "runtimes": runtimes.main}
BENCHMARKS = {
    "inference": inference_rows,
    "stages": stage_rows,
    "training": training_rows,
    "memory": memory_rows,
    "pilot": pilot_rows,
    "options": option_rows,
}


def summary(measured: dict | list) -> object:
    """Printed summary of a row: the last of several models."""
    if isinstance(measured, list):
        return ""
    last = list(measured.values())[-1]
    return last if isinstance(last, dict) else measured


def main(argv: list[str] | None = None) -> dict:
    """Measure, print and write all rows; returns the content of the JSON file.

    Raises:
        ValueError: the output file has other results.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--preset", choices=PRESETS, help="other measurements, with flags of their own")
    preset, argv = parser.parse_known_args(argv)
    if preset.preset:
        return PRESETS[preset.preset](argv)
    about = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(parents=[parser], **about)
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="r50", help="size of the model")
    parser.add_argument(
        "--measure",
        nargs="+",
        choices=BENCHMARKS,
        default=[name for name in BENCHMARKS if name != "options"],
        help="what to measure",
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024], help="image sides")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each")
    parser.add_argument("--bf16", action="store_true", help="models under bfloat16 autocast")
    parser.add_argument("--output_file", type=Path, help="JSON file, new or of the same settings")
    args = parser.parse_args(argv)
    args.dtype = torch.bfloat16 if args.bf16 else None
    result = {
        "backbone": args.backbone,
        "hardware": torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{platform.machine()}, CPU",
        "cpu_threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
        "precision": "bfloat16 autocast" if args.bf16 else "float32",
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
        "rounds": args.rounds,
        "rows": {},
    }
    if args.output_file and args.output_file.exists():
        before = json.loads(args.output_file.read_text())
        if {**before, "rows": {}} != result:
            raise ValueError(
                f"{args.output_file} has results of another machine or other settings; choose another file."
            )
        result = before
    for name in args.measure:
        with ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn")
        ) as fresh:  # earlier rows would change the state of the allocator
            measurements = fresh.submit(BENCHMARKS[name], args, args.rounds).result()
        for row, measured in measurements.items():
            result["rows"][row] = measured
            if args.output_file:
                write_json(result, args.output_file)
            print(f"{row:60s} {summary(measured)}", flush=True)
    return result


if __name__ == "__main__":
    run_command(main)
