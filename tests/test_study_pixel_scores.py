"""Scores of a resample are those of the images it has."""

import json

import numpy as np
import pytest
import torch

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.evaluation.task_metrics import TaskMetrics, panoptic_reference, semantic_reference
from scripts.study import pixel_scores as script
from tests import datasets_on_disk as make
from tests.tiny import tiny_model

NAMES = {"semantic": ("mean_iou", "boundary_mean_iou"), "panoptic": ("pq", "pq_things", "pq_stuff")}


def moved_truth(segments, generator) -> dict:
    """Predictions that are the truth, moved by some pixels."""
    shift = tuple(generator.integers(-6, 7, 2).tolist())
    reference = panoptic_reference(segments)
    map_ = torch.roll(reference["segmentation"], shift, (0, 1)).long()
    labels = torch.roll(semantic_reference(segments).clamp(min=0), shift, (0, 1))
    return {"semantic": labels, "panoptic": {"segmentation": map_, "segments_info": reference["segments_info"]}}


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_scores_are_those_of_the_metrics(task, shapes, tmp_path, monkeypatch):
    folder = shapes
    if task == "semantic":
        maps = np.random.default_rng(1).integers(0, 3, (6, 4, 6)).repeat(10, 1).repeat(10, 2)
        folder = make.semantic(tmp_path / "data", list(maps.astype(np.uint8)))
    split = open_dataset(DataArguments(dataset_name=str(folder), task=task), "train")
    for run in ("on-4", "on-5", "off-4", "off-5"):
        tiny_model(num_labels=len(split.labels.names)).save_pretrained(tmp_path / run / "last")
        MPFormerImageProcessor(task=task).save_pretrained(tmp_path / run / "last")
    generator, made = np.random.default_rng(0), []

    def predict_batch(model, processor, batch, accelerator):
        assert processor.task == task and not model.training
        made.append((moved_truth(batch["segments"][0], generator), batch["segments"][0]))
        return [made[-1][0]]

    monkeypatch.setattr(script, "predict_batch", predict_batch)
    file = tmp_path / "scores.json"
    argv = [str(tmp_path), "--arm", "on", "--baseline", "off", "--seeds", "4", "5", "--dataset_name", str(folder)]
    argv += ["--task", task, "--eval_split", "train", "--block", "2", "--resamples", "200", "--output_file", str(file)]
    script.main(argv)
    result, count = json.loads(file.read_text()), len(split)
    assert (result["images"], result["groups"], len(made)) == (6, 3, 4 * count)

    def expected(run: int, weights: np.ndarray) -> dict:
        scores = TaskMetrics(task, split.labels)
        for weight, image in zip(weights, made[run * count : (run + 1) * count], strict=True):
            for _ in range(weight):
                scores.add(*image)
        return scores.compute()

    weights = script.drawn_weights(np.arange(count) // 2, 200)
    assert all(w.sum() == count and (w[::2] == w[1::2]).all() for w in weights)
    for name in NAMES["semantic"] + (NAMES["panoptic"] if task == "panoptic" else ()):
        rows = [[expected(run, w)[name] for run in range(4)] for w in (np.ones(count, dtype=int), *weights[:30])]
        own = result["scores"][name]
        assert [*own["on"], *own["off"]] == pytest.approx(rows[0], abs=1e-5)
        differences = [np.mean(row[:2]) - np.mean(row[2:]) for row in rows if None not in row]
        assert own["difference"] == pytest.approx(differences[0], abs=1e-5) and differences[0] != 0
        low, high = own["interval"]
        outside = np.mean([not low <= x <= high for x in differences[1:]])
        assert low < own["difference"] < high and outside < 0.2
