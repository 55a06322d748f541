"""`mpformer calibrate`: fit the scores of refined masks to their IoU with the ground truth."""

import sys
from pathlib import Path

import torch

from ..data.arguments import DataArguments
from ..data.labels import check_classes
from ..data.opening import open_dataset
from ..inference.arguments import LoadingArguments
from ..inference.loading import with_task
from ..inference.predictor import Predictor
from ..model.prompting import apply_calibration
from ..utils.files import read_json, write_json
from .calibration import calibration_error, fit_calibration
from .ground_truth import scores_and_ious

LEAST_IOU = 0.05  # mean of refined masks that are worth a calibration


def calibrate(loading: LoadingArguments, data: DataArguments) -> None:
    """Calibrate a saved model, whose config.json is changed.

    Raises:
        ValueError: an argument is invalid, or the split has too few objects.
    """
    file = Path(loading.model) / "config.json"
    if not file.is_file():
        raise ValueError(f"The model must be the folder of a saved model, got {loading.model!r}.")
    if data.streaming:
        raise ValueError("calibrate reads the whole dataset: leave out streaming.")
    if data.eval_split == data.train_split:
        print("note: on images that the model was trained on, calibrated scores are too high", file=sys.stderr)
    data = with_task(data, loading.model, loading.revision)
    predictor = Predictor.from_arguments(loading, data.task)
    model = predictor.model
    model.config.prompt_calibration = None  # raw scores
    split = open_dataset(data, data.eval_split, data.max_eval_samples)
    check_classes(model.config.id2label, split.labels.id2label)
    scores, ious = scores_and_ious(predictor, split)
    if sum(ious) < LEAST_IOU * len(ious):
        raise ValueError(
            f"Refined masks have a mean IoU of {sum(ious) / len(ious):.3f} with the ground truth, so this model cannot "
            "refine, and nothing was stored. Train it with --pilot_noise box box shift outline clean."
        )
    knots = fit_calibration(scores, ious)
    before, after = (
        calibration_error(values, ious) for values in (scores, apply_calibration(torch.tensor(scores), knots).tolist())
    )
    write_json({**read_json(file), "prompt_calibration": knots}, file)
    print(f"{len(scores)} masks of {len(split)} images, mean IoU {sum(ious) / len(ious):.3f}")
    print(f"expected calibration error {before:.3f} before, {after:.3f} after, on the masks it was fitted to")
