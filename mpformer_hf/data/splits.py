"""Images to train on and images to evaluate on, where a dataset has one split only."""

import logging
from pathlib import Path

import torch
from datasets import Dataset

from .arguments import DataArguments
from .layouts.registry import find_layout

SPLIT_SEED = 0
SAMPLED = 10  # images that are read to see whether label maps have classes
LISTS = {"segments_info", "objects", "instances", "masks", "text"}  # columns that say which segments an image has
logger = logging.getLogger(__name__)


def divide(rows: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Training and validation images of one split, drawn by a fixed seed.

    Raises:
        ValueError: one of them would be empty.
    """
    held_out = round(len(rows) * share)
    if not 0 < held_out < len(rows):
        raise ValueError(f"validation_share {share} of {len(rows)} images leaves {held_out} to evaluate on.")
    parts = rows.train_test_split(test_size=held_out, seed=SPLIT_SEED)
    return parts["train"], parts["test"]


def check_splits(args: DataArguments) -> None:
    """Check that a local folder has annotations of its own for training and for evaluation.

    Raises:
        ValueError: one file or folder, which is of no split, would be used for both.
    """
    if not args.dataset_name or args.validation_share or args.train_split == args.eval_split:
        return
    layout, folder = find_layout(args.dataset_name, args.task), Path(args.dataset_name)
    if layout is not None:
        train, evaluation = (layout.source(folder, s, args.task) for s in (args.train_split, args.eval_split))
        if train == evaluation:
            raise ValueError(
                f"{train} is of no split, so it would be used for training and for evaluation: give "
                "--validation_share 0.1, for example."
            )


def check_label_maps(dataset) -> None:
    """Check that label maps have classes. Some images from all over the split are read; all of them, if these have no
    class, or the class 0 and void only.

    Args:
        dataset: an opened split (`SegmentationDataset`), not streamed.

    Raises:
        ValueError: no image has a class, or all have the class 0 and void only, as masks of 0 and 255 do.
    """
    names, number = dataset.labels.names, len(dataset)
    if not LISTS.isdisjoint(dataset.rows.column_names):
        return  # the segments are listed, so what is not is background
    sample = list(range(0, number, -(-number // SAMPLED)))
    found, void = set(), False
    for index in (*sample, *sorted(set(range(number)) - set(sample))):
        segments = dataset[index][1]
        found |= set(segments.classes.values())
        void |= bool((~torch.isin(segments.map, torch.tensor(list(segments.classes), dtype=torch.int32))).any())
        suspicious = void and (not found or (found == {0} and len(names) == 2))
        if not suspicious and index >= sample[-1]:
            return
    only = f"have only {names[0]!r} and void" if found else "have no class"
    raise ValueError(f"All {number} images {only}; 255 is void: divide masks of 0 and 255 by 255.")


def check_training_images(train, evaluation) -> None:
    """Check what the flags cannot show: that label maps have classes (`check_label_maps`), and that evaluation does not
    use training images, which is a warning.

    Args:
        train, evaluation: the opened splits (`SegmentationDataset`), not streamed.

    Raises:
        ValueError: see `check_label_maps`.
    """
    check_label_maps(train)
    paths = [set(paths_of(split)) for split in (train, evaluation)]
    common = paths[0] & paths[1]
    if common:
        logger.warning("%d of %d evaluation images are also training images.", len(common), len(paths[1]))


def paths_of(split) -> list[str]:
    """Paths of the images of a local folder; empty for other datasets, which have the images in their rows."""
    return [row["path"] for row in split.rows[split.image_column] if row["path"]] if split.from_files else []
