"""Draw what the pilot brings and why, from the results of the study.

python -m scripts.study.figure training/results/study training/results/study/why.png

Left: AP of nuclei over the steps; the line is the mean over seeds, the band spans all of them. Middle: the share of
objects whose matched query is already the final one, by decoder layer, for things and stuff of CamVid. Right: score
with the pilot minus score without, with 95 % intervals over seeds (Student's t).
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

from mpformer_hf.cli.main import run_command
from mpformer_hf.files import read_json

from .report import curves_of, paired_difference, read_lines, score_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLORS = {"with pilot": "#D55E00", "without": "#0072B2"}


def draw_scores(panel: plt.Axes, folder: Path) -> None:
    """AP of nuclei over the steps."""
    lines = read_lines(folder / "nuclei_question_1.jsonl")
    curves, steps = curves_of(lines, score_of), [row["step"] for row in lines[0]["evaluations"]]
    for name, arm in zip(COLORS, ("on_1e-3", "off_1e-3"), strict=True):
        panel.plot(steps, curves[arm].mean(0), marker="o", markersize=4, color=COLORS[name], label=name)
        panel.fill_between(steps, curves[arm].min(0), curves[arm].max(0), alpha=0.2, color=COLORS[name])
    panel.set(title="better masks of objects", xlabel="training steps", ylabel="AP, nuclei", ylim=(0, None))
    panel.legend()


def draw_utilisation(panel: plt.Axes, folder: Path) -> None:
    """Query utilisation of things and stuff by layer."""
    runs = read_json(folder / "question_2_utilisation.json")
    for kind, style in (("stuff", ":"), ("things", "-")):
        for name, arm in zip(COLORS, ("/on-", "/off-"), strict=True):
            values = np.mean([run[kind]["query_utilisation"] for path, run in runs.items() if arm in path], axis=0)
            panel.plot(values, style, marker="o", markersize=4, color=COLORS[name], label=f"{kind}, {name}")
    panel.set(title="the final query is matched earlier", xlabel="decoder layer", ylim=(0, 1.02))
    panel.set_ylabel("share at the final query, CamVid")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.legend(fontsize=8)


def gains(folder: Path) -> dict[str, tuple[float, float]]:
    """Mean difference and half the width of its interval, by data and score."""
    nuclei, panoptic, semantic = (
        read_lines(folder / f"{name}.jsonl")
        for name in ("nuclei_question_1", "question_2_panoptic", "question_2_semantic")
    )
    return {
        "AP, nuclei": paired_difference(nuclei, "on_1e-3", baseline="off_1e-3")[:2],
        "PQ of things, CamVid": paired_difference(panoptic, "on", lambda row: row["pq_things"])[:2],
        "PQ of stuff, CamVid": paired_difference(panoptic, "on", lambda row: row["pq_stuff"])[:2],
        "mIoU, CamVid": paired_difference(semantic, "on")[:2],
    }


def draw_gains(panel: plt.Axes, folder: Path) -> None:
    """Differences with their intervals."""
    values = gains(folder)
    for row, (mean, half) in enumerate(values.values()):
        panel.errorbar(100 * mean, -row, xerr=100 * half, fmt="o", color="black", capsize=4)
        panel.annotate(f"{100 * mean:+.1f}", (100 * mean, -row), (0, 7), textcoords="offset points", ha="center")
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks([-row for row in range(len(values))], list(values))
    panel.set(title="a gain for objects, none seen for stuff", xlabel="with pilot minus without, points")
    panel.set_ylim(-len(values) + 0.5, 0.7)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("output_file", type=Path, help="picture")
    args = parser.parse_args(argv)
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    for panel, draw in zip(panels, (draw_scores, draw_utilisation, draw_gains), strict=True):
        draw(panel, args.folder)
        panel.grid(alpha=0.3)
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output_file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)
