"""Fine-tune MP-Former with Accelerate, on one page: to read, and to copy where `mpformer train` does not fit.

accelerate launch -m training.finetune your_dataset --config own_dataset --task instance --output_dir outputs/yours

`mpformer train` has the same parts, and also resumes, logs, keeps a model card, and stops early.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from mpformer_hf.data.arguments import TrainingDataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation.evaluator import evaluate_model, evaluation_loader
from mpformer_hf.evaluation.task_metrics import format_score, metric_names
from mpformer_hf.training.arguments import ModelArguments, OptimizationArguments, PilotArguments, TransformArguments
from mpformer_hf.training.batches import SeededSampler, TrainingDataset
from mpformer_hf.training.building import build_model, build_processor, find_preprocessing
from mpformer_hf.training.checkpoints import save_model
from mpformer_hf.training.engine import count_steps, run_epochs
from mpformer_hf.training.optimization import build_optimizer, build_scheduler
from mpformer_hf.training.packing import Unpacker
from mpformer_hf.training.transforms import choose_augmentation
from mpformer_hf.utils.arguments import CheckedArguments, option, parse
from mpformer_hf.utils.command import run_command
from mpformer_hf.utils.files import check_new_folder


@dataclass
class ScriptArguments(CheckedArguments):
    """What the script itself needs."""

    output_dir: Path = option(help="New folder for the weights.")
    eval_steps: int = option(500, "Steps between evaluations.", within="[1, inf)")
    mixed_precision: str = option("no", "no, bf16 or fp16.")
    seed: int = option(0, "Seed of initial weights, data order and augmentation.", within="[0, 4294967295]")


def main(argv: list[str]) -> None:
    """Train and evaluate; save the last weights."""
    classes = [ModelArguments, PilotArguments, TrainingDataArguments, TransformArguments, OptimizationArguments]
    model_args, pilot, data, transforms, optimization, args = parse(
        [*classes, ScriptArguments], argv, __doc__, "training.finetune", ignore_unknown=True
    )
    output = check_new_folder(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision, gradient_accumulation_steps=optimization.gradient_accumulation_steps
    )
    set_seed(args.seed)

    # data: images with segments, whatever the layout; the classes of the evaluation split must be the same
    train_split = open_dataset(data, data.train_split, data.max_train_samples, drop_empty=data.drop_empty)
    eval_split = open_dataset(data, data.eval_split, data.max_eval_samples, train_split.labels)

    # model: a checkpoint with a new head for these classes, and its image processor
    model = build_model(model_args, pilot, train_split.labels)
    processor = build_processor(data, transforms, train_split.labels, find_preprocessing(model_args))

    # batches: augmented images and maps of segment ids as uint8 and int32, which become masks on the device
    if transforms.augmentation == "auto":
        epochs = run_epochs(optimization, len(train_split), accelerator.num_processes)
        transforms = choose_augmentation(transforms, epochs, processor.size)
    batches = TrainingDataset(train_split, transforms, processor)
    loader = DataLoader(
        batches,
        batch_size=optimization.per_device_train_batch_size,
        sampler=SeededSampler(len(train_split), args.seed),  # endless
        collate_fn=batches.collate_with_rows,
        num_workers=data.dataloader_num_workers,
    )
    unpack = Unpacker(processor, accelerator.device)
    eval_loader = evaluation_loader(eval_split, processor, accelerator)

    total = count_steps(optimization, len(train_split), accelerator.num_processes)
    optimizer = build_optimizer(model, optimization, accelerator.device)
    scheduler = build_scheduler(optimizer, optimization, total)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    iterator = iter(loader)
    for step in range(1, total + 1):
        model.train()
        for _ in range(optimization.gradient_accumulation_steps):
            batch, rows = next(iterator)
            if isinstance(batch, ValueError):  # a row that cannot be read
                raise batch
            with accelerator.accumulate(model):
                outputs = model(**unpack(batch))  # the pilot is part of the model: it is on in training mode
                if not torch.isfinite(outputs.loss):
                    raise FloatingPointError(f"The loss is {outputs.loss.item()} in step {step}, rows {rows}.")
                accelerator.backward(outputs.loss)
                if accelerator.sync_gradients and optimization.max_grad_norm:
                    accelerator.clip_grad_norm_(model.parameters(), optimization.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
        if step % args.eval_steps == 0 or step == total:
            plain = accelerator.unwrap_model(model)
            scores = evaluate_model(plain, processor, eval_loader, accelerator)
            shown = [f"{name} {format_score(scores[name])}" for name in metric_names(data.task, eval_split.score)[:3]]
            accelerator.print(f"step {step}: loss {outputs.loss.item():.3f}, {', '.join(shown)}")
            if accelerator.is_main_process:
                save_model(plain, processor, output)
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
