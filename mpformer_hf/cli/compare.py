"""Compare models, training runs and exported files on the same images.

mpformer compare data/shapes outputs/a outputs/b --page compare.html
mpformer compare photos/ outputs/yours model.onnx model.tflite --no_labels

Prints a row for each model: its score; the largest difference of a logit from the first model's; the share of pixels
that have the class of the first model; its time for an image, relative to the first model's (all models take each image
in turn). An exported file has a row for each runtime that is installed.
"""

from pathlib import Path

from ..data.arguments import ModelDataArguments
from ..evaluation.arguments import ComparedModels
from ..utils.arguments import parse


def main(argv: list[str]) -> list[dict]:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    data, args = parse([ModelDataArguments, ComparedModels], argv, __doc__, "mpformer compare", ignore_unknown=True)
    from ..evaluation.comparison import compare
    from ..training.run import Run

    runs = [Run.open(name) for name in args.models if (Path(name) / "evaluations.jsonl").is_file()]
    return compare(data, args, {run.folder.name: (run.log, run.evaluations) for run in runs})
