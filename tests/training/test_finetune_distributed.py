"""Two processes with half of the batch each give the loss and the gradients of one with the whole batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import TimmBackboneConfig

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation
from tests.distributed_step import step
from tests.model.test_backbone import tiny_model as backbone_model
from tests.runs import ROOT, Run, flags, run_together
from tests.tiny import SIZES, batch_of, tiny_model


@pytest.mark.parametrize("counts", [(3, 0, 5, 1), (0, 0, 2, 2)], ids=["uneven", "one without targets"])
def test_two_processes_equal_one(counts, tmp_path):
    model = tiny_model(pilot_label_noise=0.0, pilot_groups=2)
    model.save_pretrained(tmp_path / "model")
    batch = batch_of(counts)
    torch.save(batch, tmp_path / "case.pt")
    runs = [Run(["tests.distributed_step", tmp_path, rank], GLOO_SOCKET_IFNAME="lo") for rank in range(2)]
    assert [run.wait() for run in runs] == [0, 0], [run.told for run in runs]
    result = torch.load(tmp_path / "result.pt", weights_only=True)

    loss = step(model.train(), batch)
    assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == result["grads"].keys()
    largest = max(grad.abs().max() for grad in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(result["grads"][name], grad, rtol=1e-3, atol=1e-5 * largest.item())


def test_two_processes_fine_tune_saved_checkpoints(tmp_path):
    """DDP waits for a gradient of each trainable parameter, in each step."""
    kinds = ["convnext", "dinov2", "resnet", "swin", "timm"]
    for kind in kinds[:-1]:
        backbone_model(kind).save_pretrained(tmp_path / kind)
    timm = TimmBackboneConfig(backbone="efficientnet_lite0", out_indices=[-4, -3, -2, -1])
    MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=timm, num_labels=4, **SIZES)).save_pretrained(
        tmp_path / "timm"
    )
    for told in run_together(["tests.distributed_checkpoints", tmp_path], processes=2):
        assert [line for line in told.splitlines() if line in kinds] == kinds


def test_two_processes_fine_tune_a_saved_swin(shapes, tmp_path):
    """Its last norm has no gradient."""
    backbone_model("swin").save_pretrained(tmp_path / "model")
    options = {"model_name_or_path": tmp_path / "model", "model_fields": "{}", "max_train_steps": 3, "eval_steps": 3}
    argv = flags(shapes, tmp_path / "out", **options, max_eval_samples=1, per_device_train_batch_size=1)
    run_together(["mpformer_hf.training", *argv], processes=2)
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 3


def test_torchrun_restarts_after_a_process_died_and_the_run_resumes(shapes, tmp_path):
    """As training/accelerate/slurm.sh starts it, with two processes on the CPU."""
    argv = flags(shapes, tmp_path / "out", max_train_steps=6, checkpointing_steps=2, max_eval_samples=1)
    launcher = ["--nnodes", "1", "--nproc_per_node", "2", "--max-restarts", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "tests.killed_once", str(tmp_path / "mark")]
    own = {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, argv)]
    done = subprocess.run(
        [*command, "--resume_from_checkpoint", "latest"],
        cwd=ROOT,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "mark").exists(), "a process died"
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["steps"] == 6
