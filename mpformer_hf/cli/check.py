"""Show what is in a dataset, and what looks wrong, before anyone trains on it.

mpformer check your_dataset --task instance
mpformer check your_dataset --task semantic --splits train val --output pictures

Prints for each split the number of images and objects, their sizes, the classes, and what looks wrong with what to do
about it. `--output` draws the first images with their annotations. Training, `evaluate`, `prepare` and `audit` print
the same table of some images. Needs `pip install "mpformer-hf[data]"`.
"""

from ..data.arguments import CheckArguments, DataArguments
from ..utils.arguments import parse


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    data, args = parse([DataArguments, CheckArguments], argv, __doc__, "mpformer check", ignore_unknown=True)
    from ..evaluation.checking import check

    check(data, args)
