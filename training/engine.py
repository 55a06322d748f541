"""The training loop: accelerate owns devices, precision, accumulation, processes, checkpoints and trackers."""

import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor

from .arguments import OptimizationArguments, RunArguments
from .checkpoints import EVALUATIONS, LOG, RESULTS, save_checkpoint, save_model, write_json
from .evaluation import TASK_METRICS, diagnose_model, evaluate_model
from .memory import peak_memory
from .optimization import build_optimizer, build_scheduler
from .sharding import gather_weights, prepare_sharding, share_buffers


def images_per_step(args: OptimizationArguments, processes: int) -> int:
    """Images of one optimizer step, over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * processes


def count_steps(args: OptimizationArguments, images: int | None, processes: int) -> int:
    """Optimizer steps of the run, on a training split of `images` (None: a stream).

    Raises:
        ValueError: there would be none, or nobody knows how many.
    """
    total = args.max_train_steps
    if total is None and images is None:
        raise ValueError("streaming: the length of the training split is unknown, so give --max_train_steps.")
    if total is None:
        total = math.ceil(args.num_train_epochs * images / images_per_step(args, processes))
    if total < 1:
        raise ValueError(f"max_train_steps must be at least 1, got {total}.")
    return total


def batch_norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    """All batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def freeze(model: MPFormerForUniversalSegmentation, args: OptimizationArguments) -> None:
    """Take what is not trained out of the gradients, before DDP and the optimizer see the parameters."""
    if args.freeze_backbone:
        model.model.pixel_level_module.encoder.requires_grad_(False)
    if args.freeze_batch_norm:
        for module in batch_norms(model):
            module.requires_grad_(False)


class Trainer:
    """One run.

    Args:
        model, processor: what is trained and how its images are made.
        optimization, run: the recipe.
        accelerator: prepares everything.
        train_loader: endless pairs of model inputs and row numbers, for this process alone if it is a stream.
        eval_loader: see `evaluation.evaluation_loader`.
        output: the output folder.
        total: optimizer steps.
        checkpoint: where to go on from; the loader begins there already.
    """

    def __init__(
        self,
        model: MPFormerForUniversalSegmentation,
        processor: MPFormerImageProcessor,
        optimization: OptimizationArguments,
        run: RunArguments,
        accelerator: Accelerator,
        train_loader: DataLoader,
        eval_loader: DataLoader,
        output: Path,
        total: int,
        checkpoint: Path | None = None,
    ):
        self.processor, self.optimization, self.run, self.accelerator = processor, optimization, run, accelerator
        self.eval_loader, self.output, self.total = eval_loader, output, total
        known = TASK_METRICS[processor.task]
        self.metric = run.metric_for_best or known[0]
        if self.metric not in known:
            raise ValueError(f"metric_for_best must be one of {', '.join(known)}, got {self.metric!r}.")
        freeze(model, optimization)
        if optimization.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.copy = copy.deepcopy(model).to(accelerator.device) if prepare_sharding(accelerator) else None
        if optimization.torch_compile:
            model.model.compile()
        self.ema = None
        if optimization.ema_decay is not None:
            average = get_ema_multi_avg_fn(optimization.ema_decay)
            self.ema = AveragedModel(model, accelerator.device, multi_avg_fn=average, use_buffers=True)
            accelerator.register_for_checkpointing(self.ema)
        optimizer = build_optimizer(model, optimization)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        streamed = isinstance(train_loader.dataset, torch.utils.data.IterableDataset)
        self.loader = train_loader if streamed else accelerator.prepare(train_loader)
        self.scheduler = build_scheduler(self.optimizer.optimizer, optimization, total)
        accelerator.register_for_checkpointing(self.scheduler, self)
        self.step, self.best, self.since_best, self.results = 0, None, 0, {}
        self.spent = {"train_seconds": 0.0, "eval_seconds": 0.0}
        if checkpoint is not None:
            accelerator.load_state(str(checkpoint))

    def state_dict(self) -> dict:
        """What a checkpoint has to know of the run itself."""
        names = ("step", "best", "since_best", "results", "spent")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def train(self) -> dict:
        """Train to the end and return all results, which are in the output folder too.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if self.run.eval_on_start and self.step == 0:
            self.results["before_training"] = self.evaluate()
        batches, main = iter(self.loader), self.accelerator.is_main_process
        log = (self.output / LOG).open("a") if main else None
        bar = tqdm(
            total=self.total, initial=self.step, desc="train", disable=not self.accelerator.is_local_main_process
        )
        self.set_training()
        while self.step < self.total:
            began = time.perf_counter()
            self.step += 1
            losses, images, norm = self.optimize(batches)
            seconds = time.perf_counter() - began
            self.spent["train_seconds"] += seconds
            speed = images * self.accelerator.num_processes / seconds
            bar.update()
            bar.set_postfix(loss=f"{losses['loss']:.2f}", images_s=f"{speed:.2f}")
            row = {**losses, "grad_norm": norm, "lr": max(self.scheduler.get_last_lr())}
            self.accelerator.log(row, step=self.step)
            if main:
                cost = {"seconds": round(seconds, 4), "images_per_second": round(speed, 3)}
                cost["peak_memory_mib"] = round(peak_memory(self.accelerator.device))
                log.write(json.dumps({"step": self.step, **row, **cost}) + "\n")
                log.flush()
            self.scheduler.step()
            if self.step == self.total or (self.run.eval_steps and self.step % self.run.eval_steps == 0):
                began = time.perf_counter()
                self.save(self.output / "last")  # first: an image that cannot be scored must not cost the weights
                self.results["last"] = self.evaluate()
                self.keep_best()
                self.set_training()
                self.spent["eval_seconds"] += time.perf_counter() - began
            if self.run.checkpointing_steps and self.step % self.run.checkpointing_steps == 0:
                if self.copy is not None:
                    share_buffers(self.model)
                save_checkpoint(self.accelerator, self.output, self.step)
            if self.run.early_stopping_patience and self.since_best >= self.run.early_stopping_patience:
                self.accelerator.print(f"Stopped in step {self.step}: no better {self.metric} for {self.since_best}.")
                break
        bar.close()
        results = {**self.results, "steps": self.step, **{name: round(x, 1) for name, x in self.spent.items()}}
        if main:
            log.close()
            write_json(results, self.output / RESULTS)
        return results

    def set_training(self) -> None:
        """Training mode; what is frozen stays in evaluation mode."""
        self.model.train()
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=True)
        if self.optimization.freeze_backbone:
            bare.model.pixel_level_module.encoder.eval()
        if self.optimization.freeze_batch_norm:
            for module in batch_norms(bare):
                module.eval()

    def optimize(self, batches: Iterator[tuple[dict, list[int]]]) -> tuple[dict[str, float], int, float]:
        """One optimizer step: mean losses of this process, its images, gradient norm before clipping."""
        accumulation = self.optimization.gradient_accumulation_steps
        sums: dict[str, torch.Tensor] = {}
        images, norm = 0, None
        for _ in range(accumulation):
            inputs, rows = next(batches)
            inputs = send_to_device(inputs, self.accelerator.device)
            images += len(rows)
            with self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():
                    output = self.model(**inputs)
                for name, loss in (("loss", output.loss), *output.loss_dict.items()):
                    sums[name] = sums.get(name, 0) + loss.detach().float() / accumulation
                if not torch.isfinite(output.loss):
                    shown = ", ".join(map(str, rows))
                    raise FloatingPointError(f"The loss is {output.loss.item()} in step {self.step}, images {shown}.")
                self.accelerator.backward(output.loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.optimization.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.whole())
        values = torch.stack(list(sums.values())).tolist()  # one transfer for all numbers of the log
        return dict(zip(sums, values, strict=True)), images, float(norm)

    def whole(self) -> MPFormerForUniversalSegmentation:
        """The model in one piece; of weights that are spread over processes, a copy as they are now."""
        bare = self.accelerator.unwrap_model(self.model)
        if self.copy is None:
            return bare
        gather_weights(bare, self.copy)
        return self.copy

    def scored(self) -> MPFormerForUniversalSegmentation:
        """What is evaluated and saved: the moving averages, if there are any."""
        return self.whole() if self.ema is None else self.ema.module

    def evaluate(self) -> dict:
        """Scores of the model as it is, a line of `evaluations.jsonl`; overlays go to the output folder."""
        pictures, model = self.output / "pictures", self.scored()
        scores = evaluate_model(
            model,
            self.processor,
            self.eval_loader,
            self.accelerator,
            pictures if self.step and self.accelerator.is_main_process else None,
            self.run.num_pictures,
            self.run.max_detections,
        )
        if self.run.diagnostics:
            found = diagnose_model(model, self.processor, self.eval_loader, self.accelerator)
            scores |= {"mask_consistency": found.mask_consistency, "query_utilisation": found.query_utilisation}
        results = {"step": self.step, **scores}
        self.accelerator.log({f"eval_{k}": v for k, v in scores.items() if isinstance(v, float)}, step=self.step)
        if self.accelerator.is_main_process:
            with (self.output / EVALUATIONS).open("a") as file:
                file.write(json.dumps(results) + "\n")
            self.log_pictures(pictures)
        shown = (f"{name} {scores[name]:.4f}" for name in ("pq", "ap", "mean_iou") if name in scores)
        self.accelerator.print(f"step {self.step}: {', '.join(shown)}")
        return results

    def log_pictures(self, folder: Path) -> None:
        """Hand the overlays to the trackers that take images."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                for file in sorted(folder.glob("*.png")):
                    picture = np.asarray(Image.open(file))[None]
                    tracker.log_images({f"samples/{file.stem}": picture}, step=self.step, **layout)

    def save(self, folder: Path) -> None:
        """The weights as they are, with the processor."""
        model = self.scored()
        if self.accelerator.is_main_process:
            save_model(model, self.processor, folder)
        self.accelerator.wait_for_everyone()

    def keep_best(self) -> None:
        """Save the weights in the output folder itself if they are the best so far, and the results."""
        self.since_best += 1
        if self.best is None or self.results["last"][self.metric] > self.best:
            self.best, self.since_best = self.results["last"][self.metric], 0
            self.results["best"] = self.results["last"]
            self.save(self.output)
        if self.accelerator.is_main_process:
            write_json(self.results, self.output / RESULTS)
