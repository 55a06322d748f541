"""`mpformer evaluate`: score a saved model on a split, and write what is asked for."""

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from ..data.arguments import DataArguments
from ..data.census import log_census
from ..data.dataset import SegmentationDataset
from ..data.labels import Labels, check_classes
from ..data.opening import materialize_stream, open_dataset
from ..data.writers.format import Category
from ..data.writers.registry import make_writers
from ..inference.exported import is_exported
from ..inference.loading import with_task
from ..inference.predictor import Predictor
from ..utils.files import write_json, write_new_folder
from .arguments import MOST_FREQUENT, EvaluationArguments, ScoredModel
from .details import EvaluationDetails
from .evaluator import diagnose_model, draw_rows, evaluate_model, evaluation_loader
from .plots import plot_diagnostics
from .report import write_report
from .task_metrics import format_score, most_frequent_class, number, score_constant


def evaluate(loading: ScoredModel, data: DataArguments, args: EvaluationArguments) -> dict:
    """Load and score; prints and returns the scores.

    Raises:
        ValueError: an argument, the model or the dataset is invalid.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    outputs = (args.output_file, args.pictures, args.diagnostics, args.report, args.predictions_dir)
    paths = [path for path in outputs if path]
    for path in paths:
        if Path(path).exists() or paths.count(path) > 1:
            raise ValueError(f"{path} exists or is given twice; choose another name.")
    if args.diagnostics and Path(args.diagnostics).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"diagnostics must be a file .png, .svg or .pdf, got {args.diagnostics}.")
    if args.diagnostics and is_exported(loading.model):
        raise ValueError(f"diagnostics need the layers of a saved model, and {loading.model} is an exported file.")
    if loading.model == MOST_FREQUENT and data.task is None:
        raise ValueError(f"{MOST_FREQUENT} has no task: give --task.")
    data = with_task(data, loading.model, loading.revision)
    accelerator = Accelerator(cpu=loading.device == "cpu", mixed_precision="no")
    accelerator.wait_for_everyone()  # all processes have checked the paths before one writes
    split = open_dataset(data, data.eval_split, data.max_eval_samples)
    if data.streaming:
        split = materialize_stream(split)
    log_census(split, data.task, data.eval_split)
    draw_report = None
    if loading.model == MOST_FREQUENT:
        train = open_dataset(data, data.train_split)
        label = most_frequent_class(train, stuff_only=data.task == "panoptic")
        scores = {"class": split.labels.names[label], **score_constant(data.task, split, label)}
    else:
        scores, draw_report = score_model(loading, data, args, split, accelerator)
    scores |= {"skipped_images": split.skipped} if split.skipped else {}
    if accelerator.is_main_process:
        if args.output_file:
            write_json(scores, Path(args.output_file))
        if draw_report is not None:
            draw_report()
        print(json.dumps(scores, indent=2))  # last: whoever reads it may be gone
    accelerator.end_training()  # ends the process group: a process that exits with one may abort
    return scores


@contextlib.contextmanager
def new_folder(path: str, accelerator: Accelerator) -> Iterator[Path | None]:
    """Context manager that yields the temporary folder of `write_new_folder` to all processes; None without a path."""
    if not path:
        yield None
    elif accelerator.is_main_process:
        with write_new_folder(Path(path)) as temporary:
            accelerator.wait_for_everyone()
            yield temporary
            accelerator.wait_for_everyone()
    else:
        accelerator.wait_for_everyone()
        yield Path(path).with_name(f".writing-{Path(path).name}")
        accelerator.wait_for_everyone()


def categories_of(labels: Labels) -> list[Category]:
    """Classes with the dataset's ids."""
    rows = zip(labels.category_ids, labels.names, strict=True)
    return [Category(category, name, label in labels.things) for label, (category, name) in enumerate(rows)]


def score_model(
    loading: ScoredModel,
    data: DataArguments,
    args: EvaluationArguments,
    split: SegmentationDataset,
    accelerator: Accelerator,
) -> tuple[dict, Callable[[], None] | None]:
    """Scores of a saved model, and what writes the report, if `args` ask for it; also writes the pictures and the plot.

    Raises:
        ValueError: its classes are not the dataset's.
    """
    if loading.device is None and not is_exported(loading.model):
        loading = replace(loading, device=str(accelerator.device))
    predictor = Predictor.from_arguments(loading)
    model, processor = predictor.model, predictor.processor
    processor.task = data.task
    processor.label_ids_to_fuse = split.labels.stuff if data.task == "panoptic" else []
    check_classes(model.config.id2label, split.labels.id2label)
    loader = evaluation_loader(split, processor, accelerator, args.batch_size)
    details = EvaluationDetails()
    with new_folder(args.pictures, accelerator) as pictures, new_folder(args.predictions_dir, accelerator) as folder:
        options = (data.task, categories_of(split.labels), processor.threshold)
        scores = evaluate_model(
            model,
            processor,
            loader,
            accelerator,
            pictures=pictures,
            num_pictures=args.num_pictures,
            max_detections=args.max_detections,
            details=details,
            all_scores=args.all_scores,
            writers=make_writers(args.save_predictions, folder, *options) if folder else [],
        )
    if "ap" in scores:
        scores["ap_rules"] = split.score
    name, draw_layers = Path(loading.model).name, None
    if (args.diagnostics or args.report) and not is_exported(loading.model):
        diagnostics = diagnose_model(model, processor, loader, accelerator)
        scores |= {"mask_consistency": diagnostics.mask_consistency, "query_utilisation": diagnostics.query_utilisation}
        draw_layers = partial(plot_diagnostics, {name: diagnostics})
        if args.diagnostics and accelerator.is_main_process:
            draw_layers(Path(args.diagnostics))
    if not args.report:
        return scores, None

    def draw_report() -> None:
        score_name = {"semantic": "mIoU", "panoptic": "PQ", "instance": "PQ of all instances"}[data.task]
        about = {
            row: f"{score_name} {format_score(score, 3)}, {number(count, 'segment')}"
            for score, row, count in details.image_scores
        }
        worst, best = (
            [
                (sides, f"{split.identity(row)[1]}: {about[row]}")
                for row, sides in zip(rows, draw_rows(model, processor, split, rows, accelerator), strict=True)
            ]
            for rows in details.extremes(args.num_pictures)
        )
        title = f"{name} on {Path(data.dataset_name).name}, {data.eval_split}"
        write_report(Path(args.report), title, data.task, scores, details, split.labels, worst, best, draw_layers)

    return scores, draw_report
