"""Speed and memory compared with transformers' Mask2Former: same weights and inputs, interleaved in one process per
row.

python -m scripts.benchmark --backbone r50 --output_file training/results/benchmark_r50_cpu.json
python -m scripts.benchmark --backbone swin_t --measure inference training --rounds 3
python -m scripts.benchmark --backbone r50 --measure curves --output_file training/results/curves.json

Each row has the ratio of medians, ours / theirs, and the smallest and largest ratio of consecutive runs; absolute times
depend on the machine and its load. Training steps are ours with the pilot and theirs without. Peak memory is measured
in separate processes, above that of the loaded model; on the CPU once with an allocator that returns freed blocks, to
measure the memory of tensors, and once with the default allocator. `curves` measures training steps over numbers of
targets, groups and queries and over image sizes, and plots them next to the JSON. Uses a GPU if there is one; `--bf16`
runs the models under autocast.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mask2FormerImageProcessor, ResNetConfig, SwinConfig

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation, MPFormerImageProcessor, mask_losses
from mpformer_hf.cli.main import run_command
from mpformer_hf.deformable_attention import weighted_row_sum
from mpformer_hf.files import write_json
from training.memory import peak_memory

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "r50": ResNetConfig(out_features=STAGES),
    "swin_t": SwinConfig(depths=[2, 2, 6, 2], drop_path_rate=0.3, out_features=STAGES),
}
ROWS = ("inference", "compiled", "stages", "training", "memory", "postprocessing", "processor", "pilot", "operators")
SHORT = 7  # factor on the rounds of calls that take less than a second
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CURVES = {
    "targets": [{"targets": n} for n in (5, 10, 20, 40)],
    "groups": [{"pilot_groups": n} for n in (1, 2, 4)],
    "side": [{"size": n} for n in (192, 256, 384)],
    "queries": [{"num_queries": n} for n in (50, 100, 200)],
}


# --- Models and data ---


def build(backbone: str, **fields) -> MPFormerForUniversalSegmentation:
    """A model of the size of the COCO instance release, in training mode."""
    torch.manual_seed(0)
    config = MPFormerConfig(backbone_config=BACKBONES[backbone], num_labels=80, **fields)
    return MPFormerForUniversalSegmentation(config).to(DEVICE).train()


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


def train_step(model: nn.Module, batch: dict) -> None:
    """Forward and backward pass."""
    model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)


@torch.inference_mode()
def predict(model: nn.Module, pixel_values: torch.Tensor) -> None:
    model(pixel_values)


# --- Timing and memory ---


def seconds(work: Callable[[], object], precision) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    with precision():
        work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(works: dict[str, Callable], rounds: int, precision=contextlib.nullcontext) -> dict:
    """Interleaved timings; ratios are relative to the first."""
    for work in works.values():
        seconds(work, precision)
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, precision))
    base = next(iter(times.values()))
    rows = {}
    for name, values in times.items():
        pairs = [a / b for a, b in zip(values, base, strict=True)]
        ratio = statistics.median(values) / statistics.median(base)
        rows[name] = {
            "median_s": round(statistics.median(values), 4),
            "ratio": round(ratio, 3),
            "ratio_min_max": [round(min(pairs), 3), round(max(pairs), 3)],
        }
    return rows


def memory_of(connection, backbone: str, fields: dict, theirs: bool, shape: tuple[int, int, int], bf16: bool) -> None:
    """In a child process: peak memory of training steps above that of the loaded model, in MiB."""
    model, batch = build(backbone, **fields), make_batch(*shape)
    if theirs:
        model, batch = model.to_mask2former().train(), with_float_masks(batch)
    taken = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else psutil.Process().memory_info().rss
    with autocast(bf16)():
        train_step(model, batch)
        train_step(model, batch)
    connection.send(peak_memory(DEVICE) - taken / 2**20)


def measure_memory(*work, resident: bool = False) -> float:
    """Peak of `memory_of` in a new process, in MiB. On the CPU it is the resident memory, with the C library's default
    allocator (`resident`) or with one that returns freed blocks of 1 MiB and more to the system.

    Raises:
        EOFError: the process was killed, for example for lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=memory_of, args=(there, *work))
    if not resident:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    process.start()
    there.close()  # so that the end of the child is an end of file here
    os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
    peak = here.recv()
    process.join()
    return round(peak, 1)


def compare_memory(backbone: str, shape: tuple[int, int, int], bf16: bool) -> dict:
    """Peaks of both models in MiB; on the CPU also with the default allocator (`resident`)."""
    row = {}
    for name, resident in (("", False), ("resident_", True))[: 2 if DEVICE.type == "cpu" else 1]:
        peaks = {
            arm: measure_memory(backbone, {}, theirs, shape, bf16, resident=resident)
            for arm, theirs in (("transformers", True), ("ours", False))
        }
        row |= {f"{name}peak_mib": peaks, f"{name}ratio": round(peaks["ours"] / peaks["transformers"], 3)}
    return row


def autocast(bf16: bool) -> Callable:
    return lambda: torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16)


# --- Rows ---


def inference_rows(args: argparse.Namespace, rounds: int) -> dict:
    ours = build(args.backbone).eval()
    theirs, rows = ours.to_mask2former().eval(), {}
    for size in args.sizes:
        pixels = torch.randn(1, 3, size, size, device=DEVICE)
        works = {"transformers": lambda x=pixels: predict(theirs, x), "ours": lambda x=pixels: predict(ours, x)}
        rows[f"inference {size}"] = compare(works, rounds, autocast(args.bf16))
    return rows


def compiled_rows(args: argparse.Namespace, rounds: int) -> dict:
    ours = build(args.backbone).eval()
    theirs, eager, size = ours.to_mask2former().eval(), ours.to_mask2former().eval(), args.sizes[0]
    ours.compile()
    theirs.compile()
    pixels = torch.randn(1, 3, size, size, device=DEVICE)
    works = {
        "transformers, compiled": lambda: predict(theirs, pixels),
        "transformers, eager": lambda: predict(eager, pixels),
        "ours, compiled": lambda: predict(ours, pixels),
    }
    rows = compare(works, rounds, autocast(args.bf16))
    ratio = rows["ours, compiled"]["median_s"] / rows["transformers, eager"]["median_s"]
    return {
        f"inference compiled {size}": rows,
        f"inference compiled {size}, ours compiled / theirs eager": {"ratio": round(ratio, 3)},
    }


def stage_rows(args: argparse.Namespace, rounds: int) -> dict:
    """Stages of eager inference: operations, time, and ratio to the time at the rate of a large matrix product
    (roofline)."""
    ours, side = build(args.backbone).eval(), 2048
    module, size = ours.model.pixel_level_module, args.sizes[0]
    square = torch.randn(side, side, device=DEVICE)
    pixels = torch.randn(1, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), autocast(args.bf16)():
        features = list(module.encoder(pixels).feature_maps)
        decoded = module.decoder(features)
    works = {
        "matrix product": lambda: square @ square,
        "backbone": lambda: module.encoder(pixels),
        "pixel decoder": lambda: module.decoder(features),
        "transformer decoder": lambda: ours.model.transformer_module(*decoded),
        "whole model": lambda: ours(pixels),
    }
    with torch.no_grad():
        times, rate, rows = compare(works, rounds, autocast(args.bf16)), None, {}
        for name, work in works.items():
            with FlopCounterMode(display=False) as counter:
                work()
            gflop, seconds_taken = counter.get_total_flops() / 1e9, times[name]["median_s"]
            rate = rate or gflop / seconds_taken
            rows[f"stage, {name} {size}"] = {
                "gflop": round(gflop, 2),
                "median_s": seconds_taken,
                "x_roofline": round(seconds_taken * rate / gflop, 2),
            }
    return rows


def training_rows(args: argparse.Namespace, rounds: int) -> dict:
    ours, rows = build(args.backbone), {}
    theirs = ours.to_mask2former().train()
    for size, batch, targets in training_shapes(args):
        own = make_batch(size, batch, targets)
        other = with_float_masks(own)
        works = {
            "transformers": lambda b=other: train_step(theirs, b),
            "ours, with the pilot": lambda b=own: train_step(ours, b),
        }
        rows[f"training {size}, batch {batch}, {targets} targets"] = compare(works, rounds, autocast(args.bf16))
    return rows


def training_shapes(args: argparse.Namespace) -> list[tuple[int, int, int]]:
    """(side, batch size, targets): two images with 20 targets at the first side, one with 50 at the others."""
    return [(size, 2, 20) if index == 0 else (size, 1, 50) for index, size in enumerate(args.sizes)]


def memory_rows(args: argparse.Namespace, rounds: int) -> dict:
    return {
        f"memory, training {size}, batch {batch}, {targets} targets": compare_memory(
            args.backbone, (size, batch, targets), args.bf16
        )
        for size, batch, targets in training_shapes(args)
    }


def postprocessing_rows(args: argparse.Namespace, rounds: int) -> dict:
    """Panoptic, to 1024x2048: 33 confident queries whose noisy masks tile the image, and 67 no-object queries."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(100, 2, 1, 1, generator=generator)
    grid = torch.stack(torch.meshgrid(torch.linspace(0, 1, 256), torch.linspace(0, 1, 512), indexing="ij"))
    distance = (grid - centres).norm(dim=1)
    nearest = distance[:33].min(0).values
    masks = (60 * (nearest - distance) + 4).clamp(-10, 6) + torch.randn(100, 256, 512, generator=generator) / 4
    classes = torch.randn(1, 100, 134, generator=generator)
    classes[:, :33, :133] += 12 * nn.functional.one_hot(torch.arange(33), 133)
    classes[:, 33:, 133] += 12
    outputs = transformers.models.mask2former.modeling_mask2former.Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=classes.to(DEVICE), masks_queries_logits=masks[None].to(DEVICE)
    )
    ours, theirs = MPFormerImageProcessor(threshold=0.5), Mask2FormerImageProcessor()
    sizes = {"target_sizes": [(1024, 2048)]}
    works = {
        "transformers": lambda: theirs.post_process_panoptic_segmentation(outputs, threshold=0.5, **sizes),
        "ours": lambda: ours.post_process_panoptic_segmentation(outputs, **sizes),
    }
    return {"panoptic post-processing, 100 queries to 1024x2048": compare(works, SHORT * rounds)}


def processor_rows(args: argparse.Namespace, rounds: int) -> dict:
    """8 images of 1024x1024 with 30 segments each."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, 1024, 1024), dtype=torch.uint8, generator=generator) for _ in range(8)]
    coarse = torch.randint(1, 31, (8, 1, 16, 16), generator=generator).float()
    maps = [map_[0].int().numpy() for map_ in nn.functional.interpolate(coarse, scale_factor=64)]
    tables = [{index: index % 80 for index in range(1, 31)}] * 8
    size = {"shortest_edge": 1024, "longest_edge": 1024}
    ours, theirs = MPFormerImageProcessor(size=size), Mask2FormerImageProcessor(size=size, ignore_index=255)
    flags = {"return_tensors": "pt"}
    works = {
        "transformers": lambda: theirs(images, maps, instance_id_to_semantic_id=tables, **flags),
        "ours": lambda: ours(images, maps, instance_id_to_semantic_id=tables, **flags),
    }
    return {"image processor, 8 images of 1024x1024, 30 segments": compare(works, SHORT * rounds)}


def operator_rows(args: argparse.Namespace, rounds: int) -> dict:
    """Custom backward passes against PyTorch's, forward and backward, at the sizes of a training step at 512x512."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    table, rows = draw(2 * 8 * 5836, 32).requires_grad_(), torch.randint(2 * 8 * 5836, (2 * 8 * 5376, 48)).int()
    weights, upstream = draw(2 * 8 * 5376, 48).requires_grad_(), draw(2 * 8 * 5376, 32)

    def sample(gather: Callable) -> None:
        gather(table, rows, weights).backward(upstream)

    def embedding_bag(table: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    counts, points, targets = [400, 400], 12544, 40  # 10 predictions x 20 targets, matching and pilot
    uncertain, random, candidates = points * 3 // 4, points // 4, points * 3
    embeddings, features = draw(800, 256).requires_grad_(), draw(2, candidates + random, 256).requires_grad_()
    truth, target = torch.rand(targets, candidates + random), torch.arange(800) % targets

    def checkpointed(embeddings, features, truth, target, counts, uncertain, random):
        def chunk_losses(embeddings, features, target):
            logits = embeddings @ features.T
            with torch.no_grad():
                selected = logits[:, :-random].abs().topk(uncertain, dim=1, largest=False, sorted=False).indices
            sampled = torch.cat((logits.gather(1, selected), logits[:, -random:]), dim=1)
            return torch.stack(mask_losses.point_losses(sampled, mask_losses.truth_at(truth, target, selected, random)))

        chunks, _ = mask_losses.make_chunks(counts, features.shape[1], features.device)
        parts = [
            checkpoint(
                chunk_losses,
                embeddings[chunk.rows[0]],
                features[chunk.images][0],
                target[chunk.rows[0]],
                use_reentrant=False,
            )
            for chunk in chunks
        ]
        return torch.cat(parts, dim=1)

    def losses(function: Callable) -> None:
        sum(loss.sum() for loss in function(embeddings, features, truth, target, counts, uncertain, random)).backward()

    return {
        "operator, deformable sampling of a layer, forward and backward": compare(
            {"embedding_bag": lambda: sample(embedding_bag), "ours": lambda: sample(weighted_row_sum)}, rounds
        ),
        "operator, mask losses, forward and backward": compare(
            {
                "torch.utils.checkpoint": lambda: losses(checkpointed),
                "ours": lambda: losses(mask_losses.UncertainPointLosses.apply),
            },
            rounds,
        ),
    }


def pilot_rows(args: argparse.Namespace, rounds: int) -> dict:
    size, batch, targets = training_shapes(args)[0]
    without, own = build(args.backbone, mask_piloting=False), make_batch(size, batch, targets)
    ours = build(args.backbone)
    works = {"without pilot": lambda: train_step(without, own), "pilot": lambda: train_step(ours, own)}
    return {f"the pilot, training {size}, batch {batch}, {targets} targets": compare(works, rounds)}


def curve_rows(args: argparse.Namespace, rounds: int) -> dict:
    """Training steps over one quantity at a time; otherwise image side 256, batch size 2, 20 targets."""
    rows = {}
    for name, points in CURVES.items():
        curve = []
        for point in points:
            own = {key: value for key, value in point.items() if key in ("pilot_groups", "num_queries")}
            shape = (point.get("size", 256), 2, point.get("targets", 20))
            arms = {"without pilot": {**own, "mask_piloting": False}, "pilot": own}
            models, batch = {arm: build(args.backbone, **fields) for arm, fields in arms.items()}, make_batch(*shape)
            works = {arm: lambda m=model, b=batch: train_step(m, b) for arm, model in models.items()}
            measured = compare(works, rounds, autocast(args.bf16))
            for arm, fields in arms.items():
                measured[arm]["peak_mib"] = measure_memory(args.backbone, fields, False, shape, args.bf16)
            curve.append({"at": next(iter(point.values())), **measured})
        rows[f"curve, {name}"] = curve
    return rows


BENCHMARKS = {
    "inference": inference_rows,
    "compiled": compiled_rows,
    "stages": stage_rows,
    "training": training_rows,
    "memory": memory_rows,
    "postprocessing": postprocessing_rows,
    "processor": processor_rows,
    "pilot": pilot_rows,
    "operators": operator_rows,
    "curves": curve_rows,
}


def summary(measured: dict | list) -> object:
    """Printed summary of a row: the last of several models; nothing for a curve."""
    if isinstance(measured, list):
        return ""
    last = list(measured.values())[-1]
    return last if isinstance(last, dict) else measured


def plot_curves(rows: dict, file: Path) -> None:
    """Plot time and memory of a training step over each quantity, with and without the pilot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = {name.removeprefix("curve, "): row for name, row in rows.items() if name.startswith("curve, ")}
    shape = {"figsize": (3.2 * len(curves), 5), "sharey": "row", "sharex": "col", "constrained_layout": True}
    figure, panels = plt.subplots(2, len(curves), **shape)
    for column, (name, points) in zip(panels.T, curves.items(), strict=True):
        for arm in ("without pilot", "pilot"):
            at = [p["at"] for p in points]
            column[0].plot(at, [p[arm]["median_s"] for p in points], marker="o", label=arm)
            column[1].plot(at, [p[arm]["peak_mib"] / 1024 for p in points], marker="o", label=arm)
        column[1].set(xlabel=name, xticks=at)
        for axes in column:
            axes.grid(alpha=0.3)
    for axes, label in zip(panels[:, 0], ("seconds of a training step", "peak GiB"), strict=True):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    panels[0, 0].legend()
    figure.savefig(file, dpi=110)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="r50", help="size of the model")
    parser.add_argument("--measure", nargs="+", choices=BENCHMARKS, default=list(ROWS), help="what to measure")
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024], help="image sides")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each")
    parser.add_argument("--bf16", action="store_true", help="models under bfloat16 autocast")
    parser.add_argument("--output_file", type=Path, help="JSON file, new or of the same settings; curves are drawn too")
    args = parser.parse_args(argv)
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
    if args.output_file and "curves" in args.measure:
        plot_curves(result["rows"], args.output_file.with_suffix(".png"))
    return result


if __name__ == "__main__":
    run_command(main)
