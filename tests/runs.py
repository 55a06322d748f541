"""Flags of small training runs, and processes that run together."""

import json
import os
import socket
import subprocess
from pathlib import Path

from tests.tiny import BACKBONES, SIZES

ROOT = Path(__file__).resolve().parents[1]


def flags(data, output, **more):
    fields = {"backbone_config": BACKBONES["resnet"].to_dict(), **SIZES}
    given = {
        "model_fields": json.dumps(fields),
        "dataset_name": data,
        "task": "panoptic",
        "augmentation": "crop",
        "crop_size": "64 64",
        "shortest_edges": "64 72",
        "eval_shortest_edge": 64,
        "eval_longest_edge": 64,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 0,
        "learning_rate": 1e-3,
        "max_train_steps": 4,
        "eval_steps": 2,
        "output_dir": output,
        **more,
    }
    argv = []
    for name, value in given.items():
        argv += [f"--{name}", *([value] if name == "model_fields" else str(value).split())]
    return argv


def run_together(command: list, processes: int, **environment: str) -> list[str]:
    """Run a command in several processes of one group, as launchers do; returns the output of each process.

    Raises:
        AssertionError: one of them failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **shared, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        told = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(text[-2000:] for text in told)
    return told
