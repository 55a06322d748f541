"""Whole training steps of our model and transformers': time, memory, waits of the host, kernels."""

import argparse
import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from .measuring import MIB, interleaved
from .models import DEVICE, autocast, build, make_batch, with_float_masks

PRECISIONS = {"fp32": ("highest", None), "tf32": ("high", None), "bf16": ("highest", torch.bfloat16)}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
MODELS = ("pilot", "no pilot", "transformers", "pilot, compiled")


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


def make_steps(names: list[str], backbone: str, batch: dict, dtype: torch.dtype | None) -> dict[str, Callable]:
    """Steps of some of `MODELS`, by name."""
    steps = {}
    for name in names:
        model = build(backbone, mask_piloting=name != "no pilot")
        if name == "transformers":
            model = model.to_mask2former().train()
        if "compiled" in name:
            model.model.compile()
        steps[name] = make_step(model, with_float_masks(batch) if name == "transformers" else batch, dtype)
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
    """Free the memory of objects that are no longer used, and forget compiled code."""
    torch._dynamo.reset()
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def precision_of(name: str) -> Iterator[torch.dtype | None]:
    """Context manager that sets the precision of float32 products and yields the dtype of autocast."""
    matmul, dtype = PRECISIONS[name]
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield dtype
    finally:
        torch.set_float32_matmul_precision("highest")


def measure(names: list[str], backbone: str, batch_size: int, precision: str, args: argparse.Namespace) -> dict | None:
    """Times, memory, waits and kernels of models that take turns; None if they do not fit into memory together."""
    steps = None
    try:
        with precision_of(precision) as dtype:
            steps = make_steps(names, backbone, make_batch(args.side, batch_size, args.targets), dtype)
            times = interleaved(steps, args.rounds)
            row = {}
            for name, step in steps.items():
                median = statistics.median(times[name])
                row[name] = {"seconds": round(median, 4), "images_per_second": round(batch_size / median, 2)}
                row[name] |= {"memory_mib": peak_of(step), **count_events(step)}
            return row
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        return None
    finally:
        steps = None
        release()


def step_row(backbone: str, batch_size: int, precision: str, args: argparse.Namespace) -> dict:
    """Rows of all models, with the ratio of times to transformers'. If they do not fit together, each is measured
    alone, without a ratio; a model that does not fit has the row `error`."""
    names = [name for name in MODELS if not (args.eager_only and "compiled" in name)]
    row = measure(names, backbone, batch_size, precision, args)
    if row is None:
        alone = {name: measure([name], backbone, batch_size, precision, args) for name in names}
        return {name: found[name] if found else {"error": "out of memory"} for name, found in alone.items()}
    for name in [name for name in names if name != "transformers"]:
        row[name]["ratio"] = round(row[name]["seconds"] / row["transformers"]["seconds"], 3)
    return row


def is_memory_error(error: RuntimeError) -> bool:
    """Whether a device ran out of memory."""
    texts = ("out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)
