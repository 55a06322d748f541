"""Draw why the pilot helps: scores over the steps, masks from layer to layer, and the stability of the assignment.

python -m scripts.study.figure --runs training/results/study/nuclei_question_1.jsonl --pilot on_1e-3 --plain off_1e-3 \\
    --reasons training/results/study/why.json --pilot_reasons on --plain_reasons off --output_file why.png

`--runs` are results of `scripts.study` with `--diagnostics true`, `--reasons` those of
`scripts.study.reasons`. Lines are means over seeds, bands span all of them.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

from mpformer_hf.cli.main import run_command
from mpformer_hf.files import read_json

from .report import TITLES, metric_of, read_lines, score_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLORS = {"with the pilot": "#D55E00", "without": "#0072B2"}


def draw(panel: plt.Axes, curves: dict[str, np.ndarray], x: list[int]) -> None:
    """Mean and range of `[seeds, points]` for each name."""
    for name, values in curves.items():
        panel.plot(x, values.mean(0), marker="o", markersize=4, color=COLORS[name], label=name)
        panel.fill_between(x, values.min(0), values.max(0), alpha=0.2, color=COLORS[name])
    panel.grid(alpha=0.3)
    panel.set_ylim(0, None)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="JSON lines of scripts.study")
    parser.add_argument("--reasons", type=Path, required=True, help="JSON of scripts.study.reasons")
    for name in ("pilot", "plain"):
        parser.add_argument(f"--{name}", required=True, help=f"{name} arm of --runs")
        parser.add_argument(f"--{name}_reasons", required=True, help=f"{name} arm of --reasons")
    parser.add_argument("--output_file", type=Path, required=True, help="picture")
    args = parser.parse_args(argv)
    arms = dict(zip(COLORS, (args.pilot, args.plain), strict=True))
    lines = read_lines(args.runs)
    of = {name: [line["evaluations"] for line in lines if line["arm"] == arm] for name, arm in arms.items()}
    reasons = {
        name: [run["checkpoints"][1:] for run in read_json(args.reasons) if run["arm"] == arm]
        for name, arm in zip(COLORS, (args.pilot_reasons, args.plain_reasons), strict=True)
    }
    if not all([*of.values(), *reasons.values()]):
        raise ValueError("An arm has no runs.")
    first = next(iter(of.values()))[0]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), constrained_layout=True)
    scores = {name: np.array([[score_of(row) for row in run] for run in runs]) for name, runs in of.items()}
    draw(left, scores, [row["step"] for row in first])
    left.set(title="better masks sooner", xlabel="training steps", ylabel=f"{TITLES[metric_of(first[0])]} (validation)")
    masks = {name: np.array([run[-1]["mask_consistency"] for run in runs]) for name, runs in of.items()}
    draw(middle, masks, list(range(1, len(first[-1]["mask_consistency"]) + 1)))
    middle.set(
        title="masks agree from layer to layer", xlabel="decoder layer", ylabel="mean IoU with the previous layer"
    )
    middle.xaxis.get_major_locator().set_params(integer=True)
    same = {name: np.array([[row["same_query"] for row in run] for run in runs]) for name, runs in reasons.items()}
    steps = [row["step"] for row in next(iter(reasons.values()))[0]]
    draw(right, same, steps)
    right.set(
        title="objects keep their query", xlabel="training steps", ylabel=f"share, since {steps[1] - steps[0]} steps"
    )
    left.legend()
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output_file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)
