"""Score a saved MP-Former or Mask2Former on a split, at the original image size.

mpformer evaluate --model_name_or_path outputs/shapes --dataset_name data/shapes --eval_split test --task panoptic
mpformer evaluate --dataset_name data/camvid --task semantic --eval_split test --most_frequent_class
mpformer evaluate --model_name_or_path outputs/shapes --dataset_name data/shapes --report outputs/report.html

Prints the scores as JSON; `--output_file` saves them. Needs `pip install "mpformer-hf[data]"`.
"""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from ..data.arguments import DataArguments
from ..data.dataset import SegmentationDataset, materialize_stream, open_dataset
from ..data.labels import Labels, check_classes
from ..data.splits import check_label_maps
from ..data.writers.format import Category
from ..data.writers.registry import FORMATS, check_formats
from ..evaluation.details import EvaluationDetails
from ..evaluation.evaluator import diagnose_model, draw_rows, evaluate_model, evaluation_loader
from ..evaluation.plots import plot_diagnostics
from ..evaluation.report import write_report
from ..evaluation.task_metrics import format_score, most_frequent_class, number, score_constant
from ..inference.loading import load_model, load_processor
from ..utils.arguments import CheckedArguments, option, parse
from ..utils.files import write_json


@dataclass
class EvaluationArguments(CheckedArguments):
    """What is scored, and where results are written."""

    _argument_group_name = "evaluation"

    model_name_or_path: str = option("", "Saved model: folder or Hub name.")
    most_frequent_class: bool = option(False, "Score a constant prediction: the training split's most frequent class.")
    per_device_eval_batch_size: int = option(1, "Images per process and forward pass.", within="[1, inf)")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = option(None, "Default: as accelerate is configured.")
    output_file: str = option("", "New JSON file for the scores.")
    pictures: str = option("", "New folder for overlays.")
    num_pictures: int = option(8, "Number of overlays.", within="[0, inf)")
    diagnostics: str = option("", "New picture (png, svg) of mask consistency and query utilisation by layer.")
    report: str = option("", "New HTML page: scores by class, missed and false objects, worst and best images, ...")
    max_detections: int = option(100, "Best-scored instances of an image that are counted for AP.", within="[1, inf)")
    all_scores: bool = option(
        True, "Also score boundaries of instances and segments, and in panoptic segmentation the AP of things."
    )
    save_predictions: list[str] = option([], f"Formats to write the predictions in: {', '.join(FORMATS)}.")
    predictions_dir: str = option("", "save_predictions: new folder.")

    def __post_init__(self):
        super().__post_init__()
        if bool(self.save_predictions) != bool(self.predictions_dir):
            raise ValueError("save_predictions and predictions_dir must be given together.")
        check_formats(self.save_predictions)


def main(argv: list[str] | None = None) -> dict:
    """Parse, load and score; returns the scores.

    Raises:
        ValueError: an argument, the model or the dataset is invalid.
    """
    data, args = parse(
        [DataArguments, EvaluationArguments],
        argv,
        description=__doc__,
        prog="mpformer evaluate",
        ignore_unknown=True,  # recipes have the trainer's flags too
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    outputs = (args.output_file, args.pictures, args.diagnostics, args.report, args.predictions_dir)
    paths = [path for path in outputs if path]
    for path in paths:
        if Path(path).exists() or paths.count(path) > 1:
            raise ValueError(f"{path} exists or is given twice; choose another name.")
    if args.diagnostics and Path(args.diagnostics).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"diagnostics must be a file .png, .svg or .pdf, got {args.diagnostics}.")
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    accelerator.wait_for_everyone()  # all processes have checked the paths before one writes
    split = open_dataset(data, data.eval_split, data.max_eval_samples)
    if data.streaming:
        split = materialize_stream(split)
    check_label_maps(split)
    draw_report = None
    if args.most_frequent_class:
        train = open_dataset(data, data.train_split)
        label = most_frequent_class(train, stuff_only=data.task == "panoptic")
        scores = {"class": split.labels.names[label], **score_constant(data.task, split, label)}
    elif args.model_name_or_path:
        scores, draw_report = score_model(data, args, split, accelerator)
    else:
        raise ValueError("Nothing to score: give --model_name_or_path or --most_frequent_class.")
    scores |= {"skipped_images": split.skipped} if split.skipped else {}
    if accelerator.is_main_process:
        if args.output_file:
            write_json(scores, Path(args.output_file))
        if draw_report is not None:
            draw_report()
        print(json.dumps(scores, indent=2))  # last: whoever reads it may be gone
    accelerator.end_training()  # ends the process group: a process that exits with one may abort
    return scores


def categories_of(labels: Labels) -> list[Category]:
    """Classes with the dataset's ids."""
    rows = zip(labels.category_ids, labels.names, strict=True)
    return [Category(category, name, label in labels.things) for label, (category, name) in enumerate(rows)]


def score_model(
    data: DataArguments, args: EvaluationArguments, split: SegmentationDataset, accelerator: Accelerator
) -> tuple[dict, Callable[[], None] | None]:
    """Scores of a saved model, and what writes the report, if `args` ask for it; also writes the pictures and the plot.

    Raises:
        ValueError: its classes are not the dataset's.
    """
    model = load_model(args.model_name_or_path).to(accelerator.device)
    processor = load_processor(args.model_name_or_path)
    processor.task = data.task
    processor.label_ids_to_fuse = split.labels.stuff if data.task == "panoptic" else []
    check_classes(model.config.id2label, split.labels.id2label)
    loader = evaluation_loader(split, processor, accelerator, args.per_device_eval_batch_size)
    details = EvaluationDetails()
    scores = evaluate_model(
        model,
        processor,
        loader,
        accelerator,
        pictures=Path(args.pictures) if args.pictures else None,
        num_pictures=args.num_pictures,
        max_detections=args.max_detections,
        details=details,
        all_scores=args.all_scores,
        writers=[
            FORMATS[name](Path(args.predictions_dir), data.task, categories_of(split.labels), processor.threshold)
            for name in args.save_predictions
        ],
    )
    if "ap" in scores:
        scores["ap_rules"] = split.score
    if not (args.diagnostics or args.report):
        return scores, None
    diagnostics = diagnose_model(model, processor, loader, accelerator)
    scores |= {"mask_consistency": diagnostics.mask_consistency, "query_utilisation": diagnostics.query_utilisation}
    name = Path(args.model_name_or_path).name
    if args.diagnostics and accelerator.is_main_process:
        plot_diagnostics({name: diagnostics}, Path(args.diagnostics))
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
        draw = partial(plot_diagnostics, {name: diagnostics})
        write_report(Path(args.report), title, data.task, scores, details, split.labels, worst, best, draw)

    return scores, draw_report
