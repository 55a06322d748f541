"""Score a saved MP-Former (or Mask2Former) on a split, at the original image size.

python training/evaluate.py --model_name_or_path outputs/shapes --dataset_name data/shapes --eval_split test \\
    --task panoptic
python training/evaluate.py --dataset_name data/camvid --task semantic --eval_split test --most_frequent_class
python training/evaluate.py --model_name_or_path outputs/shapes --dataset_name data/shapes --report outputs/report.html

Prints the scores as JSON; `--output_file` keeps them.
"""

import io
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # as a script: find the package `training`, and the library `evaluate`, not the file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from accelerate import Accelerator
from PIL import Image
from transformers import AutoImageProcessor

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor
from training.arguments import DataArguments, option, parse
from training.checkpoints import write_json
from training.data import materialise, open_dataset
from training.evaluation import (
    diagnose_model,
    draw_rows,
    evaluate_model,
    evaluation_loader,
    most_frequent_class,
    score_constant,
)
from training.finetune import run
from training.plots import plot_diagnostics
from training.report import Details, write_report


@dataclass
class EvaluationArguments:
    """What is scored, and where the result goes."""

    _argument_group_name = "evaluation"

    model_name_or_path: str | None = option(None, "Saved model: folder or Hub name.")
    most_frequent_class: bool = option(False, "Score calling every pixel the training split's most frequent class.")
    per_device_eval_batch_size: int = option(1, "Images per process and forward pass.")
    mixed_precision: str | None = option(None, "no, bf16 or fp16; default: as accelerate is configured.")
    output_file: str | None = option(None, "New JSON file for the scores.")
    pictures: str | None = option(None, "New folder for overlays.")
    num_pictures: int = option(8, "Overlays to draw, if there is a folder for them.")
    diagnostics: str | None = option(None, "New picture (png, svg) of mask consistency and query utilisation by layer.")
    report: str | None = option(None, "New HTML page: scores by class, worst and best images, confusion, layers.")
    max_detections: int = option(100, "Instances of an image that count for AP.")


def main(argv: list[str] | None = None) -> dict:
    """Parse, load, score; returns the scores.

    Raises:
        ValueError: an argument, the model's task or the dataset cannot be used.
    """
    data_args, args = parse([DataArguments, EvaluationArguments], argv, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for path in (args.output_file, args.pictures, args.diagnostics, args.report):
        if path and Path(path).exists():
            raise ValueError(f"{path} exists; name another one.")
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    accelerator.wait_for_everyone()  # before anyone writes
    split = open_dataset(data_args, data_args.eval_split, data_args.max_eval_samples)
    if data_args.streaming:
        split = materialise(split)
    if args.most_frequent_class:
        train = open_dataset(data_args, data_args.train_split)
        label = most_frequent_class(train, stuff_only=data_args.task == "panoptic")
        scores = {"class": split.labels.names[label], **score_constant(data_args.task, split, label)}
    elif args.model_name_or_path:
        scores = score_model(data_args, args, split, accelerator)
    else:
        raise ValueError("Nothing to score: give --model_name_or_path or --most_frequent_class.")
    if not accelerator.is_main_process:
        return scores
    print(json.dumps(scores, indent=2))
    if args.output_file:
        write_json(scores, Path(args.output_file))
    return scores


def check_classes(of_model: dict[int, str], of_dataset: dict[int, str]) -> None:
    """
    Raises:
        ValueError: the model's classes are not the dataset's, or in another order; names that were never given
            (`LABEL_0`, ...) fit everything.
    """
    if len(of_model) != len(of_dataset):
        raise ValueError(f"The model has {len(of_model)} classes, the dataset has {len(of_dataset)}.")
    for index, name in of_model.items():
        if name not in (of_dataset[index], f"LABEL_{index}"):
            raise ValueError(f"Class {index} is {name!r} for the model and {of_dataset[index]!r} in the dataset.")


def score_model(data_args: DataArguments, args: EvaluationArguments, split, accelerator: Accelerator) -> dict:
    """Scores of a saved model.

    Raises:
        ValueError: its classes are not the dataset's.
    """
    model = MPFormerForUniversalSegmentation.from_pretrained(args.model_name_or_path).to(accelerator.device)
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    if not isinstance(processor, MPFormerImageProcessor):
        processor = MPFormerImageProcessor.from_pretrained(args.model_name_or_path)
    if processor.task != data_args.task:  # its own stuff otherwise: a split may lack a class
        processor.task = data_args.task
        processor.label_ids_to_fuse = split.labels.stuff if data_args.task == "panoptic" else []
    check_classes(model.config.id2label, split.labels.id2label)
    loader = evaluation_loader(split, processor, accelerator, args.per_device_eval_batch_size)
    pictures = Path(args.pictures) if args.pictures else None
    details, found = Details(), None
    scores = evaluate_model(
        model.eval(), processor, loader, accelerator, pictures, args.num_pictures, args.max_detections, details
    )
    if args.diagnostics or args.report:
        found = diagnose_model(model, processor, loader, accelerator)
        scores |= {"mask_consistency": found.mask_consistency, "query_utilisation": found.query_utilisation}
    name = Path(args.model_name_or_path).name
    if args.diagnostics and accelerator.is_main_process:
        plot_diagnostics({name: found}, Path(args.diagnostics))
    if args.report and accelerator.is_main_process:
        plot = io.BytesIO()
        plot_diagnostics({name: found}, plot)
        worst, best = (
            [(picture, f"image {row}") for picture, row in zip(pictures, rows, strict=True)]
            for rows in details.extremes(args.num_pictures // 2)
            for pictures in [draw_rows(model, processor, split, rows, accelerator)]
        )
        title = f"{name} on {Path(data_args.dataset_name).name}, {data_args.eval_split}"
        names = split.labels.names
        write_report(Path(args.report), title, scores, details, names, worst, best, Image.open(plot))
    return scores


if __name__ == "__main__":
    run(main)
