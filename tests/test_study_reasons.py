"""Stability of the assignment and the pilot's part of the gradient, of a run with checkpoints."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.evaluation.evaluator import diagnose_model, evaluation_loader
from scripts.study import figure, reasons, utilisation
from tests.runs import flags
from tests.tiny import batch_of, tiny_model
from training import finetune

RESULTS = Path(finetune.__file__).parent / "results" / "study"


def test_the_share_of_the_gradient_is_that_of_its_norm():
    model = tiny_model(pilot_label_noise=0.0)
    batch = batch_of((3, 2))
    measured = reasons.decoder_gradients(model, [batch])
    model.config.pilot_loss_weight = 3.0
    tripled = reasons.decoder_gradients(model, [batch])
    odds = [x["pilot_gradient_share"] / (1 - x["pilot_gradient_share"]) for x in (measured, tripled)]
    assert odds[1] == pytest.approx(3 * odds[0], rel=1e-3)
    assert tripled["gradient_cosine"] == pytest.approx(measured["gradient_cosine"], abs=1e-4)
    assert -1 < measured["gradient_cosine"] < 1 and measured["gradient_cosine"] != 0


def test_reasons_of_a_run(shapes, tmp_path, monkeypatch):
    options = {"max_train_steps": 3, "eval_steps": 3, "max_eval_samples": 1, "checkpointing_steps": 1}
    options |= {"save_total_limit": 10, "learning_rate": 1e-2}
    finetune.main(flags(shapes, tmp_path / "runs" / "on-0", **options))
    shutil.copytree(tmp_path / "runs" / "on-0", tmp_path / "runs" / "off-0")
    argv = [str(tmp_path / "runs"), "--arms", "on", "off", "--seeds", "0", "--dataset_name", str(shapes)]
    argv += ["--task", "panoptic", "--eval_split", "validation", "--batches", "1"]
    reasons.main([*argv, "--output_file", str(tmp_path / "why.json")])
    on, off = json.loads((tmp_path / "why.json").read_text())
    assert on["checkpoints"] == off["checkpoints"] and [row["step"] for row in on["checkpoints"]] == [1, 2, 3]
    assert "same_query" not in on["checkpoints"][0] and 0 <= on["checkpoints"][1]["same_query"] <= 1
    assert all(0 < row["pilot_gradient_share"] < 1 for row in on["checkpoints"])

    model = MPFormerForUniversalSegmentation.from_pretrained(tmp_path / "runs" / "on-0" / "last")
    split = open_dataset(DataArguments(dataset_name=str(shapes)), "validation")
    before = reasons.matched_queries(model, tmp_path / "runs" / "on-0" / "last", split)[0][-1]
    objects = sum(len(split[index][1].classes) for index in range(len(split)))
    assert len(before) == objects and before.min() >= 0
    with torch.no_grad():  # the same queries in another order
        for embedding in ("queries_features", "queries_embedder"):
            weight = getattr(model.model.transformer_module, embedding).weight
            weight.copy_(weight.roll(1, 0))
    after = reasons.matched_queries(model, tmp_path / "runs" / "on-0" / "last", split)[0][-1]
    assert torch.equal((before + 1) % model.config.num_queries, after)

    with pytest.raises(ValueError, match="fewer than two checkpoints"):
        reasons.measure(tmp_path / "runs", split, 1)


def test_utilisation_of_things_and_stuff_is_that_of_the_diagnostics(shapes, tmp_path):
    split = open_dataset(DataArguments(dataset_name=str(shapes), task="panoptic"), "train")
    model = tiny_model(num_labels=len(split.labels.names), num_queries=20)
    model.save_pretrained(tmp_path / "model")
    processor = MPFormerImageProcessor(task="panoptic")
    processor.save_pretrained(tmp_path / "model")
    argv = [str(tmp_path / "model"), "--dataset_name", str(shapes), "--eval_split", "train"]
    utilisation.main([*argv, "--output_file", str(tmp_path / "found.json")])
    (found,) = json.loads((tmp_path / "found.json").read_text()).values()
    accelerator = Accelerator()
    expected = diagnose_model(model, processor, evaluation_loader(split, processor, accelerator), accelerator)
    total = sum(found[kind]["objects"] for kind in ("things", "stuff"))
    assert total == expected.num_targets and found["things"]["objects"] > 0
    together = [
        sum(found[kind]["objects"] * found[kind]["query_utilisation"][i] for kind in found) / total for i in range(5)
    ]
    assert together == pytest.approx(expected.query_utilisation, abs=1e-3) and together[0] < 1


def test_the_figure_is_drawn_from_the_committed_results(tmp_path):
    figure.main([str(RESULTS), str(tmp_path / "why.png")])
    with Image.open(tmp_path / "why.png") as drawn, Image.open(RESULTS / "why.png") as committed:
        assert drawn.size == committed.size and np.asarray(drawn.convert("L")).std() > 20
    gains = figure.gains(RESULTS)
    final = {}
    for line in (RESULTS / "question_2_panoptic.jsonl").read_text().splitlines():
        row = json.loads(line)
        final.setdefault(row["arm"], []).append(row["evaluations"][-1]["pq_things"])
    expected = np.mean(final["on"]) - np.mean(final["off"])
    assert gains["PQ of things, CamVid"][0] == pytest.approx(expected, abs=1e-6) and len(gains) == 4
