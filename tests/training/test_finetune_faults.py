"""Tests of `finetune_faults`."""

import os
import re
import resource
import signal
import time

import numpy as np
import pytest

from mpformer_hf.training import finetune
from mpformer_hf.training.engine import FineTuner
from tests import datasets_on_disk as make
from tests.runs import Run, flags


def test_images_too_narrow_to_evaluate_on_stop_the_run_in_a_sentence(tmp_path):
    maps = [np.zeros((1, 20000), dtype=np.uint8)] * 2
    data = make.semantic(tmp_path / "data", maps)
    argv = flags(data, tmp_path / "out", task="semantic", longest_edge=96)
    with pytest.raises(
        ValueError, match=r"train: the image is 20000x1 pixels, too narrow for a longest edge of 64; cut it"
    ):
        finetune.main([*argv, "--eval_split", "train", "--train_split", "train"])


def limited():
    """Files of more than 100 KB cannot be written, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk_ends_training_in_a_sentence(shapes, tmp_path):
    done = Run(["mpformer_hf.training", *flags(shapes, tmp_path / "out", max_train_steps=1)], before=limited)
    assert done.wait() == 1, done.told
    last = done.told.splitlines()[-1]
    assert last.startswith("error: ") and "File too large" in last
    assert not list((tmp_path / "out").rglob("*.safetensors")) and not list((tmp_path / "out").rglob(".writing*"))


def hang(*example):
    time.sleep(60)


def end(*example):
    os.kill(os.getpid(), signal.SIGKILL)


def impatient():
    finetune.LONGEST_WAIT = 3


@pytest.mark.parametrize(
    ("transform", "sentence"),
    [(hang, "DataLoader timed out after 3 seconds"), (end, "DataLoader worker .* (killed|exited)")],
)
def test_a_loader_worker_that_hangs_or_ends_stops_the_run_in_a_sentence(transform, sentence, shapes, tmp_path):
    own = f"{__name__}:{transform.__name__}"
    argv = flags(shapes, tmp_path / "out", dataloader_num_workers=1, transform=own)
    process = Run(["mpformer_hf.training", *argv], before=impatient)
    assert process.wait(100) == 1, process.told
    assert re.match(f"error: RuntimeError: {sentence}", process.told.splitlines()[-1]), process.told


def test_ctrl_c_ends_training_in_a_word_and_the_run_resumes(shapes, tmp_path):
    argv = flags(shapes, tmp_path / "out", max_train_steps=10_000, eval_steps=10_000, checkpointing_steps=1)
    process = Run(["mpformer_hf.training", *argv])
    end = time.monotonic() + 120
    while not list((tmp_path / "out").glob("checkpoint-*")) and time.monotonic() < end:
        time.sleep(0.1)
    process.send(signal.SIGINT)
    assert process.wait(60) == 130 and "Traceback" not in process.told and "interrupted" in process.told.splitlines()
    steps = max(int(f.name.split("-")[1]) for f in (tmp_path / "out").glob("checkpoint-*")) + 1
    argv[argv.index("--max_train_steps") + 1] = str(steps)
    assert finetune.main([*argv, "--resume_from_checkpoint", "latest"])["steps"] == steps


def test_the_first_weights_are_kept_if_no_score_is_defined(tmp_path):
    tuner = FineTuner.__new__(FineTuner)
    tuner.metric, tuner.best, tuner.evaluations_since_best, tuner.output = "ap", None, 0, tmp_path
    tuner.accelerator = type("Main", (), {"is_main_process": False})
    kept = []
    tuner.save = kept.append
    tuner.results = {}
    for score in (None, None, 0.0, None, 0.5):
        tuner.results["last"] = {"ap": score}
        tuner.keep_best()
    assert len(kept) == 3 and tuner.results["best"] == {"ap": 0.5} and tuner.evaluations_since_best == 0


@pytest.mark.parametrize("name, message", [("wandb", "not installed: pip install wandb"), ("x", "is unknown")])
def test_a_tracker_that_is_not_there_is_refused(name, message, monkeypatch):
    monkeypatch.setattr(finetune, "get_available_trackers", lambda: ["tensorboard"])
    finetune.check_trackers("tensorboard"), finetune.check_trackers("all"), finetune.check_trackers(None)
    with pytest.raises(ValueError, match=message):
        finetune.main(["--dataset_name", "data", "--output_dir", "out", "--report_to", f"tensorboard,{name}"])


def test_while_the_score_is_zero_the_last_weights_are_kept_and_training_goes_on(tmp_path):
    tuner = FineTuner.__new__(FineTuner)
    tuner.metric, tuner.best, tuner.evaluations_since_best, tuner.output = "ap", None, 0, tmp_path
    tuner.accelerator = type("Main", (), {"is_main_process": False})
    tuner.results, saved = {}, []
    tuner.save = lambda output: saved.append(tuner.results["last"]["step"])
    for step, score in enumerate((0.0, 0.0, 0.0, 0.2, 0.1, 0.0)):
        tuner.results["last"] = {"ap": score, "step": step}
        tuner.keep_best()
    assert saved == [0, 1, 2, 3] and tuner.evaluations_since_best == 2
