"""Tests of `engine_memory`."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from mpformer_hf import MPFormerForUniversalSegmentation
from mpformer_hf.model.pixel_decoder import MPFormerPixelDecoderEncoderLayer
from mpformer_hf.training import engine, finetune
from tests.runs import flags


def losses_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_encoder_is_recomputed_or_stored_with_equal_gradients(shapes, tmp_path, monkeypatch):
    calls, layer = [], MPFormerPixelDecoderEncoderLayer.forward

    def counted(self, *inputs):
        calls.append(self.training)
        return layer(self, *inputs)

    monkeypatch.setattr(MPFormerPixelDecoderEncoderLayer, "forward", counted)
    options = {"max_train_steps": 2, "eval_steps": 2, "max_eval_samples": 1}
    for arm, recompute, expected in (("recomputed", True, 4), ("stored", False, 2)):  # calls of the only layer
        AcceleratorState._reset_state(reset_partial_state=True)
        calls.clear()
        finetune.main(flags(shapes, tmp_path / arm, recompute_encoder=recompute, **options))
        assert sum(calls) == expected
    assert losses_of(tmp_path / "recomputed") == pytest.approx(losses_of(tmp_path / "stored"), rel=1e-6)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_step_that_does_not_fit_is_computed_in_more_passes(checkpoints, shapes, tmp_path, monkeypatch, capsys):
    """From the latest checkpoint on, else from the start."""
    forward, sizes = MPFormerForUniversalSegmentation.forward, []

    def limited(self, pixel_values, **inputs):
        sizes.append(len(pixel_values))
        if self.training and len(pixel_values) > 1 and len(sizes) > 3:  # in the second pass of the second step
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, pixel_values, **inputs)

    options = {"max_train_steps": 3, "eval_steps": 3, "max_eval_samples": 1, "pilot_noise_scale": 0}
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    finetune.main(flags(shapes, tmp_path / "small", **options, **small))
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(MPFormerForUniversalSegmentation, "forward", limited)
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "find_batch_size": True}
    options |= {"checkpointing_steps": 1} if checkpoints else {}
    results = finetune.main(flags(shapes, tmp_path / "found", **options))
    assert "Out of memory; now 1 images per forward pass, 4 passes per step" in capsys.readouterr().out
    assert results["per_device_train_batch_size"] == 1 and results["steps"] == 3
    again, evaluated = 4 * (2 if checkpoints else 3), 1
    assert sizes == [2] * 4 + [1] * (again + evaluated)
    found, small = losses_of(tmp_path / "found"), losses_of(tmp_path / "small")
    assert len(found) == 3 and found[1:] == pytest.approx(small[1:], rel=0.02 if checkpoints else 1e-4)


def test_an_evaluation_that_does_not_fit_does_not_start_the_training_again(shapes, tmp_path, monkeypatch):
    steps, optimize = [], engine.FineTuner.optimize
    monkeypatch.setattr(engine.FineTuner, "optimize", lambda self, batches: steps.append(1) or optimize(self, batches))

    def fails(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine, "evaluate_model", fails)
    with pytest.raises(torch.OutOfMemoryError):
        finetune.main(flags(shapes, tmp_path / "a", find_batch_size=True, max_train_steps=2, eval_steps=2))
    assert len(steps) == 2


def test_one_image_that_does_not_fit_is_named(shapes, tmp_path, monkeypatch):
    def fails(self, **inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(MPFormerForUniversalSegmentation, "forward", fails)
    with pytest.raises(ValueError, match="one image does not fit into memory"):
        finetune.main(flags(shapes, tmp_path / "a", find_batch_size=True))


def test_other_errors_of_a_step_are_not_taken_for_a_lack_of_memory(shapes, tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(engine.FineTuner, "optimize", fails)
    with pytest.raises(RuntimeError, match="size mismatch"):
        finetune.main(flags(shapes, tmp_path / "a", find_batch_size=True))
