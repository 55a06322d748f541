"""Plots of layer-wise diagnostics, of precision and recall, and of training runs."""

from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ..data.labels import Labels
from ..inference.drawing import class_color
from .diagnostics import LayerDiagnostics
from .object_matches import ObjectCounts

MOST_CURVES = 7  # classes that are drawn
LONGEST_NAME = 30  # characters
HALF = (5.0, 3.4)  # size of half a figure in inches


def plot_diagnostics(diagnostics: dict[str, LayerDiagnostics], file: Path | BinaryIO) -> None:
    """Plot mask consistency (left) and query utilisation (right) over layers, one line per name; PNG or SVG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for name, values in diagnostics.items():
        consistency, utilisation = values.mask_consistency, values.query_utilisation
        left.plot(range(1, len(consistency) + 1), consistency, marker="o", label=legend_text(name))
        right.plot(range(len(utilisation)), utilisation, marker="o", label=legend_text(name))
    left.set(
        title="mask consistency", xlabel="decoder layer", ylabel="mean IoU with the previous layer", ylim=(0, 1.02)
    )
    right.set(title="query utilisation", xlabel="decoder layer", ylabel="share of targets at their final query")
    right.set_ylim(0, 1.02)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    save(figure, file)


def plot_precision_recall(counts: ObjectCounts, labels: Labels, file: Path | BinaryIO) -> None:
    """Plot precision over recall, of all objects and of the classes with most objects."""
    figure, axes = plt.subplots(figsize=HALF, constrained_layout=True)
    _, precision, recall = counts.curve()
    axes.plot(recall, precision, color="black", linewidth=2, label="all")
    most = [int(label) for label in np.argsort(-counts.objects, kind="stable")[:MOST_CURVES] if counts.objects[label]]
    for label in most if len(most) > 1 else []:
        _, precision, recall = counts.curve(label)
        color = np.array(class_color(label, labels.palette)) / 255
        axes.plot(recall, precision, color=color, linewidth=1.5, label=legend_text(labels.names[label]))
    axes.set(title="precision and recall, IoU 0.5", xlabel="recall", ylabel="precision")
    finish(axes)
    save(figure, file)


def plot_runs(runs: dict[str, tuple[list[dict], list[dict]]], metric: str, file: Path) -> None:
    """Plot the training loss (left) and a score (right) over steps, a line for each run; PNG, SVG or PDF.

    Args:
        runs: lines of the log and of the evaluations, by name of the run.
        metric: of the evaluations.
        file: to write.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for name, (log, evaluations) in runs.items():
        (line,) = left.plot(*columns(log, "loss"), linewidth=1.2, label=legend_text(name))
        if any("loss" in row for row in evaluations):
            left.plot(*columns(evaluations, "loss"), "--", marker=".", color=line.get_color())
        right.plot(*columns(evaluations, metric), marker="o", color=line.get_color(), label=legend_text(name))
    left.set(title="loss (dashed: evaluation)", xlabel="step")
    right.set(title=metric, xlabel="step")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, file)


def columns(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have a value of this name."""
    known = [row for row in rows if row.get(name) is not None]
    return [row["step"] for row in known], [row[name] for row in known]


def short_name(name: str) -> str:
    """The first characters of a long class name."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def legend_text(name: str) -> str:
    """A class name as matplotlib shows it: dollars are no formulas, and an underscore at the start does not hide it."""
    return f" {short_name(name)}".replace("$", r"\$")


def plot_thresholds(counts: ObjectCounts, file: Path | BinaryIO) -> None:
    """Plot precision, recall and F1 of all objects over the score threshold."""
    figure, axes = plt.subplots(figsize=HALF, constrained_layout=True)
    thresholds, precision, recall = counts.curve()
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    for values, name, style in ((precision, "precision", "--"), (recall, "recall", ":"), (f1, "F1", "-")):
        axes.plot(thresholds, values, style, color="black", label=name)
    if best := counts.best_threshold():
        axes.axvline(best[0], color="#D55E00", linewidth=1, label=f"best F1: {best[0]:.2f}")
    axes.set(title="score threshold, IoU 0.5", xlabel="score threshold")
    finish(axes)
    save(figure, file)


def finish(axes: plt.Axes) -> None:
    """Grid, limits and legend of a plot of values in [0, 1]."""
    axes.grid(alpha=0.3)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(fontsize=8)


def save(figure: plt.Figure, file: Path | BinaryIO) -> None:
    """Write a figure and close it; SVG if the file is a stream."""
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, **({} if isinstance(file, Path) else {"format": "svg"}))
    plt.close(figure)
