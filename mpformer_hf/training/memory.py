"""Peak memory of a process."""

import sys
from pathlib import Path

import psutil
import torch


def peak_memory(device: torch.device) -> float | None:
    """Peak in MiB: of allocated tensors on a CUDA, ROCm or XPU device, of the resident memory of this process on a CPU.
    None on other devices, whose allocators do not report a peak (MPS)."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).max_memory_allocated(device) / 2**20
    if device.type != "cpu":
        return None
    status = Path("/proc/self/status")
    if status.is_file():  # `getrusage` includes the parent's memory
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return info.peak_wset / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
