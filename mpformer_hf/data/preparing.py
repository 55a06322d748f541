"""`mpformer prepare`: write the splits of a dataset as parquet files."""

import logging
import re
import sys

from ..utils.files import check_new_folder, write_json, write_new_folder
from .arguments import DataArguments, PreparationArguments
from .census import log_census
from .completeness import stated_columns
from .dataset import SegmentationDataset
from .opening import open_dataset
from .parquet import describe_categories, ids_in_files, write_parquet
from .splits import check_splits


def prepare(args: PreparationArguments) -> None:
    """Write the splits of a dataset.

    Raises:
        ValueError: the folder is not empty, a split does not exist, or an image or annotation is invalid.
    """
    check_new_folder(args.output)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    wrong = [split for split in args.splits if not re.fullmatch(r"\w+(\.\w+)*", split)]
    if wrong or len(set(args.splits)) < len(args.splits):
        raise ValueError(f"--splits must be different names of letters, digits and _, got {' '.join(args.splits)}.")
    fields: dict = {"dataset_name": args.dataset, "task": args.task, "dataset_config_name": args.version}
    fields |= {"id2label": args.id2label, "validation_share": args.validation_share}
    same = ("allow_outside_files", "skip_bad_images", "do_reduce_labels", "void_label", "image_column", "label_column")
    fields |= {name: getattr(args, name) for name in same}
    pairs = [(a, b) for i, a in enumerate(args.splits) for b in args.splits[i + 1 :]] or [
        (args.splits[0], "validation")
    ]
    for train_split, eval_split in pairs if len(args.splits) > 1 else ():
        check_splits(DataArguments(**fields, train_split=train_split, eval_split=eval_split))
    data = DataArguments(**fields, train_split=pairs[0][0], eval_split=pairs[0][1])
    labels = None
    categories: dict[str, object] = {}
    ids: list[int] = []
    opened: dict[str, SegmentationDataset] = {}
    with write_new_folder(args.output) as temporary:
        for split in args.splits:
            opened[split] = open_dataset(data, split, labels=labels)
            labels = opened[split].labels
        columns = stated_columns({name for dataset in opened.values() for name in dataset.rows.column_names})
        for split, dataset in opened.items():
            log_census(dataset, args.task, split)
            categories = categories or describe_categories(dataset, args.task)
            ids = ids or ids_in_files(dataset.labels, args.task)  # another split may have other ids of its classes
            write_parquet(dataset, args.task, temporary, split, args.workers, ids, columns)
        for name, content in categories.items():
            write_json(content, temporary / name)
    print(f"{', '.join(args.splits)} of {args.dataset} are in {args.output}")
