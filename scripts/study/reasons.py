"""Why the pilot helps: how stable the assignment is during training, and the pilot's part of the decoder's gradient.

python -m scripts.study.reasons outputs/study/why --arms off on --seeds 0 --dataset_name data/nuclei_tiles \\
    --eval_split validation --output_file training/results/study/nuclei_reasons.json

For runs `ARM-SEED` of `scripts.study` that kept their checkpoints (`-- --checkpointing_steps 50
--save_total_limit 1000`). Between two consecutive checkpoints: the share of objects of the split whose matched query is
the same in both (the opposite of DN-DETR's instability, section 3.2). At each checkpoint, if the run has a pilot, over
batches of training images: norm of the gradient of the pilot's losses over the sum of it and that of the matching
losses, and the cosine of both, for all parameters of the decoder's layers.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from mpformer_hf import MPFormerForUniversalSegmentation
from mpformer_hf.arguments import as_flags
from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import SegmentationDataset, open_dataset
from mpformer_hf.data.segments import VOID
from mpformer_hf.diagnostics import match_masks
from mpformer_hf.evaluation.evaluator import batches_with_progress, evaluation_loader
from mpformer_hf.files import read_json, write_json
from mpformer_hf.loading import load_processor
from mpformer_hf.matcher import HungarianMatcher
from mpformer_hf.targets import collect_targets
from training.arguments import parse_arguments
from training.checkpoints import checkpoints, step_of
from training.finetune import training_loader
from training.packing import Unpacker
from training.run_folder import ARGUMENTS


@torch.no_grad()
def matched_queries(
    model: MPFormerForUniversalSegmentation, folder: Path, split: SegmentationDataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query that is matched to each of the T targets of a split in each of the P predictions, int64 `[P, T]`, -1
    without one; and the classes of the targets, int64 `[T]`."""
    accelerator, processor, matcher = Accelerator(), load_processor(str(folder)), HungarianMatcher(model.config)
    model.eval()
    queries, labels = [], []
    for batch in batches_with_progress(evaluation_loader(split, processor, accelerator, 16), "match", accelerator):
        maps, classes = zip(*((segments.map, segments.classes) for segments in batch["segments"]), strict=True)
        inputs = processor(batch["images"], list(maps), list(classes), ignore_index=VOID, return_tensors="pt")
        outputs = model(inputs["pixel_values"], output_auxiliary_logits=True)
        size = tuple(inputs["pixel_values"].shape[-2:])
        targets = collect_targets(inputs["mask_labels"], inputs["class_labels"], size)
        predictions = [*outputs.auxiliary_logits, outputs]
        rows = torch.full((len(predictions), len(targets.labels)), -1)
        for row, prediction in zip(rows, predictions, strict=True):
            found = match_masks(matcher, prediction, targets, seed=0)
            row[found.target] = found.query
        queries.append(rows)
        labels.append(targets.labels)
    return torch.cat(queries, dim=1), torch.cat(labels)


def decoder_gradients(model: MPFormerForUniversalSegmentation, batches: list[dict]) -> dict[str, float]:
    """Mean of the pilot's share of the gradient's norm, and of the cosine, over batches of the model's inputs."""
    model.train()
    parameters = list(model.model.transformer_module.decoder.layers.parameters())
    shares, cosines = [], []
    for number, inputs in enumerate(batches):
        losses = model(**inputs, generator=torch.Generator().manual_seed(number)).loss_dict
        kinds = [sum(x for name, x in losses.items() if ("_pilot" in name) == pilot) for pilot in (False, True)]
        matching, pilot = (
            torch.cat([x.flatten() for x in torch.autograd.grad(loss, parameters, retain_graph=True)]) for loss in kinds
        )
        shares.append((pilot.norm() / (pilot.norm() + matching.norm())).item())
        cosines.append(torch.cosine_similarity(pilot, matching, dim=0).item())
    return {"pilot_gradient_share": sum(shares) / len(shares), "gradient_cosine": sum(cosines) / len(cosines)}


def measure(folder: Path, split: SegmentationDataset, batches: int) -> list[dict]:
    """`step` of each checkpoint of a run, `same_query` since the checkpoint before, and the gradients of a pilot.

    Raises:
        ValueError: the run has fewer than two checkpoints.
    """
    if len(checkpoints(folder)) < 2:
        raise ValueError(f"{folder} has fewer than two checkpoints; train with --checkpointing_steps.")
    model = MPFormerForUniversalSegmentation.from_pretrained(folder / "last")
    inputs = training_inputs(folder, batches) if model.config.mask_piloting else []
    rows, before = [], None
    for checkpoint in checkpoints(folder):
        model.load_state_dict(load_file(checkpoint / "model.safetensors"))
        queries = matched_queries(model, folder / "last", split)[0][-1]
        row = {"step": step_of(checkpoint)}
        if before is not None:
            row["same_query"] = round((queries == before).float().mean().item(), 5)
        if inputs:
            row |= {name: round(x, 5) for name, x in decoder_gradients(model, inputs).items()}
        rows.append(row)
        before = queries
    return rows


def training_inputs(folder: Path, count: int) -> list[dict]:
    """The first batches of a run, as the model takes them."""
    stored, names = read_json(folder / ARGUMENTS), parse_arguments([]).as_dict()
    args = parse_arguments(as_flags({name: stored[name] for name in names if stored.get(name) != []}))
    accelerator, processor = Accelerator(), load_processor(str(folder / "last"))
    split = open_dataset(args.data, args.data.train_split, args.data.max_train_samples)
    loader, unpack = training_loader(args, split, processor, accelerator, 0), Unpacker(processor, accelerator.device)
    return [unpack(inputs) for (inputs, _), _ in zip(loader, range(count), strict=False)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs, ARM-SEED")
    parser.add_argument("--arms", nargs="+", required=True, help="arms")
    parser.add_argument("--seeds", nargs="+", type=int, required=True, help="seeds")
    parser.add_argument("--dataset_name", required=True, help="dataset")
    parser.add_argument("--task", default="instance", choices=("semantic", "instance", "panoptic"), help="task")
    parser.add_argument("--eval_split", required=True, help="split whose objects are matched")
    parser.add_argument("--batches", type=int, default=8, help="training batches for the gradients")
    parser.add_argument("--output_file", type=Path, required=True, help="JSON of the results")
    args = parser.parse_args(argv)
    if args.batches < 1:
        raise ValueError("batches must be at least 1.")
    split = open_dataset(DataArguments(dataset_name=args.dataset_name, task=args.task), args.eval_split)
    runs = [(arm, seed) for arm in args.arms for seed in args.seeds]
    results = [
        {"arm": arm, "seed": seed, "checkpoints": measure(args.folder / f"{arm}-{seed}", split, args.batches)}
        for arm, seed in runs
    ]
    print(json.dumps(results))
    write_json(results, args.output_file)


if __name__ == "__main__":
    run_command(main)
