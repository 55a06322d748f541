"""Folders of a run: nothing is overwritten, nothing is half-written, and a killed run goes on where it was."""

import json
import re
import shutil
from pathlib import Path

from accelerate import Accelerator

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor

LOG, EVALUATIONS, RESULTS = "log.jsonl", "evaluations.jsonl", "all_results.json"


def prepare_output(path: str | None, resume: str | None = None) -> Path:
    """The output folder, made if it is not there.

    Args:
        path: of the folder.
        resume: what the run goes on from; None starts afresh.

    Raises:
        ValueError: no folder is given, or it holds something and the run starts afresh.
    """
    if not path:
        raise ValueError("--output_dir is missing: a new or empty folder.")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Output folder {path} is a file; name another one.")
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise ValueError(
                f"Output folder {path} is not empty; name another one, or --resume_from_checkpoint latest."
            )
        if not (folder / "arguments.json").is_file():
            raise ValueError(f"Output folder {path} is not empty and holds no run to resume; name another one.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_checkpoint(output: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from; None starts at step 0, also where `latest` finds none yet.

    Raises:
        ValueError: the named folder is no checkpoint.
    """
    if resume == "latest":
        return max(checkpoints(output), key=step_of, default=None)
    if resume and not (re.fullmatch(r"checkpoint-\d+", Path(resume).name) and Path(resume).is_dir()):
        raise ValueError(f"resume_from_checkpoint: {resume} is no checkpoint folder, such as {output}/checkpoint-100.")
    return Path(resume) if resume else None


def checkpoints(output: Path) -> list[Path]:
    """Whole checkpoints of a run."""
    return [path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def save_checkpoint(accelerator: Accelerator, output: Path, step: int) -> None:
    """Everything that accelerate knows, written aside and put in place in one go; older checkpoints go."""
    aside = output / f".checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = checkpoints(output)
        older = [folder for folder in older if step_of(folder) != step]
        shutil.rmtree(output / f"checkpoint-{step}", ignore_errors=True)  # of a run that went on from an earlier one
        aside.rename(output / f"checkpoint-{step}")
        for folder in older:
            shutil.rmtree(folder)
    accelerator.wait_for_everyone()


def forget_after(output: Path, step: int) -> None:
    """What a resumed run will write again."""
    for name in (LOG, EVALUATIONS):
        cut_lines(output / name, step)


def cut_lines(file: Path, step: int) -> None:
    """Forget what a run wrote after a step, and a line that was cut short."""
    if not file.is_file():
        return
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
    """Write model and processor aside, then put them into `folder` file by file: none is ever half-written."""
    aside = folder / ".writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    processor.save_pretrained(aside)
    for file in sorted(aside.iterdir()):
        file.replace(folder / file.name)
    aside.rmdir()


def write_json(content, file: Path, indent: int | None = 2) -> None:
    """See `write_text`."""
    write_text(json.dumps(content, indent=indent) + "\n", file)


def write_text(text: str, file: Path) -> None:
    """Write aside, then rename; the folder is made if it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".writing")
    aside.write_text(text)
    aside.replace(file)
