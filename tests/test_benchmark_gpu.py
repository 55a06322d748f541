"""scripts/benchmark_gpu.py runs without a GPU, with models that are small."""

import json

import torch

from scripts import benchmark_gpu
from tests.tiny import tiny_model


def test_rows_of_steps_and_of_the_operator(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_gpu, "build", lambda backbone, **fields: tiny_model(num_labels=80, **fields).train())
    file = tmp_path / "result.json"
    argv = ["--backbones", "r50", "--batches", "1", "2", "--precisions", "bf16", "--side", "64", "--targets", "2"]
    benchmark_gpu.main([*argv, "--rounds", "2", "--output_file", str(file)])
    content = json.loads(file.read_text())
    assert [(row["backbone"], row["precision"], row["batch"]) for row in content["steps"]] == [
        ("r50", "bf16", 1),
        ("r50", "bf16", 2),
    ]
    for row in content["steps"]:
        assert row["models"].keys() == {"pilot", "no pilot", "transformers"}
        assert all(model["seconds"] > 0 for model in row["models"].values())
        ours, theirs = row["models"]["pilot"], row["models"]["transformers"]
        assert abs(ours["ratio"] - ours["seconds"] / theirs["seconds"]) < 0.05
    assert (
        content["operator"].keys() == {"copy", "torch, float32"} and torch.get_float32_matmul_precision() == "highest"
    )


def test_a_step_that_does_not_fit_is_a_row(monkeypatch):
    def build(backbone, **fields):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(benchmark_gpu, "build", build)
    args = type("Arguments", (), {"side": 64, "targets": 1, "compiled": False, "rounds": 1})
    assert benchmark_gpu.step_row("r50", 1, "fp32", args) == {"error": "out of memory"}
