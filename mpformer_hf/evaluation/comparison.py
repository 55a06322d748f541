"""`mpformer compare`: models, runs and exported files side by side on the same images."""

import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data.arguments import ModelDataArguments
from ..data.dataset import SegmentationDataset
from ..data.labels import Labels, check_classes
from ..data.opening import materialize_stream, open_dataset
from ..data.segments import Segments
from ..inference.drawing import draw_segmentation
from ..inference.exported import ExportedModel, is_exported, runtimes_of
from ..inference.loading import load_processor, with_task
from ..inference.predictor import Predictor
from ..inference.result import Result
from ..inference.sources import SourceImage, list_images
from ..model.image_sizes import size_of
from ..utils.files import write_json
from ..utils.progress import progress
from .arguments import ComparedModels
from .drawing import drawn_reference
from .evaluator import results_of
from .pages import embedded, embedded_plot, write_page
from .plots import plot_runs
from .task_metrics import TaskMetrics, format_score

Example = tuple[str, Tensor, Segments | None]  # name, image and, if it has labels, ground truth
SCORES = {"semantic": "mean_iou", "instance": "ap", "panoptic": "pq"}


@dataclass
class Compared:
    """A model, and what was measured.

    Attributes:
        name: shown in the table.
        predictor: of the model.
        metrics: of labelled images.
        largest: largest absolute difference of a logit from the first model's; None: their logits have other shapes.
        equal: share of the pixels of each image that have the class of the first model.
        seconds: of each image, from pixels to segments.
    """

    name: str
    predictor: Predictor
    metrics: TaskMetrics | None = None
    largest: float | None = 0.0
    equal: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Seen:
    """What a model made of one image."""

    logits: tuple[Tensor, Tensor]
    predictions: dict
    label_map: Tensor
    seconds: float


def open_models(args: ComparedModels, task: str) -> list[Compared]:
    """All models; an exported file once for each runtime that is installed.

    Raises:
        ValueError: one cannot be loaded, or has other classes than the first one.
    """
    found = []
    for name in args.models:
        if is_exported(name):
            for runtime in runtimes_of(name):
                predictor = Predictor(ExportedModel(name, runtime), load_processor(name), task)
                found.append(Compared(f"{Path(name).name} ({runtime.name})", predictor))
        else:
            predictor = Predictor.from_pretrained(name, task, device=args.device)
            found.append(Compared(Path(name).name if Path(name).is_dir() else name, predictor))
    names = found[0].predictor.model.config.id2label
    for one in found:
        check_classes(one.predictor.model.config.id2label, names)
        one.predictor.processor.task = one.predictor.task
    return found


def predict(one: Compared, image: Tensor) -> Seen:
    """Results of a model for one image, see `results_of`."""
    predictor, start = one.predictor, time.perf_counter()
    with torch.no_grad():
        outputs = predictor.forward_scaled([image], 1.0)
        things = one.metrics is not None and "instance" in one.metrics.metrics
        (predictions,) = results_of(outputs, [size_of(image)], predictor.processor, things=things)
    seconds = time.perf_counter() - start
    logits = (outputs.class_queries_logits.float().cpu(), outputs.masks_queries_logits.float().cpu())
    drawn = Result(image, predictor.task, predictions["drawn"], predictor.model.config.id2label)
    return Seen(logits, predictions, drawn.label_map, seconds)


def largest_difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float | None:
    """Largest absolute difference of logits; None if their shapes differ."""
    if any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return None
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def add_image(models: list[Compared], image: Tensor, segments: Segments | None) -> float:
    """Compare the models on one image; returns the mean share of pixels that differ from the first model's."""
    seen = [predict(one, image) for one in models]
    for one, own in zip(models, seen, strict=True):
        one.seconds.append(own.seconds)
        one.equal.append((own.label_map == seen[0].label_map).float().mean().item())
        difference = largest_difference(own.logits, seen[0].logits)
        one.largest = None if one.largest is None or difference is None else max(one.largest, difference)
        if segments is not None and one.metrics is not None:
            one.metrics.add(own.predictions, segments)
    return 1 - statistics.mean(one.equal[-1] for one in models[1:])


def table_of(models: list[Compared], task: str) -> list[dict]:
    """One row a model: name, score (None without labels), `largest_logit_difference` (None if the logits have other
    shapes), `equal_pixels` in [0, 1], and `time`, the median over images of the ratio to the first model."""
    return [
        {
            "model": one.name,
            "score": one.metrics.compute()[SCORES[task]] if one.metrics else None,
            "largest_logit_difference": one.largest,
            "equal_pixels": statistics.mean(one.equal),
            "time": statistics.median(a / b for a, b in zip(one.seconds, models[0].seconds, strict=True)),
        }
        for one in models
    ]


def as_text(rows: list[dict], task: str) -> list[list[str]]:
    """The table with its head, as texts."""
    head = ["model", SCORES[task], "largest logit difference", "equal pixels", "time / first"]
    return [head] + [
        [
            row["model"],
            format_score(row["score"]),
            "-" if row["largest_logit_difference"] is None else f"{row['largest_logit_difference']:.1e}",
            f"{row['equal_pixels']:.3%}",
            f"{row['time']:.2f}",
        ]
        for row in rows
    ]


def pictures_of(models: list[Compared], example: Example, labels: Labels | None) -> dict:
    """An image with its truth, if it has labels, and with the result of each model."""
    name, image, segments = example
    task, id2label = models[0].predictor.task, models[0].predictor.model.config.id2label
    photo, sides = Image.fromarray(image.permute(1, 2, 0).numpy()), []
    if segments is not None and labels is not None:
        truth = drawn_reference(segments, task, labels.things)
        sides.append(("truth", draw_segmentation(photo, truth, id2label, legend=False)))
    for one in models:
        drawn = predict(one, image).predictions["drawn"]
        sides.append((one.name, draw_segmentation(photo, drawn, id2label, legend=False)))
    return {"caption": name, "sides": [(title, embedded(picture)) for title, picture in sides]}


def read_photo(photo: SourceImage) -> Example:
    """A photo without labels.

    Raises:
        ValueError: it cannot be read; the message names it.
    """
    try:
        return photo.name, photo.read(), None
    except ValueError as error:
        raise ValueError(f"{photo.file_name}: {error}; remove it from the folder.") from error


def read_row(split: SegmentationDataset, row: int) -> Example:
    """A row of a split."""
    return split.identity(row)[1], *split[row]


def compare(data: ModelDataArguments, args: ComparedModels, runs: dict[str, tuple[list, list]]) -> list[dict]:
    """Compare models on images; prints and returns the table.

    Args:
        data: a split, or with `no_labels` photos.
        args: what is compared.
        runs: lines of the log and of the evaluations of the models that are runs, for the page.

    Raises:
        ValueError: an argument, a model or the dataset is invalid.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if len(args.models) < 2 and not is_exported(args.models[0]):
        raise ValueError(f"There is only {args.models[0]}: give at least two models.")
    for path in (args.page, args.output_file):
        if path and Path(path).exists():
            raise ValueError(f"{path} exists; choose another name.")
    labels, known = None, with_task(data, args.models[0])
    task: str = known.task or ""  # that of the first model
    examples: list[Callable[[], Example]]
    if args.no_labels:
        photos = list(list_images(data.dataset_name, None, 1))[: data.max_eval_samples]
        examples = [partial(read_photo, photo) for photo in photos]
    else:
        split = open_dataset(known, known.eval_split, known.max_eval_samples)
        split = materialize_stream(split) if data.streaming else split
        labels = split.labels
        examples = [partial(read_row, split, row) for row in range(len(split))]
    models = open_models(args, task)
    if len(models) < 2:
        raise ValueError(f"There is one runtime for {args.models[0]}: give at least two models.")
    if labels is not None:
        check_classes(models[0].predictor.model.config.id2label, labels.id2label)
        for one in models:
            one.predictor.processor.label_ids_to_fuse = labels.stuff if task == "panoptic" else []
            one.metrics = TaskMetrics(task, labels, score=split.score)
    differences = []
    for index, read in enumerate(progress(examples, desc="compare", unit="image", leave=False)):
        _, image, segments = read()
        differences.append((add_image(models, image, segments), index))
    rows = table_of(models, task)
    if args.output_file:
        write_json(rows, Path(args.output_file))
    if args.page:
        most = [index for _, index in sorted(differences, key=lambda row: -row[0])[: args.num_pictures]]
        write_page(
            Path(args.page),
            "compare.html",
            title=f"{len(models)} models on {Path(data.dataset_name).name}",
            table=as_text(rows, task),
            curves=embedded_plot(partial(plot_runs, runs, SCORES[task])) if runs else None,
            images=[
                {**pictures_of(models, examples[index](), labels), "share": f"{differences[index][0]:.2%}"}
                for index in most
            ],
        )
    texts = as_text(rows, task)
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    for row in texts:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return rows
