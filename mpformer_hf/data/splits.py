"""Images to train on and images to evaluate on, where a dataset has one split only."""

import logging
import os
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from ..utils.files import reading_inside
from .arguments import DataArguments
from .layouts.registry import find_layout

SPLIT_SEED = 0
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


def of_one(args: DataArguments, name: str) -> DataArguments:
    """The arguments of one of several datasets."""
    fields: dict = {"join_weights": []} if hasattr(args, "join_weights") else {}
    return replace(args, dataset_name=name, join=[], synonyms=None, **fields)


def check_splits(args: DataArguments) -> None:
    """Check that a local folder has annotations of its own for training and for evaluation.

    Raises:
        ValueError: one file or folder, which is of no split, would be used for both.
    """
    for name in args.join:
        check_splits(of_one(args, name))
    if not args.dataset_name or args.validation_share or args.train_split == args.eval_split:
        return
    roots = None if args.allow_outside_files else (os.path.realpath(args.dataset_name),)
    with reading_inside(roots):
        layout, folder = find_layout(args.dataset_name, args.task), Path(args.dataset_name)
        if layout is None:
            return
        train, evaluation = (layout.source(folder, s, args.task) for s in (args.train_split, args.eval_split))
        if train == evaluation:
            raise ValueError(
                f"{train} is of no split, so it would be used for training and for evaluation: give "
                "--validation_share 0.1, for example."
            )


def warn_of_common_images(train, evaluation) -> bool:
    """Log that evaluation uses training images, and return whether it does.

    Args:
        train, evaluation: opened splits (`SegmentationDataset`), not streamed.
    """
    paths = [set(paths_of(split)) for split in (train, evaluation)]
    common = paths[0] & paths[1]
    if common:
        text = "%d of %d evaluation images are also training images; --validation_share 0.1 divides one split."
        logger.warning(text, len(common), len(paths[1]))
    return bool(common)


def paths_of(split) -> list[str]:
    """Paths of the images of a local folder; empty for other datasets, which have the images in their rows."""
    return [row["path"] for row in split.rows[split.image_column] if row["path"]] if split.from_files else []
