"""Plot loss and score of training runs over their steps.

mpformer plot outputs/a outputs/b --output curves.png
mpformer plot outputs/a --metric ap50

Needs `pip install "mpformer-hf[data]"`.
"""

from dataclasses import dataclass
from pathlib import Path

from ..utils.arguments import CheckedArguments, argument, option, parse


@dataclass
class PlotArguments(CheckedArguments):
    """Which runs are plotted."""

    _argument_group_name = "plot"

    runs: list[str] = argument("runs", "output folders of `mpformer train`")
    output: Path = option(Path("curves.png"), "New picture, .png, .svg or .pdf.")
    metric: str | None = option(None, "Score; default: that which selects the best weights.")


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    (args,) = parse([PlotArguments], argv, __doc__, "mpformer plot")
    if args.output.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{args.output} must end in .png, .svg or .pdf.")
    if args.output.exists():
        raise ValueError(f"{args.output} exists; choose another name.")
    from ..evaluation.plots import plot_runs
    from ..training.run import Run

    runs = [Run.open(name) for name in args.runs]
    scores = runs[0].evaluations[-1]
    metric = args.metric or next((name for name in ("pq", "ap", "mean_iou") if name in scores), "")
    if any(metric not in row for run in runs for row in run.evaluations):
        known = sorted(name for name, value in scores.items() if isinstance(value, float))
        raise ValueError(f"The evaluations of the runs have no score {metric!r}; the first one has {', '.join(known)}.")
    plot_runs({run.folder.name: (run.log, run.evaluations) for run in runs}, metric, args.output)
    print(f"picture: {args.output}")
