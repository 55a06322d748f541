"""Checkpoints and disks as they are found: odd names, weights that are not finite, no room."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpformer_hf.inference.loading import load_model
from mpformer_hf.training import checkpoints, finetune
from mpformer_hf.training.engine import FineTuner
from mpformer_hf.utils.files import read_json
from tests.runs import flags
from tests.tiny import tiny_model


def test_folders_with_odd_names_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-3", "checkpoint-20", "checkpoint-²", "checkpoint-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-20"]


def test_weights_that_are_not_finite_are_not_resumed(shapes, tmp_path):
    argv = flags(shapes, tmp_path / "run", max_train_steps=2, checkpointing_steps=1)
    finetune.main(argv)
    folder = tmp_path / "run" / "checkpoint-2"
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if "class_predictor" in key)
    weights[name][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    sums = read_json(folder / "checksums.json")
    sums["model.safetensors"] = checkpoints.checksum(folder / "model.safetensors")
    (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ValueError, match=r"checkpoint-2.* weights that are not finite, such as .*class_predictor"):
        finetune.main([*argv, "--max_train_steps", "3", "--resume_from_checkpoint", "latest"])


def test_the_disk_must_have_room(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        ValueError, match=r"needs 0\.0 GiB for its weights and checkpoints, 0\.0 GiB are free on the disk"
    ):
        finetune.main(flags(shapes, tmp_path / "run"))


def test_a_disk_that_becomes_full_is_named(shapes, tmp_path, monkeypatch):
    def full(*args):
        raise RuntimeError("[enforce fail at inline_container.cc:672]\nmore")

    monkeypatch.setattr("accelerate.Accelerator.save_state", full)
    with pytest.raises(
        ValueError, match=r"checkpoint-1 could not be saved, \d+ MiB are free on its disk: \[enforce fail"
    ):
        finetune.main(flags(shapes, tmp_path / "run", max_train_steps=2, checkpointing_steps=1))
    assert not list((tmp_path / "run").glob(".writing*"))


def test_an_interrupted_run_says_what_is_kept(shapes, tmp_path, monkeypatch, capsys):
    optimize = FineTuner.optimize

    def interrupted(tuner, batches):
        if tuner.step == 3:
            raise KeyboardInterrupt
        return optimize(tuner, batches)

    monkeypatch.setattr(FineTuner, "optimize", interrupted)
    for steps, told in ((1, "checkpoint-2 is kept: give the same command with"), (9, "There is no checkpoint in")):
        with pytest.raises(KeyboardInterrupt):
            finetune.main(flags(shapes, tmp_path / str(steps), max_train_steps=4, checkpointing_steps=steps))
        assert told in capsys.readouterr().out


def test_weights_that_are_no_floats_and_adapters_are_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["class_predictor.weight"] = weights["class_predictor.weight"].to(torch.int64)
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"class_predictor\.weight has values of type I64, expected floats"):
        load_model(str(tmp_path / "model"))
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has LoRA adapters, not a whole model: load them with peft"):
        load_model(str(tmp_path / "adapters"))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("state.json", "[]", r"state.json is not the state of a run"),
        ("checksums.json", "{}", r"checkpoint-1 has no valid checksums.json"),
    ],
)
def test_files_of_a_checkpoint_with_other_content(name, text, message, tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "state.json").write_text('{"step": 1}')
    (folder / name).write_text(text)
    if name == "state.json":
        (folder / "checksums.json").write_text(json.dumps({name: checkpoints.checksum(folder / name)}))
    with pytest.raises(ValueError, match=message):
        checkpoints.verify(folder)
        checkpoints.read_state(folder)


def test_integers_instead_of_weights(tmp_path):
    """In a folder as a file of torch, or where the configuration names a quantisation that is none; and no file."""
    model = tiny_model()
    for name in ("bin", "null", "pipe"):
        model.config.save_pretrained(tmp_path / name)
    torch.save({"class_predictor.bias": torch.ones(5).long()}, tmp_path / "bin" / "pytorch_model.bin")
    save_file({"class_predictor.bias": torch.ones(5).long()}, tmp_path / "null" / "model.safetensors")
    config = read_json(tmp_path / "null" / "config.json") | {"quantization_config": None}
    (tmp_path / "null" / "config.json").write_text(json.dumps(config))
    os.mkfifo(tmp_path / "pipe" / "model.safetensors")
    for name, message in (
        ("bin", r"class_predictor.bias has values of type torch.int64"),
        ("null", r"class_predictor.bias has values of type I64"),
        ("pipe", "is not a regular file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(str(tmp_path / name))
