"""The training loop. Accelerate handles devices, precision, accumulation, processes, checkpoints and trackers."""

import copy
import itertools
import json
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from ..evaluation.details import EvaluationDetails
from ..evaluation.evaluator import diagnose_model, evaluate_model
from ..evaluation.task_metrics import format_score, metric_names
from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.modeling_mpformer import MPFormerForUniversalSegmentation
from ..utils.compiling import compile_model
from ..utils.files import read_json, write_json
from ..utils.progress import progress
from .arguments import Arguments, OptimizationArguments
from .checkpoints import load_checkpoint, save_checkpoint, save_model
from .extensions import load_object
from .lora import add_adapters
from .memory import peak_memory
from .moving_average import MovingAverage
from .optimization import build_optimizer, build_scheduler
from .packing import Unpacker
from .plateau import PlateauCheck
from .run_folder import EVALUATIONS, LOG, RESULTS
from .sharding import broadcast_buffers, gather_parameters, prepare_sharding
from .step_log import StepLog
from .waiting import WaitingCheck

MAIN_SCORES = ("pq", "ap", "ap50", "mean_iou", "loss", "threshold")  # that are printed after an evaluation


def images_per_step(args: OptimizationArguments, processes: int) -> int:
    """Images of one optimizer step, over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * processes


def count_steps(args: OptimizationArguments, images: int | None, processes: int) -> int:
    """Optimizer steps of the run, for a training split of `images` images (None: unknown, a stream).

    Raises:
        ValueError: their number is unknown.
    """
    if args.max_train_steps is not None:
        return args.max_train_steps
    if images is None:
        raise ValueError("streaming: the length of the dataset is unknown, so give --max_train_steps.")
    return math.ceil(args.num_train_epochs * images / images_per_step(args, processes))


def run_epochs(args: OptimizationArguments, images: int, processes: int) -> float:
    """Passes over a training split of `images` images."""
    return count_steps(args, images, processes) * images_per_step(args, processes) / images


def batch_norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    """All batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def freeze(model: MPFormerForUniversalSegmentation, args: OptimizationArguments) -> None:
    """Freeze parameters, or add adapters to frozen ones. Called before DDP and the optimizer collect the trainable
    parameters."""
    if args.freeze_backbone:
        model.model.pixel_level_module.encoder.requires_grad_(False)
    if args.lora_rank:
        add_adapters(model.model.pixel_level_module, args.lora_rank)
    if args.freeze_batch_norm:
        for module in batch_norms(model):
            module.requires_grad_(False)


class StepOutOfMemory(Exception):
    """A training step needs more memory than the device has."""


class FineTuner:
    """A training run.

    Args:
        model, processor: the model to train and its image processor.
        args: all flags of the run.
        accelerator: prepares model, optimizer and data.
        train_loader: endless packed batches and row numbers.
        eval_loader: see `evaluation_loader`.
        output: the output folder.
        total: number of optimizer steps.
        checkpoint: checkpoint to resume from; the loader starts at its step.
        run: `arguments` and number of `training_images`, which are stored in checkpoints.
        finds_threshold: whether the processor gets the threshold with the best F1 in the best evaluation.
    """

    def __init__(
        self,
        model: MPFormerForUniversalSegmentation,
        processor: MPFormerImageProcessor,
        args: Arguments,
        accelerator: Accelerator,
        train_loader: DataLoader,
        eval_loader: Any,
        output: Path,
        total: int,
        checkpoint: Path | None,
        run: dict,
        finds_threshold: bool,
    ):
        optimization, run_args = args.optimization, args.run
        self.own, self.run = args.own, run
        self.finds_threshold = finds_threshold and processor.task == "instance"
        self.processor, self.optimization, self.run_args = processor, optimization, run_args
        self.accelerator, self.eval_loader, self.output, self.total = accelerator, eval_loader, output, total
        metrics = metric_names(processor.task, eval_loader.dataset.dataset.score)
        self.metric = run_args.metric_for_best or metrics[0]
        if self.metric not in metrics and not args.own.metrics:
            raise ValueError(f"metric_for_best must be one of {', '.join(metrics)}, got {self.metric!r}.")
        freeze(model, optimization)
        model.model.pixel_level_module.decoder.encoder.recompute = args.speed.recompute_encoder
        if args.speed.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        # With FSDP, evaluation and saving use an unsharded copy of the model.
        self.unsharded = copy.deepcopy(model).to(accelerator.device) if prepare_sharding(accelerator) else None
        compile_model(model.model, args.speed.torch_compile)
        self.ema = None
        if optimization.ema_decay is not None:
            self.ema = MovingAverage(model, optimization.ema_decay, accelerator.device)
        optimizer = build_optimizer(model, optimization, accelerator.device)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.loader = accelerator.prepare(train_loader)
        self.scheduler = build_scheduler(self.optimizer.optimizer, optimization, total)
        self.step, self.evaluations_since_best = 0, 0
        self.best: float | None = None
        self.results: dict = {}
        self.spent = {"train_seconds": 0.0, "eval_seconds": 0.0}
        self.plateau, self.unpack = PlateauCheck(), Unpacker(processor, accelerator.device)
        self.waiting, self.waited = WaitingCheck(train_loader.num_workers), 0.0
        if checkpoint is not None:
            self.resume(checkpoint)

    def state(self) -> dict:
        """State of the run in a checkpoint, besides that of model, optimizer and random numbers."""
        names = ("step", "best", "evaluations_since_best", "results", "spent")
        return {**self.run, **{name: getattr(self, name) for name in names}}

    def resume(self, checkpoint: Path) -> None:
        """Load a checkpoint. The schedule has no state of its own: its steps are repeated. If the best weights in the
        output folder are not those of the checkpoint's best score, the next score is the best.

        Raises:
            ValueError: it cannot be loaded, or the dataset has another number of images or other classes.
        """
        state = load_checkpoint(self.accelerator, checkpoint, self.ema)
        self.accelerator.step = 0  # passes of a step: their number may have changed
        del state["arguments"]
        images = state.pop("training_images")
        if images != self.run["training_images"]:
            raise ValueError(f"{checkpoint}: the run had {images} training images, now {self.run['training_images']}.")
        classes = state.pop("classes", self.run["classes"])  # older checkpoints have none
        if classes != self.run["classes"]:
            pairs = itertools.zip_longest(classes, self.run["classes"])
            old, new = next((a, b) for a, b in pairs if a != b)
            raise ValueError(
                f"{checkpoint}: the run had the class {old}, where the dataset has {new}: start a new run."
            )
        for name, value in state.items():
            setattr(self, name, value)
        stored = read_json(self.output / RESULTS) if (self.output / RESULTS).is_file() else {}
        best = self.results.get("best", {}).get("step")
        if best is not None and stored.get("best", {}).get("step") != best:
            self.accelerator.print(f"The weights of the best score (step {best}) are not in {self.output}.")
            del self.results["best"]
            self.best = None
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        self.scheduler = build_scheduler(self.optimizer.optimizer, self.optimization, self.total)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the optimizer has not stepped in this process
            for _ in range(self.step):
                self.scheduler.step()

    def train(self) -> dict:
        """Train to the end.

        Returns:
            `last` and `best` (scores), perhaps `before_training`, `steps`, `train_seconds` and `eval_seconds`.

        Raises:
            FloatingPointError: the loss is not finite.
            StepOutOfMemory: the device has not enough memory for a step.
        """
        if self.run_args.eval_on_start and self.step == 0:
            self.results["before_training"] = self.evaluate()
        batches = iter(self.loader)
        log = StepLog(self.output / LOG, self.run_args.logging_steps, self.accelerator)
        bar = progress(
            total=self.total, initial=self.step, desc="train", disable=not self.accelerator.is_local_main_process
        )
        self.set_training_mode()
        while self.step < self.total:
            start = time.perf_counter()
            self.step += 1
            try:
                losses, images, norm = self.optimize(batches)
            except torch.OutOfMemoryError as error:
                raise StepOutOfMemory(f"Step {self.step}: {error}") from error
            seconds = time.perf_counter() - start
            self.spent["train_seconds"] += seconds
            speed = images * self.accelerator.num_processes / seconds
            bar.update()
            bar.set_postfix(loss=f"{losses['loss']:.2f}", images_s=f"{speed:.2f}")
            for warning in (self.plateau.update(losses), self.waiting.update(self.waited, seconds)):
                if warning:
                    self.accelerator.print(f"step {self.step}: {warning}")
            peak = peak_memory(self.accelerator.device)
            figures: dict[str, float | None] = {"grad_norm": norm, "lr": float(max(self.scheduler.get_last_lr()))}
            figures |= {"seconds": seconds, "data_seconds": self.waited, "images_per_second": speed}
            figures["peak_memory_mib"] = None if peak is None else round(peak)
            line = log.add(self.step, losses, figures, last=self.step == self.total)
            if line is not None:
                self.accelerator.log({k: v for k, v in line.items() if v is not None}, step=self.step)
            self.scheduler.step()
            if self.step == self.total or is_due(self.step, self.run_args.eval_steps):
                self.save_and_evaluate()
            if is_due(self.step, self.run_args.checkpointing_steps):
                if self.unsharded is not None:
                    broadcast_buffers(self.model)
                limit = self.run_args.save_total_limit
                save_checkpoint(self.accelerator, self.output, self.step, self.state(), self.ema, limit)
            patience = self.run_args.early_stopping_patience
            if patience and self.evaluations_since_best >= patience:
                self.accelerator.print(f"Early stopping at step {self.step}: {self.metric} has not improved.")
                break
        bar.close()
        if "best" not in self.results or self.results["last"]["step"] != self.step:  # resumed at the last step
            self.save_and_evaluate()
        results = {**self.results, "steps": self.step, **{name: round(x, 1) for name, x in self.spent.items()}}
        log.close()
        return results

    def save_and_evaluate(self) -> None:
        """Save the last weights, evaluate them, and keep them if they are the best."""
        start = time.perf_counter()
        self.save(self.output / "last")  # before the evaluation, which may fail
        self.results["last"] = self.evaluate()
        self.keep_best()
        self.set_training_mode()
        self.spent["eval_seconds"] += time.perf_counter() - start

    def set_training_mode(self) -> None:
        """Set the model to training mode, and frozen modules to evaluation mode."""
        self.model.train()
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=True)
        backbone = model.model.pixel_level_module.encoder
        if self.optimization.freeze_backbone:
            backbone.eval()
        frozen = model if self.optimization.freeze_batch_norm else backbone
        if self.optimization.freeze_batch_norm or self.optimization.lora_rank:
            for module in batch_norms(frozen):
                module.eval()

    def optimize(self, batches: Iterator[tuple[dict, list[int]]]) -> tuple[dict[str, float], int, float]:
        """One optimizer step. Returns the mean losses of this process, its number of images, and the gradient norm
        before clipping.

        Raises:
            FloatingPointError: the loss is not finite.
            ValueError: a row of the training split is invalid.
        """
        accumulation = self.optimization.gradient_accumulation_steps
        sums: dict[str, torch.Tensor] = {}
        used, losses, self.waited = [], {}, 0.0
        for _ in range(accumulation):
            start = time.perf_counter()
            inputs, rows = next(batches)
            self.waited += time.perf_counter() - start
            if isinstance(inputs, ValueError):  # an invalid row
                raise inputs
            inputs = self.unpack(send_to_device(inputs, self.accelerator.device, non_blocking=True))
            used += rows
            with self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():
                    output = self.model(**inputs)
                for name, loss in (("loss", output.loss), *output.loss_dict.items()):
                    sums[name] = sums.get(name, 0) + loss.detach().float() / accumulation
                self.accelerator.backward(output.loss)
                if self.accelerator.sync_gradients:
                    limit = self.optimization.max_grad_norm or math.inf
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
                    losses = self.read_losses({**sums, "grad_norm": norm}, used)  # before the weights change
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.unwrapped_model(), first=self.step == 1)
        norm = losses.pop("grad_norm")
        return losses, len(used), norm

    def read_losses(self, values: dict[str, torch.Tensor], rows: list[int]) -> dict[str, float]:
        """Values of scalars on the device, in one transfer: the only time in a step, besides matching, that the host
        waits for the device.

        Raises:
            FloatingPointError: the loss, or without a gradient scaler the gradient norm, is not finite.
        """
        whole = (x.full_tensor() if isinstance(x, DTensor) else x for x in values.values())  # the norm, with FSDP
        stacked = torch.stack([x.float().reshape(()) for x in whole])
        losses = dict(zip(values, stacked.tolist(), strict=True))
        checked = {"loss": "loss"} | ({} if self.accelerator.scaler else {"grad_norm": "gradient norm"})
        for key, name in checked.items():  # a scaler leaves out steps whose gradients are not finite
            if not math.isfinite(losses[key]):
                where = f"step {self.step}, training rows {', '.join(map(str, rows))}"
                raise FloatingPointError(f"The {name} is {losses[key]} in {where}.")
        return losses

    def unwrapped_model(self) -> MPFormerForUniversalSegmentation:
        """The model without wrappers; with FSDP, an unsharded copy of its current state."""
        model = self.accelerator.unwrap_model(self.model)
        if self.unsharded is None:
            return model
        gather_parameters(model, self.unsharded)
        return self.unsharded

    def evaluated_model(self) -> Any:
        """The model that is evaluated and saved: the moving average, if there is one."""
        return self.unwrapped_model() if self.ema is None else self.ema.module

    def evaluate(self) -> dict:
        """Scores of the current model; a line of `evaluations.jsonl`. Overlays are written to the output folder."""
        pictures, model = self.output / "pictures", self.evaluated_model()
        folder = pictures if self.step and self.accelerator.is_main_process else None
        common = (model, self.processor, self.eval_loader, self.accelerator)
        with torch.random.fork_rng(devices=[]):  # training does not depend on when it is evaluated
            details = EvaluationDetails() if self.finds_threshold else None
            counts = (self.run_args.num_pictures, self.run_args.max_detections)
            own = [load_object(name)() for name in self.own.metrics]
            scores = evaluate_model(*common, folder, *counts, details=details, own_metrics=own)
            if details is not None and details.objects is not None and (best := details.objects.best_threshold()):
                scores["threshold"] = best[0]
            if self.run_args.diagnostics:
                layers = diagnose_model(*common)
                scores |= {"mask_consistency": layers.mask_consistency, "query_utilisation": layers.query_utilisation}
        results = {"step": self.step, **scores}
        self.accelerator.log({f"eval_{k}": v for k, v in scores.items() if isinstance(v, float)}, step=self.step)
        if self.accelerator.is_main_process:
            with (self.output / EVALUATIONS).open("a") as file:
                file.write(json.dumps(results) + "\n")
            self.log_pictures(pictures)
        main_scores = (f"{name} {format_score(scores[name])}" for name in MAIN_SCORES if name in scores)
        self.accelerator.print(f"step {self.step}: {', '.join(main_scores)}")
        return results

    def log_pictures(self, folder: Path) -> None:
        """Log the overlays to the trackers that accept images."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                for file in sorted(folder.glob("*.png")):
                    picture = np.asarray(Image.open(file))[None]
                    tracker.log_images({f"samples/{file.stem}": picture}, step=self.step, **layout)

    def save(self, folder: Path) -> None:
        """Save the current weights and the processor."""
        model = self.evaluated_model()
        if self.accelerator.is_main_process:
            save_model(model, self.processor, folder)
        self.accelerator.wait_for_everyone()

    def keep_best(self) -> None:
        """Save the weights in the output folder if their score is the best so far; write the results. A score that is
        not defined is below all others. Of weights whose score is 0, the last ones are the best."""
        self.evaluations_since_best += 1
        score = self.results["last"][self.metric]
        better = score is not None and (self.best is None or score > self.best or score == self.best == 0)
        if "best" not in self.results or better:
            if (threshold := self.results["last"].get("threshold")) is not None:
                self.processor.threshold = threshold
            self.best, self.evaluations_since_best = score, 0
            self.results["best"] = self.results["last"]
            if self.accelerator.is_main_process:  # an interruption must not leave new weights with the old score
                write_json({name: x for name, x in self.results.items() if name != "best"}, self.output / RESULTS)
            self.save(self.output)
        if self.accelerator.is_main_process:
            write_json(self.results, self.output / RESULTS)


def is_due(step: int, every: int | None) -> bool:
    """Whether `step` is a multiple of `every`; False if `every` is None."""
    return every is not None and step % every == 0
