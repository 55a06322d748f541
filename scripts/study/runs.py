"""The runs of a study: arms and seeds, each trained in a process of its own."""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import set_seed

from mpformer_hf.data.opening import open_dataset
from mpformer_hf.training.arguments import parse_arguments
from mpformer_hf.training.building import build_model, build_processor
from mpformer_hf.training.checkpoints import save_model
from mpformer_hf.training.run_folder import EVALUATIONS, LOG
from mpformer_hf.utils.files import write_atomically
from mpformer_hf.utils.recipes import as_flags, merge, read_recipe

from .report import read_lines

ROOT = Path(__file__).resolve().parents[2]
ARMS = {
    "off": {"mask_piloting": "false"},
    "recipe": {},
    "point_noise": {"pilot_noise_scale": "0.2"},
    "first_four": {"pilot_layers": "4"},
    "three_groups": {"pilot_groups": "3"},
}
KEPT = ("step", "ap", "ap50", "pq", "pq_things", "pq_stuff", "mean_iou", "mask_consistency", "query_utilisation")


def save_initial(folder: Path, flags: list[str], seed: int) -> None:
    """Save the model that all arms of a seed start from, if it does not exist."""
    if folder.exists():
        return
    args = parse_arguments(flags)
    labels = open_dataset(args.data, args.data.train_split).labels
    set_seed(seed)
    model = build_model(args.model, args.pilot, labels)
    with write_atomically(folder) as temporary:
        save_model(model, build_processor(args.data, args.transforms, labels), temporary)


def find_commit() -> str:
    """The commit of this clone.

    Raises:
        ValueError: it is no clone, or files were changed since the commit.
    """

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    if not commit:
        raise ValueError("Runs of a study need a git clone, so that their commit is known.")
    if changed:
        files = ", ".join(line.split()[-1] for line in changed.splitlines())
        raise ValueError(f"Commit first: the commit would not tell what was run, since files were changed: {files}.")
    return commit


def describe_machine() -> dict:
    """Versions and hardware of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "hardware": f"{device}, {os.cpu_count()} CPU cores",
    }


def flags_of_seed(own: dict, seed: int) -> dict:
    """Flags of an arm in the run of a seed."""
    return {name: seed if value == "{seed}" else value for name, value in own.items()}


def train_arm(
    arm: str, own: dict, seed: int, initial: Path | None, flags: list[str], output: Path, threads: int
) -> dict:
    """Train one arm with its flags in a new process; returns its line of the results. Without `initial` the run makes
    its own initial weights, and the `model_fields` of the arm are added to those of the recipe.

    Raises:
        ValueError: the run failed; the message has the last line of its output.
    """
    folder = output / f"{arm}-{seed}"
    own = flags_of_seed(own, seed)
    shutil.rmtree(folder, ignore_errors=True)
    if initial is None:
        recipe = read_recipe(flags[flags.index("--config") + 1])
        own = {**own, "model_fields": merge(recipe.get("model_fields", {}), own.get("model_fields", {})), "seed": seed}
    else:
        own = {"model_name_or_path": str(initial), "model_fields": {}, **own, "seed": seed}
    command = [sys.executable, "-m", "mpformer_hf.training", *flags, "--output_dir", str(folder)]
    command += as_flags({**own, "logging_steps": 1})
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{arm}, seed {seed}: {done.stderr.strip().splitlines()[-1:]}")
    log, evaluations = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in (LOG, EVALUATIONS)
    )
    return {
        "arm": arm,
        "seed": seed,
        "flags": flags,
        "own": own,
        "evaluations": [{key: round_all(row[key]) for key in KEPT if key in row} for row in evaluations],
        "median_step_seconds": round(statistics.median(row["seconds"] for row in log), 4),
        "peak_memory_mib": max(row["peak_memory_mib"] for row in log if row["step"] <= evaluations[0]["step"]),
        "threads": threads,
    }


def round_all(value):
    """Numbers to five digits, in lists too; None is kept."""
    return [round_all(x) for x in value] if isinstance(value, list) else value if value is None else round(value, 5)


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Train all arms and seeds that are not in the results yet, seed by seed.

    Raises:
        ValueError: an arm is unknown, the results are of other flags or of another commit, or the tree has changes.
    """
    flags = ["--config", args.config, "--dataset_name", args.dataset_name, *extra]
    lines = read_lines(args.results)
    if any(line["flags"] != flags for line in lines):
        raise ValueError(f"{args.results} has runs of other flags; choose another file.")
    commit = find_commit()
    others = {line["commit"] for line in lines} - {commit}
    if others:
        raise ValueError(f"{args.results} has runs of commit {others.pop()}, this is {commit}; choose another file.")
    finished = {(line["arm"], line["seed"]) for line in lines}
    arms = read_recipe(str(args.arms_file)) if args.arms_file else ARMS
    chosen = args.arms or (list(arms) if args.arms_file else ["off", "recipe"])
    unknown = sorted(set(chosen) - set(arms))
    if unknown:
        raise ValueError(f"Unknown arms {', '.join(unknown)}; the arms are {', '.join(arms)}.")
    todo = [(arm, seed) for seed in args.seeds for arm in chosen if (arm, seed) not in finished]
    initials = {seed: args.initial or args.output_dir / f"initial-{seed}" for _, seed in todo}
    if args.own_initial:
        initials = dict.fromkeys(args.seeds)
    elif args.initial is None:
        for seed, folder in sorted(initials.items()):
            save_initial(folder, flags, seed)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    machine = {"commit": commit, **describe_machine()}

    def one(job: tuple[str, int]) -> None:
        arm, seed = job
        line = train_arm(arm, arms[arm], seed, initials[seed], flags, args.output_dir, threads)
        with args.results.open("a") as file:
            file.write(json.dumps({**line, "jobs": args.jobs, **machine}) + "\n")
        print(arm, seed, line["evaluations"][-1], flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, todo))
