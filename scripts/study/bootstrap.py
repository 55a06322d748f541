"""Difference of the AP of two arms with a bootstrap over images, from predictions of their runs on one split.

mpformer evaluate ... --save_predictions coco --predictions_dir outputs/test/on_0       (each arm and seed)
python -m scripts.study.bootstrap outputs/test --arm on --baseline off --seeds 0 1 2 --dataset_name data/nuclei_tiles \\
    --eval_split test --tiles_of path/to/nuclei --tile 128 --output_file training/results/study/bootstrap.json

All images of a group are drawn together: the tiles of one image, or blocks of `--block` consecutive video frames. A
resample is the same for all runs; its difference is the mean over seeds. The interval has 95 % of the resamples.
"""

import argparse
import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import SegmentationDataset, open_dataset
from mpformer_hf.evaluation.task_metrics import instance_reference
from mpformer_hf.files import read_json, write_json

from ..tile_dataset import tile_corners

RECALLS = np.linspace(0, 1, 101)


@dataclass
class ClassMatches:
    """Predictions of one class over a split, the best first.

    Attributes:
        matched: bool `[T, P]` for T thresholds of the IoU.
        ignored: bool `[T, P]`.
        image: int `[P]`.
        objects: int `[N]`, objects of each image.
    """

    matched: np.ndarray
    ignored: np.ndarray
    image: np.ndarray
    objects: np.ndarray

    def average_precision(self, weights: np.ndarray) -> float | None:
        """COCO's average precision where image i occurs `weights[i]` times; None without an object."""
        total = (weights * self.objects).sum()
        if total == 0:
            return None
        own = weights[self.image]
        true = (self.matched & ~self.ignored) * own
        false = (~self.matched & ~self.ignored) * own
        true, false = true.cumsum(1), false.cumsum(1)
        recall, precision = true / total, true / np.maximum(true + false, 1e-12)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        values = [
            np.append(p, 0.0)[np.searchsorted(r, RECALLS, side="left")] for r, p in zip(recall, precision, strict=True)
        ]
        return float(np.mean(values))


def reference_of(dataset: SegmentationDataset) -> tuple[COCO, list[int]]:
    """Ground truth of a split for pycocotools, and the ids of its images."""
    annotations, images = [], []
    for index in range(len(dataset)):
        _, segments = dataset[index]
        image_id = dataset.identity(index)[0]
        height, width = dataset.image_size(index)
        images.append({"id": image_id, "height": height, "width": width})
        reference = instance_reference(segments, dataset.labels.things)
        for mask, label, crowd in zip(*(reference[k] for k in ("masks", "label_ids", "iscrowd")), strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            row = {"image_id": image_id, "category_id": dataset.labels.category_ids[label], "segmentation": rle}
            annotations.append({**row, "iscrowd": int(crowd), "area": int(mask.sum()), "id": len(annotations) + 1})
    coco = COCO()
    coco.dataset = {
        "images": images,
        "categories": [{"id": category} for category in dataset.labels.category_ids],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco, [image["id"] for image in images]


def matches_of(reference: COCO, images: list[int], file: Path) -> list[ClassMatches]:
    """Matches of the predictions of a run, of each class."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(reference, reference.loadRes(read_json(file)), "segm")
        evaluation.params.imgIds = images
        evaluation.evaluate()
    # by class, range of areas (the first one: all) and image, in ascending order of ids
    rows = np.array(evaluation.evalImgs, dtype=object).reshape(len(evaluation.params.catIds), -1, len(images))[:, 0]
    return [class_matches(own) for own in rows[:, np.argsort(np.argsort(images))]]


def class_matches(rows: list[dict | None]) -> ClassMatches:
    """Matches of one class over all images."""
    objects = np.array([0 if row is None else int((np.array(row["gtIgnore"]) == 0).sum()) for row in rows])
    there = [(index, row) for index, row in enumerate(rows) if row is not None and len(row["dtScores"])]
    if not there:
        nothing = np.zeros((len(COCOeval(iouType="segm").params.iouThrs), 0), dtype=bool)
        return ClassMatches(nothing, nothing, np.zeros(0, dtype=int), objects)
    scores = np.concatenate([row["dtScores"] for _, row in there])
    order = np.argsort(-scores, kind="mergesort")
    image = np.concatenate([np.full(len(row["dtScores"]), index) for index, row in there])[order]
    matched = np.concatenate([row["dtMatches"] for _, row in there], axis=1)[:, order] > 0
    ignored = np.concatenate([row["dtIgnore"] for _, row in there], axis=1)[:, order].astype(bool)
    return ClassMatches(matched, ignored, image, objects)


def mean_precision(classes: list[ClassMatches], weights: np.ndarray) -> float:
    """Mean over classes that have an object; NaN if none has."""
    values = [value for own in classes if (value := own.average_precision(weights)) is not None]
    return float(np.mean(values)) if values else float("nan")


def groups_of(args: argparse.Namespace, data: DataArguments, count: int) -> np.ndarray:
    """Group of each image, int `[count]`.

    Raises:
        ValueError: the tiles of the other dataset are not as many.
    """
    if args.tiles_of is None:
        return np.arange(count) // args.block
    source = open_dataset(DataArguments(dataset_name=args.tiles_of, task=data.task), data.eval_split)
    tiles = [len(tile_corners(source.image_size(index), args.tile)) for index in range(len(source))]
    if sum(tiles) != count:
        raise ValueError(f"{args.tiles_of} has {sum(tiles)} tiles of {args.tile} pixels, the split has {count} images.")
    return np.arange(len(tiles)).repeat(tiles)


def drawn_weights(groups: np.ndarray, resamples: int) -> list[np.ndarray]:
    """How often each image occurs in each resample, int `[count]`; groups are drawn with replacement, by seed 0."""
    rng, number = np.random.default_rng(0), groups.max() + 1
    return [np.bincount(rng.integers(0, number, number), minlength=number)[groups] for _ in range(resamples)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of ARM_SEED/predictions.json")
    parser.add_argument("--arm", required=True, help="arm")
    parser.add_argument("--baseline", required=True, help="arm that it is compared with")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="seeds of both")
    parser.add_argument("--dataset_name", required=True, help="dataset")
    parser.add_argument("--eval_split", required=True, help="split")
    parser.add_argument("--tiles_of", help="dataset whose images were cut into the tiles of the split")
    parser.add_argument("--tile", type=int, default=128, help="side of the tiles, in pixels")
    parser.add_argument("--block", type=int, default=1, help="without tiles: number of consecutive images of a group")
    parser.add_argument("--resamples", type=int, default=1000, help="number of resamples")
    parser.add_argument("--output_file", type=Path, help="JSON of the results")
    args = parser.parse_args(argv)
    if min(args.block, args.resamples, args.tile) < 1:
        raise ValueError("block, resamples and tile must be at least 1.")
    data = DataArguments(dataset_name=args.dataset_name, task="instance", eval_split=args.eval_split)
    dataset = open_dataset(data, data.eval_split)
    reference, images = reference_of(dataset)
    groups = groups_of(args, data, len(images))
    runs = {
        arm: [matches_of(reference, images, args.folder / f"{arm}_{seed}" / "predictions.json") for seed in args.seeds]
        for arm in (args.arm, args.baseline)
    }

    def difference(weights: np.ndarray) -> float:
        means = [np.mean([mean_precision(run, weights) for run in runs[arm]]) for arm in (args.arm, args.baseline)]
        return float(means[0] - means[1])

    values = [difference(weights) for weights in drawn_weights(groups, args.resamples)]
    low, high = np.nanpercentile(values, [2.5, 97.5])  # a resample without any object has no AP
    result = {
        "arm": args.arm,
        "baseline": args.baseline,
        "seeds": args.seeds,
        "split": args.eval_split,
        "images": len(images),
        "groups": int(groups.max()) + 1,
        "difference": round(difference(np.ones(len(images), dtype=int)), 5),
        "interval": [round(float(low), 5), round(float(high), 5)],
        "resamples": args.resamples,
    }
    print(json.dumps(result))
    if args.output_file:
        write_json(result, args.output_file)


if __name__ == "__main__":
    run_command(main)
