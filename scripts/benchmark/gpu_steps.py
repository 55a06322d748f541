"""Whole training steps of our model and transformers': time, memory, waits of the host, kernels; largest batch."""

import argparse
import gc
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from .measuring import MIB, interleaved
from .models import DEVICE, autocast, build, make_batch, with_float_masks

PRECISIONS = {"fp32": ("highest", None), "tf32": ("high", None), "bf16": ("highest", torch.bfloat16)}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
LARGEST = 1024  # batch size at which the search ends


def whole_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict, dtype: torch.dtype | None) -> None:
    """One optimizer step of the official recipe."""
    with autocast(dtype):
        loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def make_step(model: nn.Module, batch: dict, dtype: torch.dtype | None) -> Callable[[], None]:
    """`whole_step` of a model with an optimizer of its own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=DEVICE.type == "cuda")
    return partial(whole_step, model, optimizer, batch, dtype)


def make_steps(backbone: str, batch: dict, dtype: torch.dtype | None, compiled: bool) -> dict[str, Callable]:
    """Steps of the models of a row, by name."""
    models = {"pilot": build(backbone), "no pilot": build(backbone, mask_piloting=False)}
    models["transformers"] = models["pilot"].to_mask2former().train()
    if compiled:
        models["pilot, compiled"] = build(backbone)
        models["pilot, compiled"].model.compile()
    floats = with_float_masks(batch)
    return {name: make_step(m, floats if name == "transformers" else batch, dtype) for name, m in models.items()}


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


def peak_of(step: Callable[[], None]) -> int | None:
    """Peak of a step above what was allocated before, in MiB; None where there is no CUDA device."""
    if DEVICE.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / MIB)


def release() -> None:
    """Free the memory of objects that are no longer used."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def step_row(backbone: str, batch_size: int, precision: str, args: argparse.Namespace) -> dict:
    """Times, memory, waits and kernels of the models of a row; `error` if a step does not fit."""
    matmul, dtype = PRECISIONS[precision]
    torch.set_float32_matmul_precision(matmul)
    steps = None
    try:
        steps = make_steps(backbone, make_batch(args.side, batch_size, args.targets), dtype, not args.eager_only)
        times = interleaved(steps, args.rounds)
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
        torch.set_float32_matmul_precision("highest")
        steps = None
        release()


def largest_batch(backbone: str, precision: str, args: argparse.Namespace) -> int:
    """Most images of a step with the pilot that fit, by halving an interval."""
    fits, too_many = 0, LARGEST + 1
    size = max(args.batches)
    while too_many - fits > 1:
        if step_fits(backbone, size, precision, args):
            fits = size
        else:
            too_many = size
        size = 2 * fits if 2 * fits < too_many and too_many > LARGEST else (fits + too_many) // 2
    return fits


def step_fits(backbone: str, batch_size: int, precision: str, args: argparse.Namespace) -> bool:
    """Whether two steps with the pilot do not run out of memory."""
    step = None
    try:
        step = make_step(build(backbone), make_batch(args.side, batch_size, args.targets), PRECISIONS[precision][1])
        step(), step()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        step = None
        release()
