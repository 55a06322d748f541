"""The output folder of a run: who may write to it, whether a run can resume in it, and its logs."""

import json
from pathlib import Path

from filelock import FileLock

from ..utils.files import LOCK, lock_folder, read_json, remove, write_text

LOG, EVALUATIONS, RESULTS, ARGUMENTS = "log.jsonl", "evaluations.jsonl", "all_results.json", "arguments.json"
# What may differ when a run resumes: the number of steps, evaluation, outputs, speed, and processes of the same total
# batch.
CHANGEABLE = {
    "output_dir",
    "resume_from_checkpoint",
    "max_train_steps",
    "num_train_epochs",
    "eval_steps",
    "eval_on_start",
    "eval_loss",
    "logging_steps",
    "per_device_eval_batch_size",
    "max_eval_samples",
    "diagnostics",
    "num_pictures",
    "early_stopping_patience",
    "checkpointing_steps",
    "save_total_limit",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "dataloader_num_workers",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_processes",
    "find_batch_size",
    "recompute_encoder",
    "torch_compile",
    "cudnn_benchmark",
    "static_graph",
}


def lock_run(path: str | None) -> FileLock:
    """Lock the output folder of a run, see `lock_folder`.

    Raises:
        ValueError: no folder is given, it is a file, cannot be created, or another run uses it.
    """
    if not path:
        raise ValueError("--output_dir is missing: a new or empty folder.")
    return lock_folder(Path(path))


def prepare_folder(folder: Path, flags: dict, resume: str | None) -> None:
    """Check that a run may start or resume in its (locked) output folder, and remove unfinished temporary files.

    Args:
        folder: the output folder.
        flags: all arguments of the run, and `num_processes`.
        resume: `latest`, a checkpoint, or None for a new run.

    Raises:
        ValueError: a new run in a folder that is not empty; or a run to resume that does not exist or was started with
            other arguments.
    """
    content = [
        file for file in folder.iterdir() if file.name != LOCK and not file.name.startswith((".writing", ".deleting"))
    ]
    if content and not resume:
        raise ValueError(
            f"Output folder {folder} is not empty; choose another one, or --resume_from_checkpoint latest."
        )
    if content and not (folder / ARGUMENTS).is_file():
        raise ValueError(f"Output folder {folder} is not empty and has no run to resume; choose another one.")
    if content:
        check_arguments(read_json(folder / ARGUMENTS), flags, folder)
    for file in (*folder.glob(".writing*"), *folder.glob(".deleting*")):
        remove(file)


def check_unfinished(folder: Path, total: int) -> None:
    """Check that a run has steps to come.

    Raises:
        ValueError: it is finished.
    """
    steps = read_json(folder / RESULTS).get("steps") if (folder / RESULTS).is_file() else None
    if steps is not None and steps >= total:
        raise ValueError(f"The run in {folder} is finished ({steps} steps); nothing was changed.")


def total_batch(flags: dict) -> int:
    """Images of one optimizer step over all processes."""
    return flags["per_device_train_batch_size"] * flags["gradient_accumulation_steps"] * flags["num_processes"]


def check_arguments(stored: dict, flags: dict, folder: Path) -> None:
    """Compare the arguments of a run with those that it was started with.

    Raises:
        ValueError: some differ that may not; the message names each with both values.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"{folder / ARGUMENTS} is damaged.")
    names = sorted((set(stored) | set(flags)) - CHANGEABLE)
    changed = [f"{n} {stored.get(n)} -> {flags.get(n)}" for n in names if stored.get(n) != flags.get(n)]
    if total_batch(stored) != total_batch(flags):
        changed.append(f"images per step {total_batch(stored)} -> {total_batch(flags)}")
    if changed:
        raise ValueError(f"The run in {folder} was started with other arguments: {'; '.join(changed)}.")


def truncate_logs(folder: Path, step: int) -> None:
    """Remove what a run logged after a step, and an incomplete last line."""
    for file in (folder / LOG, folder / EVALUATIONS):
        if not file.is_file():
            continue
        kept = []
        for line in file.read_text().splitlines():
            try:
                if int(json.loads(line)["step"]) <= step:
                    kept.append(line + "\n")
            except (ValueError, TypeError, LookupError, RecursionError):
                break
        write_text("".join(kept), file)
