"""Flags of small training runs, and processes of their own that need no time for imports."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.tiny import BACKBONES, SIZES

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["mpformer_hf.training.finetune", "mpformer_hf.inference.prediction"])


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
        "logging_steps": 1,
        "output_dir": output,
        **more,
    }
    argv = []
    for name, value in given.items():
        argv += [f"--{name}", *([value] if name == "model_fields" else str(value).split())]
    return argv


class Run:
    """`python -m module arguments` in a new process that has the imports already.

    Args:
        command: module and arguments.
        before: called in the process, before the module runs.
        environment: additional variables.
    """

    def __init__(self, command: list, before: Callable | None = None, **environment: str):
        self._output = Path(tempfile.mkstemp(prefix="run-")[1])
        argv = [str(part) for part in command]
        self._process = PROCESSES.Process(target=run_module, args=(argv, self._output, environment, before))
        self._process.start()
        self.pid = self._process.pid

    @property
    def told(self) -> str:
        """What the process has written so far."""
        return self._output.read_text()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 240) -> int | None:
        """Exit status; None if it did not end in time and was killed."""
        self._process.join(seconds)
        status = self._process.exitcode
        self._process.kill()
        self._process.join()
        return status


def run_module(argv: list[str], output: Path, environment: dict, before: Callable | None) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a shell
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = argv
    if before:
        before()
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def run_together(command: list, processes: int, **environment: str) -> list[str]:
    """Run a module in several processes of one group, as launchers do; returns the output of each process.

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
        **environment,
    }
    started = [Run(command, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(processes)]
    statuses = [run.wait() for run in started]
    assert not any(statuses) and None not in statuses, "\n".join(run.told[-2000:] for run in started)
    return [run.told for run in started]
