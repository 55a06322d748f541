"""Runs that are killed at random places and resumed: log, evaluations and weights must equal those of a whole run.

python -m tests.kills --kills 30 --seed 0
python -m tests.kills --kills 10 --processes 2

A run is killed (SIGKILL) at a random file operation in its output folder, or after a random time; then it is resumed,
and every second time killed once more. The exit code is 1 unless every run ends bit-equal to the undisturbed one. All
runs are forked from this process, which has loaded the libraries but never trains.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}

import torch
from safetensors.torch import load_file

from mpformer_hf.training import finetune
from tests import datasets_on_disk as make
from tests.runs import flags

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
OPTIONS = {"max_train_steps": 6, "eval_steps": 3, "checkpointing_steps": 2, "max_eval_samples": 2, "num_pictures": 1}
DONE, FAILED, DONE_BEFORE = 0, 1, 2  # exit codes
NOT_COMPARED = ("seconds", "data_seconds", "images_per_second", "peak_memory_mib")


def fork_run(argv: list[str], report: Path, rank: int, processes: int, port: int, kill_at: int | None) -> int:
    """Start one process of a run; returns its id. It writes its number of file operations to `report`, and its error
    below it.

    Args:
        argv: arguments of `mpformer_hf.training`.
        report: file for number and error.
        rank, processes, port: of the process group.
        kill_at: number of the file operation in the output folder before which it kills itself.
    """
    process = os.fork()
    if process:
        return process
    code, operations, output = FAILED, 0, argv[argv.index("--output_dir") + 1]

    def count(event: str, arguments: tuple) -> None:
        nonlocal operations
        written = event in WRITES or (event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax")
        if written and str(arguments[0]).startswith(output):
            operations += 1
            if operations == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        torch.set_num_threads(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        if processes > 1:
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
            os.environ |= {**group, "LOCAL_WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        sys.addaudithook(count)
        finetune.main(argv)
        code = DONE
    except BaseException as error:
        code = DONE_BEFORE if isinstance(error, ValueError) and "is finished" in str(error) else FAILED
        report.with_suffix(f".{rank}").write_text(traceback.format_exc())
    finally:
        if rank == 0:
            report.write_text(str(operations))
        os._exit(code)


def run(argv: list[str], report: Path, processes: int, kill_at: int | None = None, after: float | None = None) -> bool:
    """Run to the end or to the kill; returns whether all processes finished. If one dies, the others are killed, as
    launchers do.

    Raises:
        RuntimeError: a process failed, or did not end within 120 seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start, codes = time.monotonic(), {}
    started = {fork_run(argv, report, r, processes, port, kill_at if r == 0 else None): r for r in range(processes)}
    while len(codes) < processes:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            codes[started[process]] = os.waitstatus_to_exitcode(status)
        late = time.monotonic() - start > 120
        due = after is not None and time.monotonic() - start > after
        if due or late or any(codes.values()):
            for other, rank in started.items():
                if rank not in codes:
                    os.kill(other, signal.SIGKILL)
        if late:
            raise RuntimeError(f"{argv} did not end.")
        time.sleep(0.005)
    if DONE_BEFORE in codes.values():
        return True
    if FAILED in codes.values() and -signal.SIGKILL not in codes.values():
        raise RuntimeError("".join(file.read_text() for file in report.parent.glob(f"{report.stem}.[0-9]")))
    return not any(codes.values())


def content_of(folder: Path) -> dict:
    """What must be equal: log and evaluations without times, weights, and the names of all files."""
    result = {"files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}
    for name in ("log.jsonl", "evaluations.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        result[name] = [{key: value for key, value in row.items() if key not in NOT_COMPARED} for row in rows]
    for name in ("model.safetensors", "last/model.safetensors"):
        result[name] = {key: tensor.numpy().tobytes() for key, tensor in load_file(folder / name).items()}
    return result


def kill_runs(folder: Path, kills: int, processes: int, seed: int) -> tuple[int, list[str]]:
    """Kill at least `kills` times; returns the number of runs, and a line for each that differs.

    Args:
        folder: an empty folder.
        kills: number of SIGKILLs.
        processes: processes of each run.
        seed: of the places.
    """
    draw, report = random.Random(seed), folder / "report"
    shapes = make.shapes(folder / "shapes", train=4, validation=2)
    whole = flags(shapes, folder / "whole", **OPTIONS)
    start = time.monotonic()
    if not run(whole, report, processes):
        raise RuntimeError("The undisturbed run was killed.")
    duration, operations = time.monotonic() - start, int(report.read_text())
    expected = content_of(folder / "whole")
    different, runs, killed = [], 0, 0
    while killed < kills:
        runs += 1
        output, places = folder / f"run{runs}", []
        argv = flags(shapes, output, **OPTIONS)
        for _ in range(1 + runs % 2):
            place = (
                {"kill_at": draw.randint(1, operations)} if draw.random() < 0.7 else {"after": duration * draw.random()}
            )
            places.append(str(place))
            killed += not run(argv, report, processes, **place)
            argv = flags(shapes, output, **OPTIONS, resume_from_checkpoint="latest")
        try:
            run(argv, report, processes)
            found = content_of(output)
            names = [name for name in expected if found[name] != expected[name]]
            names += sorted(set(found["files"]) ^ set(expected["files"]))
        except (RuntimeError, OSError) as error:
            names = [str(error)]
        if names:
            different.append(f"killed at {', then '.join(places)}: {', '.join(names)}")
    return runs, different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="number of SIGKILLs")
    parser.add_argument("--processes", type=int, default=1, help="processes of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the places")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, different = kill_runs(Path(folder), args.kills, args.processes, args.seed)
    print("\n".join(different))
    equal = runs - len(different)
    print(f"{equal} of {runs} runs of {args.processes} processes are equal to the whole run; {args.kills} kills")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
