"""How many training images a second one loader worker reads, augments and collates.

python scripts/time_loading.py --config training/recipes/camvid_semantic.yaml --dataset_name path/to/camvid
python scripts/time_loading.py --config training/recipes/coco_panoptic_r50.yaml --dataset_name path/to/coco \\
    --train_split train2017 --dataloader_num_workers 8

Takes the flags of `training/finetune.py` and loads `--max_train_steps` batches, 50 at most; no model is built. A
training step that takes less time than this waits for its images; more workers help as long as there are cores.
"""

import sys
import time
from itertools import islice
from pathlib import Path

if __name__ == "__main__":  # as a script: find the package `training`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from accelerate import PartialState

from training.arguments import RECIPE_CLASSES, parse
from training.building import build_processor
from training.data import open_dataset
from training.finetune import run, training_loader

MOST = 50  # batches


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Images per second, in all and per worker (0 workers: this process).

    Raises:
        ValueError: as `training/finetune.py`.
    """
    groups = parse(RECIPE_CLASSES, argv, description=__doc__)
    _, _, data, transforms, optimization, _ = groups
    split = open_dataset(data, data.train_split, data.max_train_samples)
    loader = training_loader(groups, split, build_processor(data, transforms, split.labels), PartialState(), 0)
    batches = iter(loader)
    for _ in range(1 + 2 * data.dataloader_num_workers):  # those that were loaded ahead
        next(batches)
    start = time.perf_counter()
    images = sum(len(rows) for _, rows in islice(batches, min(MOST, optimization.max_train_steps or MOST)))
    rate = images / (time.perf_counter() - start)
    found = {"images_per_second": rate, "per_worker": rate / max(1, data.dataloader_num_workers)}
    print(f"{rate:.2f} images/s, {found['per_worker']:.2f} per worker ({images} images)")
    return found


if __name__ == "__main__":
    run(main)
