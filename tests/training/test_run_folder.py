"""The output folder of a run: one run at a time, nothing is lost by resuming, damaged checkpoints are not used."""

import contextlib
import json
import os
import pickle
import shutil
import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from mpformer_hf.training import checkpoints, engine, finetune, run_folder
from tests.runs import PROCESSES, flags

OPTIONS = {"max_train_steps": 6, "eval_steps": 3, "checkpointing_steps": 2, "max_eval_samples": 1, "num_pictures": 0}


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """A finished run with checkpoints 4 and 6, and its arguments."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("run") / "model"
    finetune.main(flags(shapes, output, **OPTIONS))
    return output


@pytest.fixture
def interrupted(finished, tmp_path):
    """The same run as if it had been killed after step 5."""
    folder = tmp_path / "model"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoint-6")
    (folder / "README.md").unlink()
    state = json.loads((folder / "checkpoint-4" / "state.json").read_text())
    (folder / "all_results.json").write_text(json.dumps(state["results"]))  # as after the evaluation of step 3
    run_folder.truncate_logs(folder, 5)
    return folder


def content(folder):
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != ".lock"
    }


def resume(shapes, folder, checkpoint="latest", **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    return finetune.main(flags(shapes, folder, **{**OPTIONS, **changes}, resume_from_checkpoint=checkpoint))


def log_of(folder, name="log.jsonl", keys=("step", "loss")):
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [tuple(row[key] for key in keys) for row in rows]


def assert_equal_runs(folder, other):
    assert log_of(folder) == log_of(other)
    scores = ("step", "pq", "mean_iou")
    assert log_of(folder, "evaluations.jsonl", scores) == log_of(other, "evaluations.jsonl", scores)
    for name in ("last/model.safetensors", "model.safetensors"):
        ours, theirs = load_file(folder / name), load_file(other / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_a_resumed_run_equals_an_undisturbed_one_bit_by_bit(shapes, finished, interrupted):
    resume(shapes, interrupted)
    assert_equal_runs(interrupted, finished)


def test_a_finished_run_says_so_and_nothing_changes(shapes, finished):
    before = content(finished)
    with pytest.raises(ValueError, match=r"is finished \(6 steps\); nothing was changed"):
        resume(shapes, finished)
    assert content(finished) == before


def test_a_finished_run_without_checkpoints_is_not_started_again(shapes, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "model")
    for checkpoint in checkpoints.checkpoints(tmp_path / "model"):
        shutil.rmtree(checkpoint)
    before = content(tmp_path / "model")
    with pytest.raises(ValueError, match="is finished"):
        resume(shapes, tmp_path / "model")
    assert content(tmp_path / "model") == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rate": 0.01}, "learning_rate 0.001 -> 0.01"),
        ({"seed": 3}, "seed 0 -> 3"),
        ({"pilot_groups": 2}, "pilot_groups None -> 2"),
        ({"per_device_train_batch_size": 1}, "images per step 2 -> 1"),
        ({"warmup_steps": 2, "seed": 1}, "seed 0 -> 1; warmup_steps 0 -> 2"),
    ],
)
def test_other_arguments_are_refused_by_name(shapes, interrupted, changes, message):
    before = content(interrupted)
    with pytest.raises(ValueError, match=f"was started with other arguments: {message}"):
        resume(shapes, interrupted, **changes)
    assert content(interrupted) == before


def test_evaluation_and_accumulation_of_the_same_batch_may_change(shapes, interrupted):
    results = resume(
        shapes,
        interrupted,
        eval_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        max_train_steps=7,
    )
    assert results["steps"] == 7 and [step for step, _ in log_of(interrupted)] == list(range(1, 8))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "random_states_0.pkl", "optimizer.bin", "state.json", "checksums.json"]
)
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_damaged_checkpoint_is_not_used(interrupted, name, damage):
    whole = interrupted / "checkpoint-4"
    shutil.copytree(whole, interrupted / "checkpoint-5")
    assert checkpoints.find_checkpoint(interrupted, "latest").name == "checkpoint-5"
    damaged = interrupted / "checkpoint-5" / name
    damaged.unlink() if damage == "missing" else damaged.write_bytes(b"[]" if name == "checksums.json" else b"")
    assert checkpoints.find_checkpoint(interrupted, "latest") == whole
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        checkpoints.find_checkpoint(interrupted, str(interrupted / "checkpoint-5"))


def test_folders_that_are_not_checkpoints(tmp_path):
    (tmp_path / ".writing-checkpoint-8").mkdir()
    (tmp_path / "checkpoint-last").mkdir()
    assert checkpoints.find_checkpoint(tmp_path, "latest") is None
    (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        checkpoints.find_checkpoint(tmp_path, "latest")
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        checkpoints.find_checkpoint(tmp_path, str(tmp_path / "checkpoint-12"))


def test_a_failed_resume_leaves_the_log(shapes, interrupted, monkeypatch):
    before = content(interrupted)
    with pytest.raises(ValueError, match="was saved without ema_decay"):
        checkpoints.load_checkpoint(Accelerator(), interrupted / "checkpoint-4", torch.nn.Linear(1, 1))
    monkeypatch.setattr(engine, "load_checkpoint", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        resume(shapes, interrupted)
    assert content(interrupted) == before


def test_the_newest_checkpoints_are_kept(shapes, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    options = {**OPTIONS, "max_train_steps": 4, "checkpointing_steps": 1, "save_total_limit": 3}
    finetune.main(flags(shapes, tmp_path / "model", **options))
    names = sorted(path.name for path in (tmp_path / "model").iterdir() if "checkpoint" in path.name)
    assert names == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_resuming_from_an_earlier_checkpoint_deletes_the_later_ones(shapes, finished, interrupted):
    shutil.copytree(finished / "checkpoint-6", interrupted / "checkpoint-6")
    (interrupted / ".deleting-checkpoint-2").mkdir()
    resume(shapes, interrupted, str(interrupted / "checkpoint-4"), checkpointing_steps=100)
    assert_equal_runs(interrupted, finished)
    assert [path.name for path in interrupted.iterdir() if "checkpoint" in path.name] == ["checkpoint-4"]


def test_the_best_weights_are_those_of_the_best_score(shapes, finished, tmp_path):
    """The folder has the weights of another step than the checkpoint's best score: the next score is the best."""
    shutil.copytree(finished, tmp_path / "model")
    (tmp_path / "model" / "all_results.json").unlink()
    results = resume(shapes, tmp_path / "model", str(tmp_path / "model" / "checkpoint-4"), eval_steps=99)
    assert results["best"]["step"] == 6
    ours, last = (load_file(tmp_path / "model" / name) for name in ("model.safetensors", "last/model.safetensors"))
    assert all(torch.equal(ours[key], last[key]) for key in last)


def test_a_checkpoint_in_a_new_folder_needs_the_same_arguments_and_gives_a_model(shapes, finished, tmp_path):
    checkpoint = str(finished / "checkpoint-4")
    with pytest.raises(ValueError, match=r"was started with other arguments: learning_rate 0\.001 -> 0\.5"):
        resume(shapes, tmp_path / "new", checkpoint, learning_rate=0.5)
    results = resume(shapes, tmp_path / "other", checkpoint)
    assert results["best"]["step"] == 6 and (tmp_path / "other" / "model.safetensors").is_file()


def test_checkpoints_of_other_runs_and_steps_are_refused(shapes, interrupted, tmp_path):
    (interrupted / "checkpoint-4").rename(interrupted / "checkpoint-5")
    with pytest.raises(ValueError, match="is the checkpoint of step 4; it was renamed"):
        resume(shapes, interrupted)
    (interrupted / "checkpoint-5").rename(interrupted / "checkpoint-4")
    state = json.loads((interrupted / "checkpoint-4" / "state.json").read_text())
    for change, message in (
        ({"arguments": {**state["arguments"], "seed": 7}}, "started with other arguments: seed 7 -> 0"),
        ({"training_images": 9}, "the run had 9 training images, now 6"),
    ):
        checkpoint = interrupted / "checkpoint-4"
        (checkpoint / "state.json").write_text(json.dumps({**state, **change}))
        sums = json.loads((checkpoint / "checksums.json").read_text())
        sums["state.json"] = checkpoints.checksum(checkpoint / "state.json")
        (checkpoint / "checksums.json").write_text(json.dumps(sums))
        with pytest.raises(ValueError, match=message):
            resume(shapes, interrupted)


def hold(folder: str, held) -> None:
    lock = run_folder.lock_run(folder)
    held.send(lock is not None)
    time.sleep(60)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    here, there = PROCESSES.Pipe()
    first = PROCESSES.Process(target=hold, args=(str(tmp_path / "model"), there))
    first.start()
    try:
        assert here.poll(60) and here.recv()
        with pytest.raises(ValueError, match="is used by another process"):
            run_folder.lock_run(str(tmp_path / "model"))
    finally:
        first.kill()
        first.join()
    run_folder.lock_run(str(tmp_path / "model")).release()  # the lock of a killed process is gone


def test_an_interrupted_first_write_is_like_an_empty_folder(shapes, tmp_path):
    (tmp_path / ".writing-arguments.json").write_text('{"learn')
    (tmp_path / ".lock").touch()
    run_folder.prepare_folder(tmp_path, {}, None)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with pytest.raises(ValueError, match="--output_dir is missing"):
        run_folder.lock_run(None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        run_folder.lock_run(str(tmp_path / "file"))


class Runs:
    """Unpickling this creates a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["random_states_0.pkl", "optimizer.bin", "custom_checkpoint_0.pkl", "scheduler.bin"])
def test_pickles_in_a_checkpoint_do_not_run(shapes, interrupted, tmp_path, name):
    checkpoint, sign = interrupted / "checkpoint-4", tmp_path / "executed"
    (checkpoint / name).write_bytes(pickle.dumps(Runs(sign), protocol=2))
    sums = json.loads((checkpoint / "checksums.json").read_text())
    sums[name] = checkpoints.checksum(checkpoint / name)  # whoever wrote the pickle can write this too
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    with contextlib.suppress(ValueError):  # a file that is not used changes nothing
        resume(shapes, interrupted)
    assert not sign.exists()
