"""A self-contained HTML page of an evaluation: scores by class, objects that are found and missed, confusion, worst and
best images, layer diagnostics."""

import base64
import html
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.labels import Labels
from ..files import write_text
from ..visualization import class_color
from .details import EvaluationDetails
from .drawing import DrawnSides
from .object_matches import ObjectCounts
from .plots import plot_precision_recall, plot_thresholds, short_name
from .task_metrics import format_score, number

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1500px; margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; }
h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 0.15em 0.7em; text-align: right; } td:first-child, th:first-child { text-align: left; }
tr:nth-child(even) td { background: #f6f6f6; } tr.chosen td { background: #dcebdc; font-weight: 600; }
.bar { display: inline-block; height: 0.7em; background: #0072B2; vertical-align: baseline; }
.numbers { display: flex; gap: 0.6em 2em; flex-wrap: wrap; } .numbers b { display: block; font-size: 1.6em; }
.columns, .pictures { display: grid; gap: 1em 2em; align-items: start; }
.columns { grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); }
.plot { overflow-x: auto; } .plot img { min-width: 340px; }
.pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 540px), 1fr)); }
.wide { overflow-x: auto; } .confusion td { font-size: 0.8em; padding: 0.1em 0.35em; }
.confusion th.turned { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; font-weight: normal; }
figure { margin: 0; } figure.large { grid-column: 1 / -1; } img { width: 100%; } figcaption { color: #555; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; cursor: zoom-in; align-items: start; }
.large .sides { cursor: zoom-out; }
.classes { display: flex; flex-wrap: wrap; gap: 0.4em; position: sticky; top: 0; background: #fff; padding: 0.5em 0;
  z-index: 1; max-height: 7em; overflow-y: auto; }
.classes button { font: inherit; border: 1px solid #bbb; border-radius: 1em; background: #fff; padding: 0 0.7em; }
.classes button[aria-pressed="true"] { background: #222; color: #fff; }
.classes i { display: inline-block; width: 0.8em; height: 0.8em; border: 1px solid #555; margin-right: 0.4em; }
@media (max-width: 600px) {
  body { padding: 0 0.6em; } .large .sides { grid-template-columns: 1fr; }
  td, th { padding: 0.15em 0.35em; }
}
"""
SCRIPT = """
const pictures = document.querySelectorAll(".pictures figure");
const buttons = document.querySelectorAll(".classes button");
buttons.forEach(button => button.onclick = () => {
  const chosen = button.getAttribute("aria-pressed") === "true" ? "" : button.value;
  buttons.forEach(other => other.setAttribute("aria-pressed", other.value === chosen));
  pictures.forEach(figure => { figure.hidden = chosen && !figure.dataset.classes.split(" ").includes(chosen); });
});
document.querySelectorAll(".sides").forEach(sides => {
  sides.onclick = () => sides.parentElement.classList.toggle("large");
});
"""
LARGEST_SIDE = 1600  # of an embedded picture, in pixels
THRESHOLDS = [round(0.1 * i, 1) for i in range(1, 10)]
LARGEST_TABLE = 40  # classes of a confusion table; with more classes, the most frequent confusions are listed


def embedded(image: Image.Image, text: str) -> str:
    """An HTML image with the pixels in it."""
    buffer = io.BytesIO()
    image = image.convert("RGB")
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    image.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/jpeg;base64,{data}">'


def plot(draw: Callable[[io.BytesIO], None], caption: str) -> str:
    """An HTML figure of a plot; `draw` writes it as SVG."""
    buffer = io.BytesIO()
    draw(buffer)
    data, text = base64.b64encode(buffer.getvalue()).decode(), html.escape(caption)
    image = f'<img alt="{text}" src="data:image/svg+xml;base64,{data}">'
    return f'<figure class="plot">{image}<figcaption>{text}</figcaption></figure>'


def picture_figure(sides: DrawnSides, caption: str, *tags: str) -> str:
    """An HTML figure of two sides, which the buttons of its classes, and of other `tags`, show."""
    truth, prediction = (embedded(image, caption) for image in (sides.truth, sides.prediction))
    classes = " ".join([*map(str, sorted(sides.label_ids)), *tags])
    text = f"<figcaption>{html.escape(caption)}</figcaption>"
    return f'<figure data-classes="{classes}"><div class="sides">{truth}{prediction}</div>{text}</figure>'


def picture_section(
    worst: list[tuple[DrawnSides, str]], best: list[tuple[DrawnSides, str]], labels: Labels, task: str
) -> str:
    """The pictures, with a legend whose classes filter them."""
    if not worst + best:
        return ""
    shown = sorted({label for sides, _ in worst + best for label in sides.label_ids})
    buttons = "".join(
        f'<button type="button" value="{label}" aria-pressed="false"><i style="background: '
        f'rgb{class_color(label, labels.palette)}"></i>{html.escape(labels.names[label])}</button>'
        for label in shown
    )
    marks = "" if task == "semantic" else "Segments with a red contour are missed, false, or of another class. "
    text = (
        f"Left: ground truth. Right: prediction. {marks}Click a class to show only images that contain it, "
        "and an image to enlarge it."
    )
    parts = [f'<h2>Images</h2><p>{text}</p><div class="classes">{buttons}</div>']
    for heading, pictures in (("Worst", worst), ("Best, of those with at least the median number of segments", best)):
        figures = "".join(picture_figure(sides, caption) for sides, caption in pictures)
        if figures:
            parts.append(f'<h3>{heading}</h3><div class="pictures">{figures}</div>')
    return "".join(parts)


def threshold_table(counts: ObjectCounts, chosen: float) -> str:
    """Precision, recall and F1 by score threshold, and a sentence that recommends one."""
    best = counts.best_threshold()
    if best is None:
        return "<p>No object is found at an IoU of 0.5: no threshold can be recommended.</p>"
    rows = []
    for threshold in sorted({*THRESHOLDS, chosen, best[0]}):
        cells = "".join(f"<td>{value:.3f}</td>" for value in counts.at_threshold(threshold))
        style = ' class="chosen"' if threshold == best[0] else ""
        rows.append(f"<tr{style}><td>{threshold:g}</td>{cells}</tr>")
    head = "<tr><th>threshold</th><th>precision</th><th>recall</th><th>F1</th></tr>"
    _, _, f1 = counts.at_threshold(chosen)
    text = (
        f"Recommended score threshold: {best[0]:g}, with the largest F1, {best[1]:.3f}; the image processor's "
        f"<code>threshold</code> is {chosen:g}, with {f1:.3f}. For few false objects take a higher one, for few "
        "missed ones a lower one."
    )
    return f"<p>{text}</p><table>{head}{''.join(rows)}</table>"


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


def confusion_table(confusion: np.ndarray, rows: list[str], columns: list[str], unit: str) -> str:
    """Counts `[rows, columns]` in percent of the row; the most frequent mistakes if there are many classes."""
    share = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    if len(rows) > LARGEST_TABLE:
        errors = confusion * ~np.eye(*confusion.shape, dtype=bool)
        pairs = [divmod(int(i), len(columns)) for i in np.argsort(-errors, axis=None, kind="stable")[:30]]
        lines = "".join(
            f"<tr><td>{html.escape(rows[t])}</td><td>{html.escape(columns[p])}</td><td>{errors[t, p]}</td>"
            f"<td>{share[t, p]:.1f}</td></tr>"
            for t, p in pairs
            if errors[t, p]
        )
        head = f"<tr><th>class</th><th>predicted as</th><th>{unit}</th><th>% of the class</th></tr>"
        return f'<div class="wide"><table>{head}{lines}</table></div>'
    rows, columns = ([short_name(name) for name in names] for names in (rows, columns))
    head = "".join(f'<th class="turned">{html.escape(name)}</th>' for name in columns)
    lines = []
    for name, values in zip(rows, share, strict=True):
        shades = (f' style="background: rgba(0, 114, 178, {0.7 * value / 100:.2f})"' for value in values)
        texts = (f"{value:.0f}" if value >= 0.5 else "" for value in values)
        cells = "".join(f"<td{shade}>{text}</td>" for shade, text in zip(shades, texts, strict=True))
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return f'<div class="wide confusion"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def object_section(counts: ObjectCounts, labels: Labels, task: str) -> str:
    """Precision and recall of things, and which are taken for another class."""
    curves = plot(partial(plot_precision_recall, counts, labels), number(int(counts.objects.sum()), "object"))
    occurs = np.flatnonzero(counts.confusion[:-1].sum(1) + counts.confusion[:, :-1].sum(0))
    kept = [*occurs.tolist(), len(labels.names)]
    rows = [*(labels.names[label] for label in occurs), "(no object)"]
    table = confusion_table(counts.confusion[np.ix_(kept, kept)], rows, [*rows[:-1], "(missed)"], "objects")
    text = (
        f"Rows: objects; columns: predictions of a score of at least {counts.threshold:.2f}, at an IoU of 0.5; in "
        "percent of the row. Last row: the classes of predictions without an object."
    )
    parts = [curves, f"<div><p>{text}</p>{table}</div>"]
    if task == "instance":  # the scores of panoptic segments are not those of instances
        parts.insert(1, plot(partial(plot_thresholds, counts), "All classes together."))
        parts.append(f"<div>{threshold_table(counts, counts.threshold)}</div>")
    return f'<h2>Objects</h2><div class="columns">{"".join(parts)}</div>'


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
    numbers = "".join(
        f"<div><b>{format_score(value, 3)}</b>{html.escape(name)}</div>"
        for name, value in scores.items()
        if (value is None or isinstance(value, float)) and name != "images_per_second"
    )
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{number(scores['images'], 'image')}, scored at the original size, "
        f"{scores['images_per_second']:.2f} images/s.</p>",
        f'<div class="numbers">{numbers}</div>',
        f'<h2>Classes</h2><div class="wide">{class_table(scores)}</div>',
    ]
    if details.objects is not None:
        parts.append(object_section(details.objects, labels, task))
    if details.confusion is not None:
        text = "Rows: ground truth; columns: prediction; in percent of the row."
        table = confusion_table(details.confusion, labels.names, labels.names, "pixels")
        parts.append(f"<h2>Confusion of pixels</h2><p>{text}</p>{table}")
    parts.append(picture_section(worst, best, labels, task))
    if diagnostics is not None:
        text = "Mask consistency between consecutive layers, and targets that are matched to their final query."
        parts.append(f'<h2>Layers</h2><div class="columns">{plot(diagnostics, text)}</div>')
    write_page(file, title, parts)


def write_page(file: Path, title: str, parts: list[str]) -> None:
    """Write an HTML page with the style and the buttons of reports."""
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<body>{''.join(parts)}<script>{SCRIPT}</script></body></html>\n"
    )
    write_text(page, file)
