"""Options of training that save time or memory and leave the results as they are."""

import json
import threading
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from mpformer_hf import MPFormerForUniversalSegmentation
from mpformer_hf.pixel_decoder import MPFormerPixelDecoderEncoderLayer
from tests.runs import flags
from tests.tiny import tiny_model
from training import engine, finetune
from training.arguments import SpeedArguments
from training.batches import StreamSampler
from training.compiling import compile_model
from training.moving_average import MovingAverage
from training.waiting import WINDOW, WaitingCheck


def losses_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_moving_average_has_the_weights_of_its_formula():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average, expected = MovingAverage(model, 0.75, torch.device("cpu")), None
    for step in range(1, 4):
        model(torch.randn(4, 2))  # running statistics and the counter of batches
        with torch.no_grad():
            model[0].weight += torch.randn(3, 2)
        average.update(model, first=step == 1)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        expected = state if step == 1 else {name: 0.75 * expected[name] + 0.25 * state[name] for name in state}
        expected["1.num_batches_tracked"] = state["1.num_batches_tracked"]
    torch.testing.assert_close(average.module.state_dict(), expected)


def test_the_log_says_how_long_steps_wait_for_images(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.waiting.WINDOW", 2)
    make_pictures = finetune.TrainingDataset.__getitem__

    def slowly(self, draw):
        time.sleep(0.5)
        return make_pictures(self, draw)

    monkeypatch.setattr(finetune.TrainingDataset, "__getitem__", slowly)
    finetune.main(flags(shapes, tmp_path / "a", max_train_steps=5, eval_steps=5, max_eval_samples=1))
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert all(1 <= row["data_seconds"] <= row["seconds"] for row in rows)
    out = capsys.readouterr().out
    assert out.count("spent waiting for images (--dataloader_num_workers 0)") == 1 and "step 3: " in out


@pytest.mark.parametrize(("waited", "warned"), [(0.19, False), (0.21, True)])
def test_waiting_is_reported_from_a_fifth_of_the_time(waited, warned):
    check = WaitingCheck(4)
    texts = [check.update(10.0, 10.0)] + [check.update(waited, 1.0) for _ in range(3 * WINDOW)]
    assert sum(text is not None for text in texts) == warned, "the first step, when workers start, does not count"


def test_blocks_are_compiled_one_by_one(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    compile_model(tiny_model("swin", encoder_layers=2).model, "blocks")
    layers = ("SwinLayer", "MPFormerPixelDecoderEncoderLayer", "MPFormerDecoderLayer")
    assert set(compiled) >= set(layers) and all(compiled.count(name) > 1 for name in layers)
    assert not {"MPFormerModel", "SwinEncoder", "SwinStage"} & set(compiled)


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

    def fails(*args):
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


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gradient_checkpointing": True, "recompute_encoder": False}, "recomputes the encoder too"),
        ({"static_graph": True, "find_batch_size": True}, "give one of them"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpeedArguments(**options)


def test_a_static_graph_needs_several_processes_and_one_pass(shapes, tmp_path):
    with pytest.raises(ValueError, match="static_graph is for several processes"):
        finetune.main(flags(shapes, tmp_path / "a", static_graph=True))
    with pytest.raises(ValueError, match="static_graph does not work with gradient_accumulation_steps"):
        finetune.main(flags(shapes, tmp_path / "b", static_graph=True, gradient_accumulation_steps=2))


class SlowStream:
    """A stream of rows that take time."""

    def shuffle(self, seed, buffer_size):
        return self

    def set_epoch(self, epoch):
        pass

    def __iter__(self):
        for number in range(10_000):
            time.sleep(0.01)
            yield {"number": number}


def test_reading_a_stream_ends_with_its_use():
    before = set(threading.enumerate())
    stream = iter(StreamSampler(SlowStream(), seed=0, buffer=1, start=3))
    assert next(stream)[2] == {"number": 3}
    (reader,) = set(threading.enumerate()) - before
    stream.close()
    reader.join(timeout=5)
    assert not reader.is_alive()
