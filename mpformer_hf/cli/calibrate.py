"""Calibrate the scores of refined masks: afterwards the score of a prompt is the IoU that such masks have on average.

mpformer calibrate --model_name_or_path outputs/yours --dataset_name data/yours --eval_split validation --task instance

Prompts are made of the ground truth of a split that was not trained on (boxes, and dilated, eroded, shifted and exact
masks), refined, and compared with it. The result is `prompt_calibration` in the model's config.json, where it replaces
an earlier one; nothing else changes. Needs `pip install "mpformer-hf[data]"`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.arguments import DataArguments
from ..data.dataset import open_dataset
from ..data.labels import check_classes
from ..inference.predictor import Predictor
from ..model.prompting import apply_calibration
from ..prompts.calibration import calibration_error, fit_calibration
from ..prompts.ground_truth import scores_and_ious
from ..utils.arguments import CheckedArguments, option, parse
from ..utils.files import read_json, write_json


@dataclass
class CalibrationArguments(CheckedArguments):
    """The model whose scores are calibrated."""

    _argument_group_name = "calibration"

    model_name_or_path: str = option("", "Folder of the saved model; its config.json is changed.")


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the split has too few objects.
    """
    classes = [DataArguments, CalibrationArguments]
    data, args = parse(classes, argv, __doc__, "mpformer calibrate", ignore_unknown=True)
    file = Path(args.model_name_or_path or "") / "config.json"
    if not args.model_name_or_path or not file.is_file():
        raise ValueError(
            f"model_name_or_path must be the folder of a saved model, got {args.model_name_or_path or None!r}."
        )
    if not data.dataset_name or data.streaming:
        raise ValueError("Name a dataset with --dataset_name, and leave out streaming.")
    if data.eval_split == data.train_split:
        print("note: on images that the model was trained on, calibrated scores are too high", file=sys.stderr)
    predictor = Predictor.from_pretrained(args.model_name_or_path, data.task)
    model = predictor.model
    model.config.prompt_calibration = None  # raw scores
    split = open_dataset(data, data.eval_split, data.max_eval_samples)
    check_classes(model.config.id2label, split.labels.id2label)
    scores, ious = scores_and_ious(predictor, split)
    knots = fit_calibration(scores, ious)
    before, after = (
        calibration_error(values, ious) for values in (scores, apply_calibration(torch.tensor(scores), knots).tolist())
    )
    write_json({**read_json(file), "prompt_calibration": knots}, file)
    print(f"{len(scores)} masks of {len(split)} images, mean IoU {sum(ious) / len(ious):.3f}")
    print(f"expected calibration error {before:.3f} before, {after:.3f} after, on the masks it was fitted to")
