"""Fine-tune MP-Former on a dataset: build everything from the arguments, and train."""

import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    set_seed,
)
from torch.utils.data import DataLoader

from ..data.census import log_census
from ..data.joined import JoinedDataset
from ..data.opening import materialize_stream, open_dataset
from ..data.splits import check_splits, warn_of_common_images
from ..evaluation.evaluator import evaluation_loader
from ..evaluation.task_metrics import format_score
from ..hub.publishing import check_login, push
from ..utils.files import write_json
from .arguments import Arguments, parse_arguments
from .batches import SeededSampler, StreamSampler, TrainingDataset
from .building import build_model, build_processor, find_preprocessing
from .card import write_run_card
from .checkpoints import check_space, checkpoints, delete_old, find_checkpoint, read_state, step_of
from .engine import FineTuner, StepOutOfMemory, count_steps, images_per_step, run_epochs
from .extensions import load_object, replace_parts
from .run_folder import ARGUMENTS, RESULTS, check_arguments, check_unfinished, lock_run, prepare_folder, truncate_logs
from .transforms import choose_augmentation

logger = logging.getLogger(__name__)

LONGEST_WAIT = 600  # seconds for a batch of a worker; then it is not running any more


def check_trackers(names: str | None) -> None:
    """
    Raises:
        ValueError: a tracker is unknown, or its package is missing; accelerate would leave it out.
    """
    available = {str(name) for name in get_available_trackers()}
    for name in (names or "all").split(","):
        if name not in available | {"all"}:
            known = name in LOGGER_TYPE_TO_CLASS
            remedy = f"pip install {name}" if known else f"known are all, {', '.join(LOGGER_TYPE_TO_CLASS)}"
            raise ValueError(f"report_to: the tracker {name!r} is {'not installed' if known else 'unknown'}: {remedy}.")


def main(argv: list[str]) -> dict:
    """`finetune` with a command line."""
    return finetune(parse_arguments(argv))


def finetune(args: Arguments) -> dict:
    """Train, in this process or in each of those that accelerate started; returns all results.

    Raises:
        ValueError: an argument, the dataset or the output folder is invalid.
    """
    check_trackers(args.run.report_to)
    optimization, speed, run_args = args.optimization, args.speed, args.run
    accelerator = Accelerator(
        mixed_precision=speed.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=optimization.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        kwargs_handlers=[  # with views into buckets, gradients are not stored twice
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=speed.static_graph)
        ],
        log_with=run_args.report_to.split(",") if run_args.report_to else None,
        project_dir=run_args.output_dir,
    )
    torch.set_float32_matmul_precision("high" if speed.tf32 else "highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = speed.tf32, speed.cudnn_benchmark
    if speed.static_graph and accelerator.distributed_type in (DistributedType.NO, DistributedType.FSDP):
        raise ValueError("static_graph is for several processes (DDP).")
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING, format="%(message)s")
    if run_args.push_to_hub and accelerator.is_main_process:
        check_login()
    flags = {**args.as_dict(), "num_processes": accelerator.num_processes}
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.callback(lock_run(run_args.output_dir).release)
            prepare_folder(Path(run_args.output_dir), flags, run_args.resume_from_checkpoint)
        accelerator.wait_for_everyone()
        start, output = train_in_memory if speed.find_batch_size else train, Path(run_args.output_dir)
        try:
            return start(args, accelerator, flags, output)
        except KeyboardInterrupt:
            accelerator.print(describe_rest(output))
            raise


def describe_rest(output: Path) -> str:
    """What an interrupted run leaves, and how to go on."""
    kept = checkpoints(output)
    if not kept:
        return f"There is no checkpoint in {output}: --checkpointing_steps N saves them."
    return f"{kept[-1]} is kept: give the same command with --resume_from_checkpoint latest to go on."


def train_in_memory(args: Arguments, accelerator: Accelerator, flags: dict, output: Path) -> dict:
    """`train`, continued from the latest checkpoint, else started again, after a step ran out of memory: with fewer
    images per forward pass and more passes per step, so that the images of a step stay the same.

    Raises:
        ValueError: there are several processes, which would wait for the one that failed, or one image is too large.
    """
    if accelerator.num_processes > 1:
        raise ValueError("find_batch_size is for one process; give --per_device_train_batch_size.")
    images, size = images_per_step(args.optimization, 1), args.optimization.per_device_train_batch_size
    while size:
        try:
            return train(args, accelerator, flags, output)
        except StepOutOfMemory:
            size = max((n for n in range(1, size) if images % n == 0), default=0)
        if size:
            accelerator.print(f"Out of memory; now {size} images per forward pass, {images // size} passes per step")
            sizes: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": images // size}
            optimization, run_args = (
                replace(args.optimization, **sizes),
                replace(args.run, resume_from_checkpoint="latest"),
            )
            args = replace(args, optimization=optimization, run=run_args)
            accelerator.gradient_accumulation_steps = images // size
            accelerator.free_memory()  # of the models before
    raise ValueError("A forward and backward pass of one image does not fit into memory.")


def train(args: Arguments, accelerator: Accelerator, flags: dict, output: Path) -> dict:
    """Build everything and train, in a prepared output folder; returns all results.

    Args:
        args: all arguments.
        accelerator: of this process.
        flags: what is stored as `arguments.json`.
        output: the output folder.

    Raises:
        ValueError: an argument or the dataset is invalid, or the run is finished.
    """
    data, optimization, run_args = args.data, args.optimization, args.run
    checkpoint = find_checkpoint(output, run_args.resume_from_checkpoint)
    if checkpoint is not None:
        check_arguments(read_state(checkpoint)["arguments"], flags, checkpoint)
    check_splits(data)
    train_split = open_dataset(
        data, data.train_split, data.max_train_samples, None, data.drop_empty, data.train_samples_seed
    )
    eval_split = open_dataset(data, data.eval_split, data.max_eval_samples, train_split.labels)
    if data.streaming:
        eval_split = materialize_stream(eval_split)
    census = evaluated = None
    if not data.streaming:
        census = log_census(train_split, data.task, data.train_split)
        evaluated = log_census(eval_split, data.task, data.eval_split)
        if evaluated.incomplete:
            logger.warning(
                "%s: where labels are incomplete, unmatched predictions are no false positives: scores are too high, "
                "and no threshold is chosen: evaluate on complete labels if there are any.",
                data.eval_split,
            )
        warn_of_common_images(train_split, eval_split)
    set_seed(run_args.seed)
    model = build_model(args.model, args.pilot, train_split.labels)
    replace_parts(model, args.own)
    if census is not None and (crowding := census.crowding(model.config.num_queries)):
        logger.warning("%s", crowding)
    processor = build_processor(data, args.transforms, train_split.labels, find_preprocessing(args.model))
    if evaluated is not None:
        evaluated.check_shapes(processor, data.eval_split)
    length = None if data.streaming else len(train_split)
    kept = run_args.save_total_limit + 1 if run_args.checkpointing_steps else 0
    check_space(output, model.num_parameters(), kept)
    accelerator.print(f"{model.num_parameters():,} parameters, {length or 'streamed'} training images")
    set_seed(run_args.seed, device_specific=True)

    total = count_steps(optimization, length, accelerator.num_processes)
    check_unfinished(output, total)
    if args.transforms.augmentation == "auto":
        if length is None:
            raise ValueError("augmentation auto needs the number of training images, which a stream does not have.")
        epochs = run_epochs(optimization, length, accelerator.num_processes)
        args = replace(args, transforms=choose_augmentation(args.transforms, epochs, processor.size))
        accelerator.print(f"{epochs:.1f} epochs: augmentation {args.transforms.augmentation}")
    done = step_of(checkpoint) * images_per_step(optimization, accelerator.num_processes) if checkpoint else 0
    train_loader = training_loader(args, train_split, processor, accelerator, done)
    with_loss = run_args.eval_loss and accelerator.num_processes == 1  # the loss needs all processes in each batch
    size = run_args.per_device_eval_batch_size
    eval_loader = evaluation_loader(eval_split, processor, accelerator, size, with_loss)
    run = {"arguments": flags, "training_images": length, "classes": train_split.labels.names}
    finds_threshold = args.transforms.eval_threshold is None and not (evaluated and evaluated.incomplete)
    tuner = FineTuner(
        *(model, processor, args, accelerator, train_loader, eval_loader),
        *(output, total, checkpoint, run, finds_threshold),
    )
    if run_args.report_to and not accelerator.trackers:
        scalars = {name: value for name, value in flags.items() if isinstance(value, (int, float, str))}
        accelerator.init_trackers("mpformer", config=scalars)
    if accelerator.is_main_process:
        truncate_logs(output, tuner.step)  # after everything is loaded: a failed resume changes nothing
        delete_old(output, tuner.step, run_args.save_total_limit)
        write_json(flags, output / ARGUMENTS)
    results = tuner.train()
    if args.speed.find_batch_size:
        results["per_device_train_batch_size"] = args.optimization.per_device_train_batch_size
    skipped = train_split.skipped + eval_split.skipped
    if skipped:
        results |= {"skipped_images": skipped}
        accelerator.print(f"{len(skipped)} images were left out: {' '.join(skipped)}")
    if accelerator.is_main_process:
        write_run_card(output, results, flags, train_split.labels.names)
        write_json(results, output / RESULTS)  # last: with `steps` in it the run is finished
        accelerator.print(f"Best {tuner.metric} {format_score(results['best'][tuner.metric])}; results are in {output}")
        if run_args.push_to_hub:
            accelerator.print(push(output, run_args.hub_model_id or output.resolve().name))
    accelerator.end_training()
    return results


def training_loader(args: Arguments, split, processor, accelerator: Accelerator, done: int) -> DataLoader:
    """Endless batches of model inputs and row numbers, after `done` images of the run."""
    own = load_object(args.own.transform) if args.own.transform else None
    batches = TrainingDataset(split, args.transforms, processor, own)
    options = {
        "batch_size": args.optimization.per_device_train_batch_size,
        "collate_fn": batches.collate_with_rows,
        "num_workers": args.data.dataloader_num_workers,
        "persistent_workers": args.data.dataloader_num_workers > 0,
        "timeout": LONGEST_WAIT if args.data.dataloader_num_workers else 0,
        "pin_memory": accelerator.device.type == "cuda",  # copies from pinned memory do not wait
        "generator": torch.Generator().manual_seed(args.run.seed),  # the global one is for the model
    }
    sampler: StreamSampler | SeededSampler
    if args.data.streaming:
        sampler = StreamSampler(split.rows, args.run.seed, args.data.shuffle_buffer, done)
    else:
        weights = split.row_weights(args.data.join_weights) if isinstance(split, JoinedDataset) else None
        sampler = SeededSampler(len(split), args.run.seed, done, weights)
    return DataLoader(batches, sampler=sampler, **options)
