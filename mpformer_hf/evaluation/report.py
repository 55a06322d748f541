"""The page of an evaluation: scores by class, objects that are found and missed, confusion, worst and best images,
layer diagnostics."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..data.labels import Labels
from .details import EvaluationDetails
from .drawing import DrawnSides
from .object_matches import ObjectCounts
from .pages import class_buttons, embedded_plot, picture_of, write_page
from .plots import plot_precision_recall, plot_thresholds, short_name
from .task_metrics import format_score, number

THRESHOLDS = [round(0.1 * i, 1) for i in range(1, 10)]
LARGEST_TABLE = 40  # classes of a confusion table; with more classes, the most frequent confusions are listed


def class_table(scores: dict) -> dict:
    """Scores by class, worst first, with bars of the first score in pixels."""
    columns = {
        name.removeprefix("per_class_"): values for name, values in scores.items() if name.startswith("per_class")
    }
    first = next(iter(columns.values()))
    names = sorted(first, key=lambda name: (first[name] is None, first[name]))
    return {
        "columns": list(columns),
        "rows": [
            (name, [format_score(values[name], 3) for values in columns.values()], round(100 * (first[name] or 0)))
            for name in names
        ],
    }


def confusion_table(confusion: np.ndarray, rows: list[str], columns: list[str], unit: str) -> dict:
    """Counts `[rows, columns]` in percent of the row; the most frequent mistakes if there are many classes."""
    share = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    if len(rows) <= LARGEST_TABLE:
        short = [[short_name(name) for name in names] for names in (rows, columns)]
        return {"columns": short[1], "rows": list(zip(short[0], share.tolist(), strict=True))}
    errors = confusion * (1 - np.eye(*confusion.shape, dtype=np.int64))
    most = [divmod(int(i), len(columns)) for i in np.argsort(-errors, axis=None, kind="stable")[:30]]
    pairs = [
        {"truth": rows[t], "prediction": columns[p], "count": int(errors[t, p]), "share": share[t, p]}
        for t, p in most
        if errors[t, p]
    ]
    return {"pairs": pairs, "unit": unit}


def object_section(counts: ObjectCounts, labels: Labels, task: str) -> dict:
    """Precision and recall of things, which are taken for another class, and for instances a recommended threshold."""
    occurs = np.flatnonzero(counts.confusion[:-1].sum(1) + counts.confusion[:, :-1].sum(0))
    kept = [*occurs.tolist(), len(labels.names)]
    rows = [*(labels.names[label] for label in occurs), "(no object)"]
    section = {
        "curves": embedded_plot(partial(plot_precision_recall, counts, labels)),
        "count": number(int(counts.objects.sum()), "object"),
        "threshold": counts.threshold,
        "confusion": confusion_table(counts.confusion[np.ix_(kept, kept)], rows, [*rows[:-1], "(missed)"], "objects"),
    }
    if task != "instance":  # the scores of panoptic segments are not those of instances
        return section
    best = counts.best_threshold()
    shown = sorted({*THRESHOLDS, counts.threshold, *([best[0]] if best else ())})
    return section | {
        "threshold_curves": embedded_plot(partial(plot_thresholds, counts)),
        "best": best and {"threshold": f"{best[0]:g}", "f1": f"{best[1]:.3f}"},
        "chosen": {"threshold": f"{counts.threshold:g}", "f1": f"{counts.at_threshold(counts.threshold)[2]:.3f}"},
        "thresholds": [(f"{x:g}", [f"{value:.3f}" for value in counts.at_threshold(x)]) for x in shown],
    }


def write_report(
    file: Path,
    title: str,
    task: str,
    scores: dict,
    details: EvaluationDetails,
    labels: Labels,
    worst: list[tuple[DrawnSides, str]],
    best: list[tuple[DrawnSides, str]],
    diagnostics: Callable[[io.BytesIO], None] | None = None,
) -> None:
    """Write the page.

    Args:
        file: HTML file.
        title: heading of the page.
        task: semantic, instance or panoptic.
        scores: result of `evaluate_model`.
        details: scores of the images, confusion matrix and objects.
        labels: classes of the dataset.
        worst, best: pictures of ground truth and prediction, with captions.
        diagnostics: writes the plot of `plot_diagnostics` to a stream.
    """
    write_page(
        file,
        "report.html",
        title=title,
        task=task,
        images=number(scores["images"], "image"),
        speed=scores["images_per_second"],
        numbers=[
            (name, format_score(value, 3))
            for name, value in scores.items()
            if (value is None or isinstance(value, float)) and name != "images_per_second"
        ],
        classes=class_table(scores),
        objects=details.objects and object_section(details.objects, labels, task),
        pixels=None
        if details.confusion is None
        else confusion_table(details.confusion, labels.names, labels.names, "pixels"),
        shown=class_buttons({label for sides, _ in worst + best for label in sides.label_ids}, labels),
        worst=[picture_of(*entry) for entry in worst],
        best=[picture_of(*entry) for entry in best],
        layers=diagnostics and embedded_plot(diagnostics),
    )
