"""Score a saved MP-Former or Mask2Former on a split, at the original image size.

mpformer evaluate outputs/shapes data/shapes --eval_split test
mpformer evaluate most_frequent_class data/camvid --task semantic --eval_split test
mpformer evaluate outputs/shapes data/shapes --report outputs/report.html

Prints the scores as JSON; `--output_file` saves them. Needs `pip install "mpformer-hf[data]"`.
"""

from ..data.arguments import ModelDataArguments
from ..evaluation.arguments import EvaluationArguments, ScoredModel
from ..utils.arguments import parse


def main(argv: list[str]) -> dict:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    classes = [ScoredModel, ModelDataArguments, EvaluationArguments]
    loading, data, args = parse(classes, argv, __doc__, "mpformer evaluate", ignore_unknown=True)
    from ..evaluation.scoring import evaluate

    return evaluate(loading, data, args)
