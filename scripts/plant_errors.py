"""Plant errors in the annotations of a dataset, to measure whether `mpformer audit` finds them.

python -m scripts.plant_errors data/solids data/solids_planted --task panoptic
python -m scripts.plant_errors data/nuclei_tiles data/nuclei_planted --task instance

A share of the objects of the training split gets one error each, drawn by the seed: another class (if there is more
than one class of things), no annotation, a mask moved by a quarter of its width and height, or its bounding box as
mask. Pixels that an object leaves get the stuff that is most frequent beside it, or become background. Other splits are
copied; crowds become void. `planted.json` lists the errors: image (row of the split), segment, kind, class, and the
true mask as RLE.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import SegmentationDataset, open_dataset
from mpformer_hf.evaluation.prompts import moved
from mpformer_hf.files import write_json
from mpformer_hf.label_maps import encode_rle
from mpformer_hf.pilot_noise import box_masks, grow_masks
from mpformer_hf.ranges import check_range

from .panoptic_parquet import Scene, write_splits

SMALLEST = 64  # area in pixels of objects that get an error: below, one cannot be seen


class Planter:
    """Plants errors in the scenes of a dataset.

    Args:
        things: class ids of objects.
        share: of the objects that get an error.
        seed: of the random numbers.

    Attributes:
        planted: the errors so far.
    """

    def __init__(self, things: set[int], share: float, seed: int):
        self.things, self.share, self.planted = things, share, []
        self.random, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.kinds = ["missing", "shifted", "coarse"] + ["class"] * (len(things) > 1)

    def plant(self, scene: Scene, row: int) -> Scene:
        """A scene with errors; `row` is its row in the split."""
        image, ids, classes = scene
        ids, classes, before = ids.copy(), dict(classes), ids
        for segment, label in scene[2].items():
            true = before == segment
            if label not in self.things or true.sum() < SMALLEST or self.random.random() >= self.share:
                continue
            kind = str(self.random.choice(self.kinds))
            if kind == "class":
                classes[segment] = int(self.random.choice(sorted(self.things - {label})))
            else:
                self.change_mask(ids, segment, true, kind, classes)
            error = {"row": row, "segment": segment, "kind": kind, "label_id": label, "mask": encode_rle(true)}
            self.planted.append(error)
        return image, ids, classes

    def change_mask(self, ids: np.ndarray, segment: int, true: np.ndarray, kind: str, classes: dict[int, int]) -> None:
        """Replace the mask of an object in a map of ids; other objects stay as they are."""
        mask = torch.from_numpy(true.astype(np.uint8))[None]
        ring = (grow_masks(mask, torch.tensor([2]))[0].numpy() > 0) & ~true
        stuff = {0} | {i for i, label in classes.items() if label not in self.things}
        around = Counter(i for i in ids[ring].tolist() if i in stuff)
        ids[ids == segment] = around.most_common(1)[0][0] if around else 0
        if kind == "missing":
            classes.pop(segment)
            return
        given = moved(mask, self.generator) if kind == "shifted" else box_masks(mask, 0.0, None)
        ids[(given[0].numpy() > 0) & np.isin(ids, list(stuff))] = segment


def scenes(dataset: SegmentationDataset):
    """Scenes of a split, without layers."""
    for index in range(len(dataset)):
        image, segments = dataset[index]
        if segments.map.ndim == 3:
            raise ValueError(f"Image {index} has objects that overlap; only maps without layers are supported.")
        yield image.permute(1, 2, 0).numpy(), segments.map.numpy(), segments.classes


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: objects overlap, or the folder is not empty.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="dataset: Hub name, or local folder")
    parser.add_argument("output", type=Path, help="new or empty folder")
    parser.add_argument("--task", choices=("instance", "panoptic"), required=True, help="task of the annotations")
    parser.add_argument("--share", type=float, default=0.05, help="share of the objects that get an error")
    parser.add_argument("--splits", nargs="+", default=["train", "validation", "test"], help="the first one is changed")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    args = parser.parse_args(argv)
    check_range("share", args.share, "[0, 1]")
    data = DataArguments(dataset_name=args.source, task=args.task)
    datasets = {split: open_dataset(data, split) for split in args.splits}
    labels = datasets[args.splits[0]].labels
    planter = Planter(labels.things, args.share, args.seed)
    copies = {split: scenes(dataset) for split, dataset in datasets.items()}
    first = copies[args.splits[0]]
    copies[args.splits[0]] = (planter.plant(scene, row) for row, scene in enumerate(first))
    write_splits(args.output, copies, labels.names, labels.things)
    write_json(planter.planted, args.output / "planted.json", indent=None)
    counts = Counter(error["kind"] for error in planter.planted)
    print(f"{len(planter.planted)} errors: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}")


if __name__ == "__main__":
    run_command(main)
