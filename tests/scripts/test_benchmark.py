"""scripts/benchmark runs without a GPU, with models that are small."""

import argparse
import json
import multiprocessing

import pytest
import torch

from scripts.benchmark import __main__ as benchmark
from scripts.benchmark import files, gpu, gpu_steps, runtimes
from tests.tiny import tiny_model


def build(backbone, **fields):
    torch.manual_seed(0)
    return tiny_model(num_labels=80, **fields).train()


def test_rows_of_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_steps, "build", build)
    file = tmp_path / "result.json"
    argv = ["--backbones", "r50", "--batches", "1", "2", "--precisions", "bf16", "--side", "64", "--targets", "2"]
    argv = ["--preset", "gpu", *argv, "--rounds", "2", "--eager_only", "--output_file", str(file)]
    benchmark.main(argv)
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
    assert torch.get_float32_matmul_precision() == "highest"
    assert "| pilot | " in capsys.readouterr().out


def test_a_step_that_does_not_fit_is_a_row(monkeypatch):
    def make_batch(side, count, targets):
        raise torch.OutOfMemoryError("too large")

    args = argparse.Namespace(side=64, targets=1, eager_only=True, rounds=1, batches=[1, 4])
    monkeypatch.setattr(gpu_steps, "build", lambda *given, **fields: torch.nn.Linear(1, 1))
    monkeypatch.setattr(gpu_steps, "make_step", lambda *given: lambda: None)
    monkeypatch.setattr(gpu_steps, "make_batch", make_batch)
    row = gpu_steps.step_row("r50", 1, "fp32", args)
    assert row == {name: {"error": "out of memory"} for name in ("pilot", "no pilot", "transformers")}


def test_models_that_do_not_fit_together_are_measured_alone(monkeypatch):
    def build_small(backbone, **fields):
        made.append(backbone)
        if len(made) == 2:
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        return build(backbone, **fields)

    made = []
    monkeypatch.setattr(gpu_steps, "build", build_small)
    monkeypatch.setattr(gpu_steps, "make_step", lambda *given: lambda: None)
    row = gpu_steps.step_row("r50", 1, "fp32", argparse.Namespace(side=64, targets=1, eager_only=True, rounds=1))
    assert len(made) == 5 and all("ratio" not in model and "seconds" in model for model in row.values())


def test_each_row_compiles_anew(monkeypatch):
    """Otherwise the compiler would stop compiling after some rows, and use dynamic shapes before."""
    counts, compile_ = [], torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_(self, backend="eager"))
    monkeypatch.setattr(gpu_steps, "build", build)
    for size in (1, 2):
        args = argparse.Namespace(side=64, targets=2, eager_only=False, rounds=1)
        torch._dynamo.utils.counters.clear()
        gpu_steps.measure(["pilot, compiled"], "r50", size, "fp32", args)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("flags", [["--measure", "training"], ["--measure", "pilot", "--bf16"]])
def test_rows_of_the_cpu(flags, monkeypatch):
    monkeypatch.setattr("scripts.benchmark.model_rows.build", build)
    name = flags[1]
    args = argparse.Namespace(backbone="r50", sizes=[64], dtype=torch.bfloat16 if "--bf16" in flags else None)
    (row,) = benchmark.BENCHMARKS[name](args, 1).values()
    assert len(row) == 2 and all(times["median_s"] > 0 for times in row.values())


def test_the_preset_shows_its_own_flags(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help", "--preset", "gpu"])
    assert gpu.__doc__.splitlines()[0] in (shown := capsys.readouterr().out) and "--eager_only" in shown


def test_works_of_the_preset_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "OBJECTS", 4)
    monkeypatch.setattr(files, "SIDE", 64)
    monkeypatch.setattr(files, "PHOTO", (900, 1000))
    monkeypatch.setattr(files, "CLASSES", 3)
    files.make_objects(tmp_path)
    for work in ((files.read_ours,), (files.read_pycocotools,), (files.evaluate_ours, True), (files.draw_ours,)):
        here, there = multiprocessing.Pipe()
        files.measure(there, tmp_path, *work)
        assert set(here.recv()) == {"cpu_s", "wall_s", "peak_mib"}
    image, segments = files.read_ours(tmp_path)()
    assert image.shape == (3, 64, 64) and len(segments.classes) == 4


def test_the_preset_runtimes(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "build", lambda backbone, **_: tiny_model("resnet", decoder_layers=2))
    monkeypatch.setattr(runtimes, "TARGETS", {".pt2": runtimes.TARGETS[".pt2"]})
    argv = ["--preset", "runtimes", "--side", "64", "--output_file", str(tmp_path / "r.json")]
    rows = benchmark.main(argv)["rows"]
    assert [row["model"] for row in rows] == ["model", "0_fp32.pt2 (torch.export)"]
    assert rows[1]["equal_pixels"] > 0.99 and json.loads((tmp_path / "r.json").read_text())["side"] == 64
