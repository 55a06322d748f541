"""Training on a GPU: whole steps, memory, waits and kernels of our model and transformers', and the operator alone.

python -m scripts.benchmark_gpu --output_file training/results/benchmark_gpu.json
python -m scripts.benchmark_gpu --backbones r50 --batches 1 4 --precisions bf16 --side 512

A step is forward and backward pass, clipping of gradients and AdamW (fused). Models of one row have the same weights
and inputs and take turns in one process, after three steps of each: ours with the pilot, ours without, and
transformers' Mask2Former; with `--compiled` also ours compiled. `memory` is the peak above the loaded models and their
optimizer states. `waits` and `kernels` of a step are counted by torch's profiler. A row that does not fit says so.
The operator, deformable attention of one encoder layer, is timed with Triton kernels and with operators of torch, and
its bytes (values, positions, weights and results once) per second are compared with those of a copy. Loading is
measured by scripts/time_loading.py. On a CPU it runs too, to try the command.
"""

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import SwinConfig

from mpformer_hf.cli.main import run_command
from mpformer_hf.deformable_attention import deformable_sampling, has_triton, use_implementation
from mpformer_hf.files import write_json

from .benchmark import BACKBONES, DEVICE, STAGES, build, make_batch, with_float_masks

LARGE = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12}
BACKBONES["swin_l"] = SwinConfig(**LARGE, drop_path_rate=0.3, out_features=STAGES)
WARM_UP = 3
PRECISIONS = {"fp32": ("highest", None), "tf32": ("high", None), "bf16": ("highest", torch.bfloat16)}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
MIB = 2**20


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Duration of a call, until the device has finished."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def whole_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict, dtype: torch.dtype | None) -> None:
    """One optimizer step of the official recipe."""
    with torch.autocast(DEVICE.type, dtype) if dtype else nullcontext():
        loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def make_steps(backbone: str, batch: dict, dtype: torch.dtype | None, compiled: bool) -> dict[str, Callable]:
    """Steps of the models of a row, by name."""
    models = {"pilot": build(backbone), "no pilot": build(backbone, mask_piloting=False)}
    models["transformers"] = models["pilot"].to_mask2former().train()
    if compiled:
        models["pilot, compiled"] = build(backbone)
        models["pilot, compiled"].model.compile()
    steps = {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=DEVICE.type == "cuda")
        inputs = with_float_masks(batch) if name == "transformers" else batch
        steps[name] = partial(whole_step, model, optimizer, inputs, dtype)
    return steps


def count_events(step: Callable[[], None]) -> dict[str, int | None]:
    """Waits of the host and kernels of a step; None where there is no CUDA device."""
    if DEVICE.type != "cuda":
        return {"waits": None, "kernels": None}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
    counts = {event.key: event.count for event in trace.key_averages()}
    own_wait = 1  # the profiler's, at its end
    return {
        "waits": sum(counts.get(name, 0) for name in WAITS) - own_wait,
        "kernels": sum(counts.get(name, 0) for name in LAUNCHES),
    }


def peak_of(step: Callable[[], None]) -> float | None:
    """Peak of a step above what was allocated before, in MiB; None where there is no CUDA device."""
    if DEVICE.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / MIB)


def step_row(backbone: str, batch_size: int, precision: str, args: argparse.Namespace) -> dict:
    """Times, memory, waits and kernels of the models of a row; `error` if a step does not fit."""
    matmul, dtype = PRECISIONS[precision]
    torch.set_float32_matmul_precision(matmul)
    try:
        batch = make_batch(args.side, batch_size, args.targets)
        steps = make_steps(backbone, batch, dtype, args.compiled)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for step in [step for step in steps.values() for _ in range(WARM_UP)]:
            step()
        for _ in range(args.rounds):
            for name, step in steps.items():
                times[name].append(seconds(step))
        row = {}
        for name, step in steps.items():
            median = statistics.median(times[name])
            row[name] = {"seconds": round(median, 4), "images_per_second": round(batch_size / median, 2)}
            row[name] |= {"memory_mib": peak_of(step), **count_events(step)}
        for name in [name for name in row if name != "transformers"]:
            row[name]["ratio"] = round(row[name]["seconds"] / row["transformers"]["seconds"], 3)
        return row
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    finally:
        steps = batch = None
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def operator_rows(side: int, batch_size: int, rounds: int) -> dict:
    """Deformable attention of an encoder layer: 8 heads of 32 channels, 3 levels, 4 points."""
    shapes = [(side // stride, side // stride) for stride in (32, 16, 8)]
    cells, heads, points = sum(h * w for h, w in shapes), 8, 12
    x, y, weights = (torch.rand(batch_size * cells, heads, points, device=DEVICE) for _ in range(3))
    for level, (height, width) in enumerate(shapes):
        own = slice(level * 4, level * 4 + 4)
        x[..., own], y[..., own] = x[..., own] * width, y[..., own] * height
    copied = torch.empty(2**26, device=DEVICE)  # 256 MiB
    copy = statistics.median(seconds(copied.clone) for _ in range(rounds))
    bandwidth, rows = (
        2 * copied.numel() * 4 / copy,
        {"copy": {"gb_per_second": round(2 * copied.numel() * 4 / copy / 1e9)}},
    )
    for name in ("torch", "fused") if has_triton() and DEVICE.type == "cuda" else ("torch",):
        for dtype in (torch.float32, torch.bfloat16) if name == "fused" else (torch.float32,):
            use_implementation(name)
            value = torch.randn(batch_size, cells, heads, 32, device=DEVICE, dtype=dtype, requires_grad=True)
            leaves = [t.clone().requires_grad_() for t in (x, y, weights)]
            forward = partial(deformable_sampling, value, shapes, *leaves)
            out = forward()
            grad = torch.ones_like(out)
            backward = partial(torch.autograd.grad, out, (value, *leaves), grad, retain_graph=True)
            backward()
            bytes_ = 2 * value.numel() * value.element_size() + 3 * x.numel() * 4
            row = {}
            for kind, work in (("forward", forward), ("backward", backward)):
                median = statistics.median(seconds(work) for _ in range(rounds))
                row[f"{kind}_ms"] = round(1000 * median, 3)
                row[f"{kind}_share_of_bandwidth"] = round((1 + (kind == "backward")) * bytes_ / median / bandwidth, 3)
            rows[f"{name}, {str(dtype).removeprefix('torch.')}"] = row
    use_implementation("auto")
    return rows


def hardware() -> str:
    """Name of the device."""
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=tuple(BACKBONES), default=["r50", "swin_t", "swin_l"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="images of a step")
    parser.add_argument("--precisions", nargs="+", choices=tuple(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--side", type=int, default=1024, help="side of the images in pixels")
    parser.add_argument("--targets", type=int, default=20, help="objects of an image")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each model")
    parser.add_argument("--compiled", action="store_true", help="also our model compiled")
    parser.add_argument("--output_file", type=Path, help="JSON of the results, written after each row")
    args = parser.parse_args(argv)
    names = ("torch", "transformers")
    result = {"device": hardware(), "versions": {name: version(name) for name in names}, "side": args.side}
    result |= {"targets": args.targets, "operator": operator_rows(args.side, args.batches[0], args.rounds), "steps": []}
    print(result["operator"])
    for backbone in args.backbones:
        for precision in args.precisions:
            for batch_size in args.batches:
                row = step_row(backbone, batch_size, precision, args)
                about = {"backbone": backbone, "precision": precision, "batch": batch_size}
                result["steps"].append(about | {"models": row})
                print(*about.values(), row)
                if args.output_file:
                    write_json(result, args.output_file)
    torch.set_float32_matmul_precision("highest")


if __name__ == "__main__":
    run_command(main)
