"""Scores of refined masks become the IoU that such masks have on average."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from mpformer_hf import MPFormerConfig, MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.inference.loading import load_model, load_processor
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.prompting import apply_calibration, raw_scores
from mpformer_hf.prompts.calibration import calibration_error, fit_calibration
from mpformer_hf.prompts.ground_truth import scores_and_ious
from mpformer_hf.training.building import load_checkpoint
from tests import datasets_on_disk as make
from tests.tiny import tiny_model


def test_calibrated_scores_are_mean_ious():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 20000)
    ious = np.clip(scores**2 + rng.normal(0, 0.1, 20000), 0, 1)
    knots = fit_calibration(scores, ious)
    fresh = rng.uniform(0, 1, 20000)
    expected = np.clip(fresh[:, None] ** 2 + rng.normal(0, 0.1, (20000, 1)), 0, 1)[:, 0]
    calibrated = apply_calibration(torch.tensor(fresh, dtype=torch.float32), knots).numpy()
    assert calibration_error(fresh, expected) > 0.1
    assert calibration_error(calibrated, expected) < 0.01
    inner = (fresh > 0.4) & (fresh < 0.9)
    np.testing.assert_allclose(calibrated[inner], fresh[inner] ** 2, atol=0.02)


def test_it_never_decreases_and_falls_to_zero():
    scores, ious = np.repeat([0.2, 0.4, 0.6, 0.8], 20), np.repeat([0.5, 0.3, 0.3, 0.9], 20)
    knots = fit_calibration(scores, ious)
    assert knots == [[0.0, 0.2, 0.4, 0.6, 0.8], pytest.approx([0.0, *[1.1 / 3] * 3, 0.9], abs=1e-5)]
    values = apply_calibration(torch.tensor([0.0, 0.1, 0.2, 0.7, 0.8, 1.0]), knots)
    torch.testing.assert_close(values, torch.tensor([0.0, 0.55 / 3, 1.1 / 3, (1.1 / 3 + 0.9) / 2, 0.9, 0.9]))
    scores = torch.rand(3)
    assert apply_calibration(scores, None) is scores and len(apply_calibration(torch.zeros(0), knots)) == 0
    with pytest.raises(ValueError, match="at least 50 refined masks, there are 2"):
        fit_calibration([0.5, 0.5], [0.1, 0.2])
    with pytest.raises(ValueError, match="All scores are 0"):
        fit_calibration([0.0] * 60, [0.0] * 60)
    assert MPFormerConfig(prompt_calibration=fit_calibration([0.5] * 60, [0.2] * 60)).prompt_calibration is not None


def test_the_raw_score_is_the_expected_iou():
    logits = torch.logit(torch.tensor([[[0.9, 0.8, 0.25, 0.0]], [[0.1, 0.2, 0.3, 0.4]]], dtype=torch.float64))
    values = raw_scores(torch.tensor([0.5, 1.0], dtype=torch.float64), logits)
    torch.testing.assert_close(values, torch.tensor([0.5 * 1.7 / 2.25, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(
    "value", [[[0.1, 0.2], [0.3]], [[0.2, 0.1], [0.3, 0.4]], [[0.1], [0.3]], "yes", [[0, 2], [0, 1]]]
)
def test_other_values_of_the_field_are_errors(value):
    with pytest.raises(StrictDataclassError, match="prompt_calibration"):
        MPFormerConfig(prompt_calibration=value)


def test_the_command_calibrates_a_saved_model(tmp_path, capsys):
    data = make.shapes(tmp_path / "shapes", train=1, validation=8)
    names = dict(enumerate(json.loads((data / "id2label.json").read_text()).values()))
    torch.manual_seed(0)
    tiny_model(id2label=names, num_labels=len(names)).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    flags = ["--dataset_name", str(data), "--task", "panoptic"]
    mpformer(["calibrate", "--model", str(tmp_path / "model"), *flags])
    assert "expected calibration error" in capsys.readouterr().out
    model = load_model(str(tmp_path / "model"))
    knots = model.config.prompt_calibration
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights

    split = open_dataset(DataArguments(dataset_name=str(data), task="panoptic"), "validation")
    predictor = Predictor(model, load_processor(str(tmp_path / "model")), "panoptic")
    scores, ious = scores_and_ious(predictor, split)
    assert calibration_error(scores, ious) < 0.02 and min(knots[1]) <= min(scores)
    with pytest.raises(SystemExit, match="leave out streaming"):
        mpformer(["calibrate", "--model", str(tmp_path / "model"), *flags, "--streaming", "true"])
    assert load_checkpoint(str(tmp_path / "model"), {}).config.prompt_calibration is None, (
        "other weights after training"
    )
    with pytest.raises(SystemExit, match="MODEL is missing"):
        mpformer(["calibrate", *flags])
