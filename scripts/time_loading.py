"""Measure how many training images per second a loader worker reads, augments and collates.

python -m scripts.time_loading --config training/recipes/camvid_semantic.yaml --dataset_name path/to/camvid
python -m scripts.time_loading --config training/recipes/coco_panoptic_r50.yaml --dataset_name path/to/coco \\
    --train_split train2017 --dataloader_num_workers 8

Takes the flags of training.finetune and loads `--max_train_steps` batches, at most 50, without a model. Training waits
for images if its steps are faster than the loader; more workers help if there are enough cores.
"""

import time
from dataclasses import replace
from itertools import islice

from accelerate import PartialState

from mpformer_hf.cli.main import run_command
from mpformer_hf.data.dataset import open_dataset
from training.arguments import parse_arguments
from training.building import build_processor
from training.engine import run_epochs
from training.finetune import training_loader
from training.transforms import choose_augmentation

MAX_BATCHES = 50


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Images per second, in total and per worker (0 workers: this process).

    Raises:
        ValueError: as training.finetune.
    """
    args = parse_arguments(argv, description=__doc__)
    workers, steps = args.data.dataloader_num_workers, args.optimization.max_train_steps or MAX_BATCHES
    split = open_dataset(args.data, args.data.train_split, args.data.max_train_samples)
    epochs = run_epochs(args.optimization, len(split), 1)
    processor = build_processor(args.data, args.transforms, split.labels)
    args = replace(args, transforms=choose_augmentation(args.transforms, epochs, processor.size))
    batches = iter(training_loader(args, split, processor, PartialState(), 0))
    for _ in range(1 + 2 * workers):  # prefetched batches
        next(batches)
    start = time.perf_counter()
    images = sum(len(rows) for _, rows in islice(batches, min(MAX_BATCHES, steps)))
    speed = images / (time.perf_counter() - start)
    result = {"images_per_second": speed, "per_worker": speed / max(1, workers)}
    print(f"{speed:.2f} images/s, {result['per_worker']:.2f} per worker ({images} images)")
    return result


if __name__ == "__main__":
    run_command(main)
