"""Tests of `task_metrics`."""

import json

import numpy as np
import pytest

from mpformer_hf.evaluation.task_metrics import format_score
from mpformer_hf.metrics.average_precision import AveragePrecision


def test_scores_without_objects_are_none_and_shown_as_a_dash():
    metric = AveragePrecision(num_labels=2)
    mask = np.zeros((1, 40, 40), dtype=bool)
    mask[0, :10, :10] = True
    truth = {"masks": mask, "label_ids": [0]}
    metric.add(prediction={**truth, "scores": [1.0]}, reference=truth)
    scores = metric.compute()
    assert scores["ap"] == scores["ap_small"] == pytest.approx(1)
    assert scores["ap_medium"] is None and scores["ap_large"] is None and scores["per_class_ap"][1] is None
    assert json.loads(json.dumps(scores)) == scores and format_score(scores["ap_large"]) == "-"
