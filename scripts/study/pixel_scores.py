"""Pixel and segment scores of the last models of two arms, and their difference with a bootstrap over blocks of images.

python -m scripts.study.pixel_scores outputs/study/question_2 --arm on --baseline off --seeds 0 1 2 3 4 5 \\
    --dataset_name data/camvid --task semantic --eval_split test --block 20 --output_file results.json

Mean IoU, boundary mean IoU and, of panoptic segmentation, PQ, that of things and that of stuff: functions of sums over
images. `--block` consecutive images are drawn together: frames of a video that follow each other are alike. A resample
is the same for all runs; its difference is the mean over seeds. The interval has 95 % of the resamples.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import SegmentationDataset, open_dataset
from mpformer_hf.evaluation.evaluator import batches_with_progress, evaluation_loader, predict_batch
from mpformer_hf.evaluation.task_metrics import TaskMetrics
from mpformer_hf.files import write_json
from mpformer_hf.loading import load_model, load_processor
from mpformer_hf.metrics.mean_iou import summarise

from .bootstrap import drawn_weights

SUMS = {"semantic": ("confusion", "boundaries"), "panoptic": ("statistics",)}  # what a metric adds up, by kind
SCORES = {"semantic": ("mean_iou", "boundary_mean_iou"), "panoptic": ("pq", "pq_things", "pq_stuff")}


@torch.no_grad()
def sums_by_image(folder: Path, dataset: SegmentationDataset, scores: TaskMetrics, task: str) -> dict[str, np.ndarray]:
    """What the scores of a saved model are made of, for each of the N images of a split: arrays `[N, ...]`."""
    accelerator = Accelerator()
    model, processor = load_model(str(folder)).to(accelerator.device).eval(), load_processor(str(folder))
    processor.task = task
    processor.label_ids_to_fuse = dataset.labels.stuff if task == "panoptic" else []
    rows: dict[str, list[np.ndarray]] = {}
    for batch in batches_with_progress(evaluation_loader(dataset, processor, accelerator), str(folder), accelerator):
        (predictions,) = predict_batch(model, processor, batch, accelerator)
        scores.add(predictions, batch["segments"][0])
        for kind, metric in scores.metrics.items():
            for name in SUMS[kind]:
                rows.setdefault(name, []).append(getattr(metric, name))
            metric.reset()
    return {name: np.stack(arrays) for name, arrays in rows.items()}


def scores_of(sums: dict[str, np.ndarray], weights: np.ndarray, scores: TaskMetrics) -> dict[str, float]:
    """Scores of a split in which image i occurs `weights[i]` times."""
    total = {name: np.tensordot(weights, arrays, 1) for name, arrays in sums.items()}
    results = summarise(total["confusion"], total["boundaries"])
    if "statistics" in total:
        results |= scores.metrics["panoptic"].summarise(total["statistics"][0])
    return {name: results[name] for kind in scores.metrics for name in SCORES[kind]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs, ARM-SEED/last")
    parser.add_argument("--arm", required=True, help="arm")
    parser.add_argument("--baseline", required=True, help="arm that it is compared with")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="seeds of both")
    parser.add_argument("--dataset_name", required=True, help="dataset")
    parser.add_argument("--task", required=True, choices=("semantic", "panoptic"), help="task")
    parser.add_argument("--eval_split", required=True, help="split")
    parser.add_argument("--block", type=int, default=1, help="number of consecutive images that are drawn together")
    parser.add_argument("--resamples", type=int, default=1000, help="number of resamples")
    parser.add_argument("--output_file", type=Path, help="JSON of the results")
    args = parser.parse_args(argv)
    if min(args.block, args.resamples) < 1:
        raise ValueError("block and resamples must be at least 1.")
    data = DataArguments(dataset_name=args.dataset_name, task=args.task, eval_split=args.eval_split)
    dataset = open_dataset(data, data.eval_split)
    metrics = TaskMetrics(args.task, dataset.labels)
    runs = {
        arm: [sums_by_image(args.folder / f"{arm}-{seed}" / "last", dataset, metrics, args.task) for seed in args.seeds]
        for arm in (args.arm, args.baseline)
    }

    def differences(weights: np.ndarray) -> dict[str, float]:
        found = {arm: [scores_of(sums, weights, metrics) for sums in runs[arm]] for arm in runs}
        names = found[args.arm][0]
        return {name: mean_of(found[args.arm], name) - mean_of(found[args.baseline], name) for name in names}

    groups, every = np.arange(len(dataset)) // args.block, np.ones(len(dataset), dtype=int)
    drawn = [differences(weights) for weights in drawn_weights(groups, args.resamples)]
    scores = {}
    for name, difference in differences(every).items():
        interval = np.nanpercentile([resample[name] for resample in drawn], [2.5, 97.5])
        scores[name] = {
            arm: [round(scores_of(sums, every, metrics)[name], 5) for sums in own] for arm, own in runs.items()
        }
        scores[name] |= {"difference": round(difference, 5), "interval": [round(float(x), 5) for x in interval]}
    counts = {"images": len(dataset), "groups": int(groups.max()) + 1, "resamples": args.resamples}
    result = {"seeds": args.seeds, "split": args.eval_split, **counts, "scores": scores}
    print(json.dumps(result))
    if args.output_file:
        write_json(result, args.output_file)


def mean_of(scores: list[dict[str, float | None]], name: str) -> float:
    """Mean of a score over seeds; NaN where it is not defined: a resample without any segment of a kind."""
    values = [own[name] for own in scores]
    return float("nan") if None in values else float(np.mean(values))


if __name__ == "__main__":
    run_command(main)
