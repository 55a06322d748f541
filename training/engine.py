"""The training loop: accelerate owns devices, precision, accumulation and processes."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor

from .arguments import OptimizationArguments, RunArguments
from .evaluation import TASK_METRICS, diagnose_model, evaluate_model
from .optimization import build_optimizer, build_scheduler

LOG, EVALUATIONS, RESULTS = "log.jsonl", "evaluations.jsonl", "all_results.json"


def prepare_output(path: str | None) -> Path:
    """The output folder, made if it is not there.

    Raises:
        ValueError: none is given, or it holds something; nothing is ever overwritten.
    """
    if not path:
        raise ValueError("--output_dir is missing: a new or empty folder.")
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"Output folder {path} is not empty; name another one.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_model(model: MPFormerForUniversalSegmentation, processor: MPFormerImageProcessor, folder: Path) -> None:
    """Write model and processor aside, then put them into `folder` file by file: none is ever half-written."""
    aside = folder / ".writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    processor.save_pretrained(aside)
    for file in sorted(aside.iterdir()):
        file.replace(folder / file.name)
    aside.rmdir()


def write_json(content: dict, file: Path) -> None:
    """Write aside, then rename; the folder is made if it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".writing")
    aside.write_text(json.dumps(content, indent=2) + "\n")
    aside.replace(file)


def images_per_step(args: OptimizationArguments, processes: int) -> int:
    """Images of one optimizer step, over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * processes


def count_steps(args: OptimizationArguments, images: int, processes: int) -> int:
    """Optimizer steps of the run.

    Raises:
        ValueError: there would be none.
    """
    total = args.max_train_steps
    if total is None:
        total = math.ceil(args.num_train_epochs * images / images_per_step(args, processes))
    if total < 1:
        raise ValueError(f"max_train_steps must be at least 1, got {total}.")
    return total


def batch_norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    """All batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


class Trainer:
    """One run.

    Args:
        model, processor: what is trained and how its images are made.
        optimization, run: the recipe.
        accelerator: prepares everything.
        train_loader: endless batches of model inputs.
        eval_loader: see `evaluation.evaluation_loader`.
        output: the output folder.
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
    ):
        self.processor, self.optimization, self.run, self.accelerator = processor, optimization, run, accelerator
        self.eval_loader, self.output = eval_loader, output
        known = TASK_METRICS[processor.task]
        self.metric = run.metric_for_best or known[0]
        if self.metric not in known:
            raise ValueError(f"metric_for_best must be one of {', '.join(known)}, got {self.metric!r}.")
        if optimization.freeze_batch_norm:  # before DDP and the optimizer see the parameters
            for module in batch_norms(model):
                module.requires_grad_(False)
        if optimization.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = build_optimizer(model, optimization)
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, train_loader)
        self.total = count_steps(optimization, len(train_loader.dataset), accelerator.num_processes)
        self.scheduler = build_scheduler(self.optimizer.optimizer, optimization, self.total)
        self.best: float | None = None

    def train(self) -> dict:
        """Train to the end and return all results, which are in the output folder too.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        results = {}
        if self.run.eval_on_start:
            results["before_training"] = self.evaluate(0)
        start, spent_evaluating = time.perf_counter(), 0.0
        main = self.accelerator.is_main_process
        batches = iter(self.loader)
        log = (self.output / LOG).open("a") if main else None
        bar = tqdm(range(1, self.total + 1), desc="train", disable=not self.accelerator.is_local_main_process)
        self.set_training()
        for step in bar:
            began = time.perf_counter()
            losses, images, norm = self.step(batches, step)
            seconds = time.perf_counter() - began
            speed = images * self.accelerator.num_processes / seconds
            bar.set_postfix(loss=f"{losses['loss']:.2f}", images_s=f"{speed:.2f}")
            if main:
                row = {"step": step, **losses, "grad_norm": norm, "lr": max(self.scheduler.get_last_lr())}
                log.write(
                    json.dumps({**row, "seconds": round(seconds, 4), "images_per_second": round(speed, 3)}) + "\n"
                )
                log.flush()
            self.scheduler.step()
            if step == self.total or (self.run.eval_steps and step % self.run.eval_steps == 0):
                began = time.perf_counter()
                self.save(self.output / "last")  # first: an image that cannot be scored must not cost the weights
                results["last"] = self.evaluate(step)
                self.keep_best(results)
                self.set_training()
                spent_evaluating += time.perf_counter() - began
        seconds = time.perf_counter() - start
        results |= {
            "steps": self.total,
            "train_seconds": round(seconds - spent_evaluating, 1),
            "eval_seconds": round(spent_evaluating, 1),
        }
        if main:
            log.close()
            write_json(results, self.output / RESULTS)
        return results

    def set_training(self) -> None:
        """Training mode; frozen batch norms stay in evaluation mode."""
        self.model.train()
        if self.optimization.freeze_batch_norm:
            for module in batch_norms(self.model):
                module.eval()

    def step(self, batches: Iterator[dict], step: int) -> tuple[dict[str, float], int, float]:
        """One optimizer step: mean losses of this process, its images, gradient norm before clipping."""
        accumulation = self.optimization.gradient_accumulation_steps
        sums: dict[str, torch.Tensor] = {}
        images, norm = 0, None
        for _ in range(accumulation):
            batch = next(batches)
            images += len(batch["pixel_values"])
            with self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():
                    output = self.model(**batch)
                for name, loss in (("loss", output.loss), *output.loss_dict.items()):
                    sums[name] = sums.get(name, 0) + loss.detach().float() / accumulation
                if not torch.isfinite(output.loss):
                    raise FloatingPointError(f"The loss is {output.loss.item()} in step {step}.")
                self.accelerator.backward(output.loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.optimization.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        values = torch.stack(list(sums.values())).tolist()  # one transfer for all numbers of the log
        return dict(zip(sums, values, strict=True)), images, float(norm)

    def evaluate(self, step: int) -> dict:
        """Scores of the model as it is, a line of `evaluations.jsonl`; overlays go to the output folder."""
        scores = evaluate_model(
            self.model,
            self.processor,
            self.eval_loader,
            self.accelerator,
            self.output / "pictures" if step and self.accelerator.is_main_process else None,
            self.run.num_pictures,
        )
        if self.run.diagnostics:
            found = diagnose_model(self.model, self.processor, self.eval_loader, self.accelerator)
            scores |= {"mask_consistency": found.mask_consistency, "query_utilisation": found.query_utilisation}
        results = {"step": step, **scores}
        if self.accelerator.is_main_process:
            with (self.output / EVALUATIONS).open("a") as file:
                file.write(json.dumps(results) + "\n")
        shown = (f"{name} {scores[name]:.4f}" for name in ("pq", "mean_iou") if name in scores)
        self.accelerator.print(f"step {step}: {', '.join(shown)}")
        return results

    def save(self, folder: Path) -> None:
        """The weights as they are, with the processor."""
        if self.accelerator.is_main_process:
            save_model(self.accelerator.unwrap_model(self.model), self.processor, folder)
        self.accelerator.wait_for_everyone()

    def keep_best(self, results: dict) -> None:
        """Save the weights in the output folder itself if they are the best so far, and the results."""
        if self.best is None or results["last"][self.metric] > self.best:
            self.best = results["last"][self.metric]
            results["best"] = results["last"]
            self.save(self.output)
        if self.accelerator.is_main_process:
            write_json(results, self.output / RESULTS)
