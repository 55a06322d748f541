"""Fine-tune MP-Former on a dataset of the Hub, or train it from scratch.

accelerate launch training/finetune.py --config training/recipes/shapes_panoptic.yaml --output_dir outputs/shapes
accelerate launch training/finetune.py --config training/recipes/camvid_semantic.yaml --dataset_name path/to/camvid \\
    --output_dir outputs/camvid
accelerate launch training/finetune.py --model_name_or_path facebook/mask2former-swin-tiny-coco-panoptic \\
    --dataset_name you/your-dataset --task panoptic --output_dir outputs/yours

The output folder gets model.safetensors, config.json and preprocessor_config.json (best weights), last/ (last weights),
log.jsonl (every step), evaluations.jsonl, all_results.json, pictures/ (ground truth and prediction) and README.md (the
model card).
"""

import logging
import sys
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # as a script: find the package `training`, and the library `evaluate`, not the file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from torch.utils.data import DataLoader

from mpformer_hf.publishing import push
from training.arguments import RECIPE_CLASSES, parse
from training.batches import SeededOrder, StreamedBatches, TrainingBatches
from training.building import build_model, build_processor
from training.card import write_card
from training.checkpoints import find_checkpoint, forget_after, prepare_output, step_of, write_json
from training.data import materialise, open_dataset
from training.engine import Trainer, count_steps, images_per_step
from training.evaluation import evaluation_loader


def main(argv: list[str] | None = None) -> dict:
    """Parse, build, train; returns all results.

    Raises:
        ValueError: an argument, the dataset or the output folder cannot be used; the message says which and why.
    """
    groups = parse(RECIPE_CLASSES, argv, description=__doc__)
    model_args, pilot_args, data_args, transform_args, optimization_args, run_args = groups
    accelerator = Accelerator(
        mixed_precision=optimization_args.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=optimization_args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=run_args.report_to.split(",") if run_args.report_to else None,
        project_dir=run_args.output_dir,
    )
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING, format="%(message)s")
    if accelerator.is_main_process:
        prepare_output(run_args.output_dir, run_args.resume_from_checkpoint)
    accelerator.wait_for_everyone()
    output = Path(run_args.output_dir or ".")
    checkpoint = find_checkpoint(output, run_args.resume_from_checkpoint)
    if accelerator.is_main_process and run_args.resume_from_checkpoint:
        forget_after(output, step_of(checkpoint) if checkpoint else 0)
    train_split = open_dataset(
        data_args, data_args.train_split, data_args.max_train_samples, drop_empty=data_args.drop_empty
    )
    eval_split = open_dataset(data_args, data_args.eval_split, data_args.max_eval_samples, train_split.labels)
    if data_args.streaming:
        eval_split = materialise(eval_split)
    set_seed(run_args.seed)
    model = build_model(model_args, pilot_args, train_split.labels)
    processor = build_processor(data_args, transform_args, train_split.labels)
    length = None if data_args.streaming else len(train_split)
    images = "streamed" if length is None else length
    accelerator.print(f"{model.num_parameters():,} parameters, {images} training images")
    set_seed(run_args.seed, device_specific=True)

    total = count_steps(optimization_args, length, accelerator.num_processes)
    done = step_of(checkpoint) * images_per_step(optimization_args, accelerator.num_processes) if checkpoint else 0
    loader = training_loader(groups, train_split, processor, accelerator, done)
    eval_loader = evaluation_loader(eval_split, processor, accelerator, run_args.per_device_eval_batch_size)
    loaders = (loader, eval_loader)
    trainer = Trainer(model, processor, optimization_args, run_args, accelerator, *loaders, output, total, checkpoint)
    arguments = {name: value for group in groups for name, value in asdict(group).items()}
    if run_args.report_to:
        plain = {name: value for name, value in arguments.items() if isinstance(value, (int, float, str))}
        accelerator.init_trackers("mpformer", config=plain)
    if accelerator.is_main_process:
        write_json(arguments, output / "arguments.json")
    results = trainer.train()
    if accelerator.is_main_process:
        write_card(output, results, arguments, train_split.labels.names)
        accelerator.print(f"Best {trainer.metric} {results['best'][trainer.metric]:.4f}; everything is in {output}")
        if run_args.push_to_hub:
            accelerator.print(push(output, run_args.hub_model_id or output.resolve().name))
    accelerator.end_training()
    return results


def training_loader(groups: tuple, split, processor, accelerator: Accelerator, done: int) -> DataLoader:
    """Endless batches of model inputs and row numbers, after `done` images of the run.

    Raises:
        ValueError: a stream cannot go on in the middle.
    """
    _, _, data_args, transform_args, optimization_args, run_args = groups
    batches = TrainingBatches(split, transform_args, processor)
    options = {
        "batch_size": optimization_args.per_device_train_batch_size,
        "collate_fn": batches.collate_with_rows,
        "num_workers": data_args.dataloader_num_workers,
        "generator": torch.Generator().manual_seed(run_args.seed),  # the global one belongs to the model
    }
    if not data_args.streaming:
        return DataLoader(batches, sampler=SeededOrder(len(split), run_args.seed, done), **options)
    if done:
        raise ValueError("resume_from_checkpoint: a stream cannot go on in the middle; train without --streaming.")
    place = (accelerator.process_index, accelerator.num_processes)
    return DataLoader(StreamedBatches(batches, run_args.seed, data_args.shuffle_buffer, *place), **options)


def run(entry) -> None:
    """Call an entry point; what the user can mend ends in one sentence and exit code 1."""
    try:
        entry()
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run(main)
