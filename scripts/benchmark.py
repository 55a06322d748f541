"""What the pilot costs in training: step time side by side in one process, peak memory in processes of their own.

python scripts/benchmark.py --backbone r50 --output_file training/results/benchmark_pilot.json
python scripts/benchmark.py --backbone swin_t --size 512 --batch 2 --targets 20 --rounds 5

Steps with and without the pilot alternate (A B A B ...); the ratio is that of the medians, with the smallest and
largest ratio of neighbouring steps. `--curve` also times other numbers of groups and targets.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # as a script: find the package `mpformer_hf`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers
from transformers import ResNetConfig, SwinConfig

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "r50": ResNetConfig(out_features=STAGES),
    "swin_t": SwinConfig(depths=[2, 2, 6, 2], drop_path_rate=0.3, out_features=STAGES),
}


def build(backbone: str, **fields) -> MPFormerForUniversalSegmentation:
    """A COCO-instance sized model in training mode."""
    torch.manual_seed(0)
    config = MPFormerConfig(backbone_config=BACKBONES[backbone], num_labels=80, **fields)
    return MPFormerForUniversalSegmentation(config).train()


def make_batch(size: int, batch: int, targets: int) -> dict:
    """Random images and rectangles."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(batch, targets, size, size, dtype=torch.bool)
    for mask in masks.flatten(0, 1):
        y, x, height, width = (int(v) for v in torch.randint(size // 16, size // 2, (4,), generator=generator))
        mask[y : y + height, x : x + width] = True
    return {
        "pixel_values": torch.randn(batch, 3, size, size, generator=generator),
        "mask_labels": list(masks),
        "class_labels": list(torch.randint(80, (batch, targets), generator=generator)),
    }


def step_seconds(model: MPFormerForUniversalSegmentation, batch: dict) -> float:
    """Forward, loss and backward."""
    start = time.perf_counter()
    model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def compare(models: dict[str, MPFormerForUniversalSegmentation], batch: dict, rounds: int) -> dict:
    """Interleaved step times of several models; ratios to the first."""
    for model in models.values():
        step_seconds(model, batch)
    times = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(step_seconds(model, batch))
    base = next(iter(times.values()))
    return {
        name: {
            "median_s": round(statistics.median(values), 3),
            "ratio": round(statistics.median(values) / statistics.median(base), 3),
            "ratio_min_max": [round(f(a / b for a, b in zip(values, base, strict=True)), 3) for f in (min, max)],
        }
        for name, values in times.items()
    }


def peak_mib(connection, backbone: str, fields: dict, shape: tuple[int, int, int]) -> None:
    """Child process: largest resident memory of two steps, in MiB."""
    model, batch = build(backbone, **fields), make_batch(*shape)
    for _ in range(2):
        step_seconds(model, batch)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_memory(backbone: str, variants: dict[str, dict], shape: tuple[int, int, int]) -> dict[str, float]:
    """Peak of each variant in a fresh process, MiB."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name, fields in variants.items():
        here, there = context.Pipe()
        process = context.Process(target=peak_mib, args=(there, backbone, fields, shape))
        process.start()
        peaks[name] = round(here.recv(), 1)
        process.join()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="r50", help="size of the model")
    parser.add_argument("--size", type=int, default=512, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=2, help="images per step")
    parser.add_argument("--targets", type=int, default=20, help="targets per image")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--curve", action="store_true", help="also time 2 and 4 groups, and half and twice the targets")
    parser.add_argument("--output_file", type=Path, help="new JSON file")
    args = parser.parse_args()
    if args.output_file and args.output_file.exists():
        sys.exit(f"error: {args.output_file} exists; name another file")
    shape = (args.size, args.batch, args.targets)
    variants = {"without": {"mask_piloting": False}, "pilot": {}}
    result = {
        "backbone": args.backbone,
        "size": args.size,
        "batch": args.batch,
        "targets": args.targets,
        "hardware": f"CPU, {torch.get_num_threads()} threads, {platform.machine()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "peak_mib": measure_memory(args.backbone, variants, shape),
    }
    peaks = result["peak_mib"]
    result["memory_ratio"] = round(peaks["pilot"] / peaks["without"], 3)
    if args.curve:
        variants |= {f"{groups} groups": {"pilot_groups": groups} for groups in (2, 4)}
    models = {name: build(args.backbone, **fields) for name, fields in variants.items()}
    result["steps"] = compare(models, make_batch(*shape), args.rounds)
    if args.curve:
        for targets in (args.targets // 2, args.targets * 2):
            pair = {name: models[name] for name in ("without", "pilot")}
            result[f"steps, {targets} targets"] = compare(pair, make_batch(args.size, args.batch, targets), args.rounds)
    print(json.dumps(result, indent=2))
    if args.output_file:
        args.output_file.parent.mkdir(parents=True, exist_ok=True)
        args.output_file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
