"""Lines of the log: means over steps and over processes."""

import json

import pytest
from accelerate import Accelerator

from mpformer_hf.training import finetune
from mpformer_hf.training.step_log import StepLog
from mpformer_hf.utils.files import read_json
from tests import official_folders
from tests.runs import flags


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_has_the_means_of_its_steps(tmp_path):
    log = StepLog(tmp_path / "log.jsonl", 3, Accelerator(cpu=True))
    for step in range(1, 8):
        row = log.add(step, {"loss": float(step)}, {"seconds": 2.0 * step, "peak_memory_mib": None}, last=step == 7)
        assert (row is not None) == (step in (3, 6, 7))
    log.close()
    assert lines(tmp_path / "log.jsonl") == [
        {"step": 3, "loss": 2.0, "seconds": 4.0, "peak_memory_mib": None},
        {"step": 6, "loss": 5.0, "seconds": 10.0, "peak_memory_mib": None},
        {"step": 7, "loss": 7.0, "seconds": 14.0, "peak_memory_mib": None},
    ]


def test_few_lines_have_the_means_of_all_steps(shapes, tmp_path):
    for name, every in (("all", 1), ("few", 3)):
        finetune.main(flags(shapes, tmp_path / name, max_train_steps=5, eval_steps=5, logging_steps=every))
    every, few = (lines(tmp_path / name / "log.jsonl") for name in ("all", "few"))
    assert [row["step"] for row in few] == [3, 5]
    assert few[0]["loss"] == pytest.approx(sum(row["loss"] for row in every[:3]) / 3, abs=1e-4)
    assert few[1]["loss_dice_pilot"] == pytest.approx(sum(row["loss_dice_pilot"] for row in every[3:]) / 2, abs=1e-4)


def test_the_best_threshold_of_the_evaluation_is_stored(tmp_path):
    data = official_folders.coco_instances(tmp_path / "coco")
    argv = flags(data, tmp_path / "run", task="instance", eval_split="val", max_train_steps=1, eval_steps=1)
    results = finetune.main(argv)
    stored = read_json(tmp_path / "run" / "preprocessor_config.json")["threshold"]
    assert stored == results["best"].get("threshold", 0.5)
    finetune.main([*argv, "--output_dir", str(tmp_path / "given"), "--eval_threshold", "0.25"])
    assert read_json(tmp_path / "given" / "preprocessor_config.json")["threshold"] == 0.25
