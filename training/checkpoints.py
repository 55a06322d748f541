"""The output folder of a run: its files, its checkpoints, and resuming."""

import json
import re
import shutil
from pathlib import Path

from accelerate import Accelerator

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.files import remove, write_text

LOG, EVALUATIONS, RESULTS = "log.jsonl", "evaluations.jsonl", "all_results.json"


def prepare_output(path: str | None, resume: str | None = None) -> Path:
    """Create the output folder.

    Args:
        path: its path.
        resume: `latest` or a checkpoint, if the run resumes.

    Raises:
        ValueError: no folder is given, it is not empty, or there is no run to resume.
    """
    if not path:
        raise ValueError("--output_dir is missing: a new or empty folder.")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Output folder {path} is a file; choose another one.")
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise ValueError(
                f"Output folder {path} is not empty; choose another one, or --resume_from_checkpoint latest."
            )
        if not (folder / "arguments.json").is_file():
            raise ValueError(f"Output folder {path} is not empty and has no run to resume; choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_checkpoint(output: Path, resume: str | None) -> Path | None:
    """The checkpoint to resume from. None starts at step 0, also for `latest` without any checkpoint.

    Raises:
        ValueError: the given folder is not a checkpoint.
    """
    if resume == "latest":
        return max(checkpoints(output), key=step_of, default=None)
    if resume and not (re.fullmatch(r"checkpoint-\d+", Path(resume).name) and Path(resume).is_dir()):
        raise ValueError(
            f"resume_from_checkpoint: {resume} is not a checkpoint folder, such as {output}/checkpoint-100."
        )
    return Path(resume) if resume else None


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run."""
    return [path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]


def step_of(checkpoint: Path) -> int:
    """Optimizer step of a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def save_checkpoint(accelerator: Accelerator, output: Path, step: int) -> None:
    """Save accelerate's state under a temporary name, rename it, and delete older checkpoints."""
    temporary, final = output / f".writing-checkpoint-{step}", output / f"checkpoint-{step}"
    if accelerator.is_main_process:
        remove(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))  # every process writes its random state
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = [folder for folder in checkpoints(output) if folder != final]
        remove(final)  # exists if the run resumed from an earlier checkpoint
        temporary.rename(final)
        for folder in older:
            shutil.rmtree(folder)
    accelerator.wait_for_everyone()


def truncate_logs(output: Path, step: int) -> None:
    """Remove what a run logged after a step, and an incomplete last line."""
    for file in (output / LOG, output / EVALUATIONS):
        if not file.is_file():
            continue
        kept = []
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if row["step"] <= step:
                kept.append(line + "\n")
        write_text("".join(kept), file)


def save_model(model: MPFormerForUniversalSegmentation, processor: MPFormerImageProcessor, folder: Path) -> None:
    """Save model and processor into a folder that may have other files; each file is replaced atomically."""
    temporary = folder / ".writing"
    remove(temporary)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    for file in sorted(temporary.iterdir()):
        file.replace(folder / file.name)
    temporary.rmdir()
