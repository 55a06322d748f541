"""Fine-tune MP-Former on a dataset of the Hub, or train it from scratch.

accelerate launch training/finetune.py --config training/recipes/shapes_panoptic.yaml --output_dir outputs/shapes
accelerate launch training/finetune.py --config training/recipes/camvid_semantic.yaml --dataset_name path/to/camvid \
    --output_dir outputs/camvid
accelerate launch training/finetune.py --model_name_or_path facebook/mask2former-swin-tiny-coco-panoptic \
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

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from torch.utils.data import DataLoader

from training.arguments import RECIPE_CLASSES, parse
from training.batches import SeededOrder, TrainingBatches
from training.building import build_model, build_processor
from training.card import write_card
from training.data import open_dataset
from training.engine import Trainer, prepare_output, write_json
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
    )
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING, format="%(message)s")
    if accelerator.is_main_process:
        output = prepare_output(run_args.output_dir)
    output = Path(run_args.output_dir or ".")
    train_split = open_dataset(data_args, data_args.train_split, data_args.max_train_samples)
    eval_split = open_dataset(data_args, data_args.eval_split, data_args.max_eval_samples)
    set_seed(run_args.seed)
    model = build_model(model_args, pilot_args, train_split.labels)
    processor = build_processor(data_args, transform_args, train_split.labels)
    accelerator.print(f"{model.num_parameters():,} parameters, {len(train_split)} training images")
    set_seed(run_args.seed, device_specific=True)

    arguments = {name: value for group in groups for name, value in asdict(group).items()}
    batches = TrainingBatches(train_split, transform_args, processor)
    loader = DataLoader(
        batches,
        optimization_args.per_device_train_batch_size,
        sampler=SeededOrder(len(train_split), run_args.seed),
        collate_fn=batches.collate,
        num_workers=data_args.dataloader_num_workers,
    )
    eval_loader = evaluation_loader(eval_split, processor, accelerator, run_args.per_device_eval_batch_size)
    trainer = Trainer(model, processor, optimization_args, run_args, accelerator, loader, eval_loader, output)
    if accelerator.is_main_process:
        write_json(arguments, output / "arguments.json")
    results = trainer.train()
    if accelerator.is_main_process:
        write_card(output, results, arguments, train_split.labels.names)
        accelerator.print(f"Best {trainer.metric} {results['best'][trainer.metric]:.4f}; everything is in {output}")
    accelerator.end_training()
    return results


def run(entry) -> None:
    """Call an entry point; what the user can mend ends in one sentence and exit code 1."""
    try:
        entry()
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run(main)
