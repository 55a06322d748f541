"""Images to train on and images to evaluate on, where a dataset has one split only."""

from pathlib import Path

from datasets import Dataset

from .arguments import DataArguments
from .coco import choose_annotations, is_coco_folder

SPLIT_SEED = 0


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
    """Check that a COCO folder has annotations of its own for training and for evaluation.

    Raises:
        ValueError: one file, which is of no split, would be used for both.
    """
    if not args.dataset_name or args.validation_share or args.train_split == args.eval_split:
        return
    folder = Path(args.dataset_name)
    if is_coco_folder(folder):
        train, evaluation = (choose_annotations(folder, s, args.task) for s in (args.train_split, args.eval_split))
        if train == evaluation:
            raise ValueError(
                f"{train} is of no split, so it would be used for training and for evaluation: give "
                "--validation_share 0.1, for example."
            )
