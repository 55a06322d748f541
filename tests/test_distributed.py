"""Two processes with half of the batch each give the loss and the gradients of one with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed_step import step
from tests.runs import flags, run_together
from tests.test_backbones import tiny_model as backbone_model
from tests.tiny import batch_of, tiny_model


@pytest.mark.parametrize("counts", [(3, 0, 5, 1), (0, 0, 2, 2)], ids=["uneven", "one without targets"])
def test_two_processes_equal_one(counts, tmp_path):
    model = tiny_model(pilot_label_noise=0.0, pilot_groups=2)
    model.save_pretrained(tmp_path / "model")
    batch = batch_of(counts)
    torch.save(batch, tmp_path / "case.pt")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed_step", str(tmp_path), str(rank)],
            env=environment,
            cwd=Path(__file__).parents[1],
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        errors = [run.communicate(timeout=120)[1].decode() for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], errors
    result = torch.load(tmp_path / "result.pt", weights_only=True)

    loss = step(model.train(), batch)
    assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == result["grads"].keys()
    largest = max(grad.abs().max() for grad in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(result["grads"][name], grad, rtol=1e-3, atol=1e-5 * largest.item())


@pytest.mark.parametrize("kind", ["swin", "dinov2"])
def test_two_processes_fine_tune_a_saved_checkpoint_with_unused_weights(kind, shapes, tmp_path):
    backbone_model(kind).save_pretrained(tmp_path / "model")
    options = {"model_name_or_path": tmp_path / "model", "model_fields": "{}", "max_train_steps": 3, "eval_steps": 3}
    argv = flags(shapes, tmp_path / "out", **options, max_eval_samples=1, per_device_train_batch_size=1)
    run_together([sys.executable, "-m", "training.finetune", *argv], processes=2)
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 3
