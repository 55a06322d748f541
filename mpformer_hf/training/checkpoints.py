"""Checkpoints of a run: saved completely or not at all, verified before they are loaded, without executable content.

A folder `checkpoint-STEP` has accelerate's state (weights, optimizer, random states), `state.json`, perhaps
`ema.safetensors`, and, written last, `checksums.json`.
"""

import hashlib
import json
import logging
import pickle
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from ..inference.loading import check_floats
from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.modeling_mpformer import MPFormerForUniversalSegmentation
from ..utils.files import read_json, remove, write_json
from .lora import merge_adapters
from .moving_average import MovingAverage

logger = logging.getLogger(__name__)

STATE, EMA, CHECKSUMS = "state.json", "ema.safetensors", "checksums.json"


def step_of(checkpoint: Path) -> int:
    """Optimizer step of a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def checkpoints(output: Path) -> list[Path]:
    """Checkpoints of a run by ascending step; they may be damaged."""
    numbered = (path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal())
    folders = [path for path in numbered if path.name.isascii() and path.is_dir()]
    return sorted(folders, key=step_of)


def checksum(file: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def verify(checkpoint: Path) -> None:
    """Compare the files of a checkpoint with its checksums.

    Raises:
        ValueError: a file is missing or damaged; the message names it.
    """
    try:
        expected = dict(json.loads((checkpoint / CHECKSUMS).read_text()).items())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{checkpoint} has no valid {CHECKSUMS}") from error
    if STATE not in expected:
        raise ValueError(f"{checkpoint} has no valid {CHECKSUMS}")
    for name, digest in expected.items():
        if not (checkpoint / name).is_file():
            raise ValueError(f"{checkpoint} has no {name}")
        if checksum(checkpoint / name) != digest:
            raise ValueError(f"{checkpoint}/{name} is damaged")


def read_state(checkpoint: Path) -> dict:
    """State of a run in a verified checkpoint, besides that of model, optimizer and random numbers.

    Raises:
        ValueError: it is of another step than its folder's name says, or of a version without arguments.
    """
    state = read_json(checkpoint / STATE)
    if not isinstance(state, dict):
        raise ValueError(f"{checkpoint / STATE} is not the state of a run.")
    if state.get("step") != step_of(checkpoint):
        raise ValueError(f"{checkpoint} is the checkpoint of step {state.get('step')}; it was renamed.")
    if "arguments" not in state:
        raise ValueError(f"{checkpoint} has no arguments of its run; it is of an earlier version.")
    return state


def find_checkpoint(output: Path, resume: str | None) -> Path | None:
    """The checkpoint to resume from: for `latest` the newest complete one, or None (step 0) if there is none.

    Raises:
        ValueError: the given folder is not a complete checkpoint, or all checkpoints are damaged.
    """
    if resume is None:
        return None
    if resume != "latest":
        folder = Path(resume)
        if folder not in checkpoints(folder.parent) or not folder.is_dir():
            raise ValueError(
                f"resume_from_checkpoint: {resume} is not a checkpoint folder, such as {output}/checkpoint-100."
            )
        verify(folder)
        return folder
    for folder in reversed(checkpoints(output)):
        try:
            verify(folder)
            return folder
        except ValueError as error:
            logger.warning("%s; this checkpoint is not used.", error)
    if checkpoints(output):  # starting again would delete the log
        raise ValueError(f"{output} has no complete checkpoint; start a new run in another folder.")
    return None


def save_checkpoint(
    accelerator: Accelerator, output: Path, step: int, state: dict, ema: MovingAverage | None, limit: int
) -> None:
    """Save a checkpoint under a temporary name, rename it, and delete all but the newest ones.

    Args:
        accelerator: saves weights, optimizer and the random states of all processes.
        output: the output folder.
        step: optimizer step.
        state: other state of the run, as JSON.
        ema: moving average of the weights, or None.
        limit: number of checkpoints to keep.
    """
    temporary, final = output / f".writing-checkpoint-{step}", output / f"checkpoint-{step}"
    if accelerator.is_main_process:
        remove(temporary)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
    except (OSError, RuntimeError) as error:  # of a full disk, of several kinds
        remove(temporary)
        free = shutil.disk_usage(output).free >> 20
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{final} could not be saved, {free} MiB are free on its disk: {reason}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json({**state, "random_state": random_state()}, temporary / STATE)
        if ema is not None:
            save_file({name: tensor.contiguous() for name, tensor in ema.module.state_dict().items()}, temporary / EMA)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        write_json({str(file.relative_to(temporary)): checksum(file) for file in files}, temporary / CHECKSUMS)
        delete(final)  # exists if the run resumed from an earlier checkpoint
        temporary.rename(final)
        delete_old(output, step, limit)
    accelerator.wait_for_everyone()


def delete_old(output: Path, step: int, limit: int) -> None:
    """Delete all but the `limit` newest checkpoints up to a step. Later ones are left by a run that was resumed from an
    earlier checkpoint; their log is gone."""
    found = checkpoints(output)
    kept = [folder for folder in found if step_of(folder) <= step][-limit:]
    for folder in found:
        if folder not in kept:
            delete(folder)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that an interruption does not leave a part of it."""
    if checkpoint.exists():
        renamed = checkpoint.with_name(f".deleting-{checkpoint.name}")
        remove(renamed)
        checkpoint.rename(renamed)
        shutil.rmtree(renamed)


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, ema: MovingAverage | None) -> dict:
    """Load accelerate's state and the moving average of a verified checkpoint; returns the other state of the run.

    Raises:
        ValueError: the random state of this process or the moving average is missing or cannot be loaded.
    """
    if not (checkpoint / f"random_states_{accelerator.process_index}.pkl").is_file():
        raise ValueError(f"{checkpoint} has no random state of process {accelerator.process_index}.")
    if (ema is not None) != (checkpoint / EMA).is_file():
        raise ValueError(f"{checkpoint} was saved {'without' if ema is not None else 'with'} ema_decay.")
    for file in checkpoint.glob("*.safetensors"):
        check_floats(file)
    try:
        accelerator.load_state(str(checkpoint))
        if ema is not None:
            ema.module.load_state_dict(load_file(checkpoint / EMA))
    except Exception as error:  # whatever torch, safetensors and accelerate raise for files that they do not accept
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises to load it nevertheless
            reason = "it has a pickle of other objects than numbers, which could run code"
        raise ValueError(f"{checkpoint} could not be loaded: {reason}") from error
    for model in accelerator._models:
        for key, weight in model.state_dict().items():
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                raise ValueError(f"{checkpoint} has weights that are not finite, such as {key}.")
    state = read_state(checkpoint)
    saved = state.pop("random_state")
    if accelerator.is_main_process and random_state() != saved:  # accelerate does not report such a failure
        raise ValueError(f"The random state in {checkpoint} could not be loaded.")
    return state


def random_state() -> str:
    """SHA-256 of PyTorch's random state on the CPU."""
    return hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()


def save_model(model: MPFormerForUniversalSegmentation, processor: MPFormerImageProcessor, folder: Path) -> None:
    """Save model, with adapters merged, and processor into a folder that may have other files; each file is replaced
    atomically."""
    temporary = folder / ".writing"
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        merge_adapters(model).save_pretrained(temporary)
        processor.save_pretrained(temporary)
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
    finally:
        remove(temporary)


def check_space(output: Path, parameters: int, checkpoints_kept: int) -> None:
    """Check that the disk has room for the files of a run, before its first step.

    Args:
        output: the output folder.
        parameters: number of parameters of the model.
        checkpoints_kept: number of checkpoints at one time; each has weights and the two moments of AdamW.

    Raises:
        ValueError: it has not.
    """
    needed = 4 * parameters * (2 + 1 + 3 * checkpoints_kept)  # best, last, one that is being written
    free = shutil.disk_usage(output).free
    if needed > free:
        room = f"{needed / 2**30:.1f} GiB for its weights and checkpoints, {free / 2**30:.1f} GiB are free"
        fewer = ", or --save_total_limit 1" if checkpoints_kept > 2 else ""
        raise ValueError(f"The run needs {room} on the disk of {output}: choose another one{fewer}.")
