"""Peak memory of a process."""

import sys
from pathlib import Path

import psutil
import torch


def peak_memory(device: torch.device) -> float:
    """Peak in MiB: of allocated tensors on a GPU, else of the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # `getrusage` includes the parent's memory
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return info.peak_wset / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
