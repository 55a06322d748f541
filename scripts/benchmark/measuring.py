"""Time of calls that take turns, and peak memory of steps."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from mpformer_hf.training.memory import peak_memory

from .models import DEVICE, build, make_batch, train_step, with_float_masks

WARM_UP = 3  # calls of each work that are not timed
MIB = 2**20


def seconds(work: Callable[[], object]) -> float:
    """Duration of a call, until the device has finished."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def interleaved(works: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Durations of calls that take turns, after `WARM_UP` calls of each."""
    for work in works.values():
        for _ in range(WARM_UP):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def compare(works: dict[str, Callable], rounds: int) -> dict:
    """Interleaved timings; ratios are relative to the first."""
    times = interleaved(works, rounds)
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


def in_new_process(work: Callable, *args) -> Any:
    """What a function, whose first argument is a connection, sends from a new process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, *args))
    process.start()
    there.close()  # so that the end of the child is an end of file here
    result = here.recv()
    process.join()
    return result


def memory_of(
    connection, backbone: str, fields: dict, theirs: bool, shape: tuple[int, int, int], dtype: torch.dtype | None
) -> None:
    """In a child process: peak memory of training steps above that of the loaded model, in MiB."""
    model, batch = build(backbone, **fields), make_batch(*shape)
    if theirs:
        model, batch = model.to_mask2former().train(), with_float_masks(batch)
    taken = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else psutil.Process().memory_info().rss
    train_step(model, batch, dtype)
    train_step(model, batch, dtype)
    connection.send(peak_memory(DEVICE) - taken / MIB)


def measure_memory(*work, resident: bool = False) -> float:
    """Peak of `memory_of` in a new process, in MiB. On the CPU it is the resident memory, with the C library's default
    allocator (`resident`) or with one that returns freed blocks of 1 MiB and more to the system.

    Raises:
        EOFError: the process was killed, for example for lack of memory.
    """
    if not resident:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MIB)
    try:
        return round(in_new_process(memory_of, *work), 1)
    finally:
        os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)


def compare_memory(backbone: str, shape: tuple[int, int, int], dtype: torch.dtype | None) -> dict:
    """Peaks of both models in MiB; on the CPU also with the default allocator (`resident`)."""
    row = {}
    for name, resident in (("", False), ("resident_", True))[: 2 if DEVICE.type == "cpu" else 1]:
        peaks = {
            arm: measure_memory(backbone, {}, theirs, shape, dtype, resident=resident)
            for arm, theirs in (("transformers", True), ("ours", False))
        }
        row |= {f"{name}peak_mib": peaks, f"{name}ratio": round(peaks["ours"] / peaks["transformers"], 3)}
    return row
