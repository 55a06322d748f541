"""A self-contained HTML page of an evaluation: scores by class, worst and best images, confusion, layer diagnostics."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import write_text
from .evaluator import EvaluationDetails
from .task_metrics import format_score

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 0.15em 0.7em; text-align: right; } td:first-child, th:first-child { text-align: left; }
tr:nth-child(even) td { background: #f6f6f6; }
.bar { display: inline-block; height: 0.7em; background: #3b7dd8; vertical-align: baseline; }
.numbers { display: flex; gap: 2em; flex-wrap: wrap; } .numbers b { display: block; font-size: 1.6em; }
.confusion { overflow-x: auto; } .confusion td { text-align: right; font-size: 0.8em; padding: 0.1em 0.35em; }
.confusion th.turned { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; font-weight: normal; }
figure { margin: 1em 0; } img { max-width: 100%; } figcaption { color: #555; }
"""
LARGEST_TABLE = 40  # classes of a confusion table; with more classes, the most frequent confusions are listed


def picture(image: Image.Image, caption: str) -> str:
    """An HTML figure with an embedded picture."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'


def class_table(scores: dict) -> str:
    """Scores by class, worst first, with bars of the first score."""
    columns = {
        name.removeprefix("per_class_"): values for name, values in scores.items() if name.startswith("per_class")
    }
    first = next(iter(columns.values()))
    rows = []
    for name in sorted(first, key=lambda name: (first[name] is None, first[name])):
        cells = "".join(f"<td>{format_score(values[name], 3)}</td>" for values in columns.values())
        bar = f'<span class="bar" style="width: {100 * (first[name] or 0):.0f}px"></span>'
        rows.append(f'<tr><td>{html.escape(name)}</td>{cells}<td style="text-align: left">{bar}</td></tr>')
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    return f"<table><tr><th>class</th>{head}<th></th></tr>{''.join(rows)}</table>"


def confusion_table(confusion: np.ndarray, names: list[str]) -> str:
    """Predicted classes of the pixels of each class, in percent of the class."""
    share = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    if len(names) > LARGEST_TABLE:
        errors = share - np.diag(np.diag(share))
        pairs = [divmod(int(i), len(names)) for i in np.argsort(errors, axis=None)[::-1][:30]]
        rows = "".join(
            f"<tr><td>{html.escape(names[t])}</td><td>{html.escape(names[p])}</td><td>{errors[t, p]:.1f}</td></tr>"
            for t, p in pairs
        )
        return f"<table><tr><th>class</th><th>predicted as</th><th>% of its pixels</th></tr>{rows}</table>"
    head = "".join(f'<th class="turned">{html.escape(name)}</th>' for name in names)
    rows = []
    for name, values in zip(names, share, strict=True):
        shades = (f' style="background: rgba(59, 125, 216, {value / 100:.2f})"' for value in values)
        texts = (f"{value:.0f}" if value >= 0.5 else "" for value in values)
        cells = "".join(f"<td{shade}>{text}</td>" for shade, text in zip(shades, texts, strict=True))
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return f'<div class="confusion"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def write_report(
    file: Path,
    title: str,
    scores: dict,
    details: EvaluationDetails,
    names: list[str],
    worst: list[tuple[Image.Image, str]],
    best: list[tuple[Image.Image, str]],
    diagnostics: Image.Image | None = None,
) -> None:
    """Write the page.

    Args:
        file: HTML file.
        title: heading of the page.
        scores: result of `evaluate_model`.
        details: scores of the images and confusion matrix.
        names: class names.
        worst, best: pictures of ground truth and prediction, with captions.
        diagnostics: plot of `plot_diagnostics`.
    """
    numbers = "".join(
        f"<div><b>{format_score(value, 3)}</b>{html.escape(name)}</div>"
        for name, value in scores.items()
        if (value is None or isinstance(value, float)) and name != "images_per_second"
    )
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{scores['images']} images, scored at their original size, {scores['images_per_second']:.2f} images/s.</p>",
        f'<div class="numbers">{numbers}</div>',
        "<h2>Classes</h2>",
        class_table(scores),
    ]
    if details.confusion is not None:
        text = "Rows: ground truth; columns: prediction; in percent of the row."
        parts.append(f"<h2>Confusion</h2><p>{text}</p>{confusion_table(details.confusion, names)}")
    for heading, pictures in (("Worst images", worst), ("Best images", best)):
        shown = "".join(picture(image, caption) for image, caption in pictures)
        parts.append(f"<h2>{heading}</h2><p>Left: ground truth. Right: prediction.</p>{shown}")
    if diagnostics is not None:
        text = "Mask consistency between consecutive layers, and targets that are matched to their final query."
        parts.append(f"<h2>Layers</h2>{picture(diagnostics, text)}")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    write_text(page, file)
