"""Shards of a prediction run: jobs that write to one output folder at the same time."""

import re
from pathlib import Path

from filelock import FileLock

from ..utils.files import LOCK, check_new_folder, lock_folder, read_json, write_json

SETTINGS = "settings.json"
PATIENCE = 60.0  # seconds that a job waits while others start


def parse_shard(text: str | None) -> tuple[int, int]:
    """Index from 0 and number of shards of `"3/16"`, the third of 16; of None, the only one.

    Raises:
        ValueError: the text has another form.
    """
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--shard must be like 3/16, the third of 16 parts, got {text!r}.")
    return int(found[1]) - 1, int(found[2])


def refuse_changes(output: Path, before: dict, settings: dict) -> None:
    """Check that a folder has results of the same settings.

    Raises:
        ValueError: some differ.
    """
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        names = ", ".join("model (its weights or config.json)" if name == "weights" else name for name in changed)
        raise ValueError(f"{output} has results of another {names}; choose another output folder.")


def check_output(output: Path, settings: dict, shards: int) -> None:
    """Check that the folder is new or has results of the same settings and number of shards.

    Raises:
        ValueError: it does not.
    """
    file = output / SETTINGS
    if not file.exists():
        try:
            check_new_folder(output)
            return
        except ValueError:
            if not file.exists():  # else another job has written it in the meantime
                raise
    before = read_json(file)
    if not isinstance(before, dict):
        raise ValueError(f"{file} is not a mapping of settings; choose another output folder.")
    refuse_changes(output, before, settings)
    if shards > 1 and before.get("shards", 1) not in (1, shards):
        raise ValueError(f"{output} has results of {before['shards']} shards, not {shards}.")


def claim_output(output: Path, settings: dict, shard: int, shards: int) -> FileLock:
    """Check an output folder, lock it for this run, and write its settings. Runs of different shards may use a folder
    at the same time; a run without shards uses it alone.

    Args:
        output: the folder.
        settings: what the results depend on.
        shard, shards: index from 0, and number of shards; 1 for a run of all images.

    Raises:
        ValueError: see `check_output`, or another run uses the folder or the shard.
    """
    starting = lock_folder(output, "-settings", PATIENCE)  # one job starts after the other
    try:
        check_output(output, settings, shards)
        lock = lock_folder(output)
        if shards == 1:
            for file in output.glob(f"{LOCK}-shard-*"):
                lock_folder(output, file.name.removeprefix(LOCK)).release()
        else:
            lock.release()
            lock = lock_folder(output, f"-shard-{shard + 1}-of-{shards}")
        file = output / SETTINGS
        kept = read_json(file).get("shards", 1) if shards == 1 and file.exists() else shards
        write_json({**settings, "shards": kept}, file)
    finally:
        starting.release()
    return lock
