"""Calibrate the scores of refined masks: afterwards the score of a prompt is the IoU that such masks have on average.

mpformer calibrate outputs/yours data/yours --eval_split validation

Prompts are made of the ground truth of a split that was not trained on (boxes, and dilated, eroded, shifted and exact
masks), refined, and compared with it. The result is `prompt_calibration` in the model's config.json, where it replaces
an earlier one; nothing else changes. Needs `pip install "mpformer-hf[data]"`.
"""

from ..data.arguments import ModelDataArguments
from ..inference.arguments import LoadingArguments
from ..utils.arguments import parse


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    loading, data = parse(
        [LoadingArguments, ModelDataArguments], argv, __doc__, "mpformer calibrate", ignore_unknown=True
    )
    from ..prompts.calibrating import calibrate

    calibrate(loading, data)
