"""Write a dataset as parquet files in the Hub's layout: once, so that training starts and reads faster and can stream.

mpformer prepare data/coco data/coco_instance --task instance
mpformer prepare data/own data/own_prepared --task semantic --splits train val
mpformer prepare you/your-dataset data/prepared --task panoptic --splits train
mpformer prepare data/labelme data/labelme_prepared --task instance --validation_share 0.1

Images, their ids and names, and the ids of categories are kept; labels become PNG maps or RLE. What is invalid is named
before anything is written in place. For official scores evaluate on the original: Cityscapes' AP needs its instanceIds.
Needs `pip install "mpformer-hf[data]"`.
"""

import argparse
import logging
import os
import re
import sys
from pathlib import Path

from ..data.arguments import DataArguments
from ..data.dataset import open_dataset
from ..data.parquet import describe_categories, write_parquet
from ..data.splits import check_label_maps, check_splits
from ..model.image_processing_mpformer import TASKS
from ..utils.files import check_new_folder, write_json, write_new_folder


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: the folder is not empty, a split does not exist, or an image or annotation is invalid.
    """
    parser = argparse.ArgumentParser(
        "mpformer prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="Hub name or local folder")
    parser.add_argument("output", type=Path, help="new folder")
    parser.add_argument("--task", choices=TASKS, required=True, help="task that the labels are for")
    parser.add_argument("--splits", nargs="+", default=["train", "validation"], help="splits; their names are kept")
    parser.add_argument("--validation_share", type=float, help="share of the first split that is the second one")
    parser.add_argument("--id2label", help="JSON file of class names, or ade20k, ...; default: from the dataset")
    parser.add_argument("--version", help="configuration of the dataset, such as v2.0 of Mapillary Vistas")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that read images")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise ValueError("--workers must be at least 1.")
    check_new_folder(args.output)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    wrong = [split for split in args.splits if not re.fullmatch(r"\w+(\.\w+)*", split)]
    if wrong or len(set(args.splits)) < len(args.splits):
        raise ValueError(f"--splits must be different names of letters, digits and _, got {' '.join(args.splits)}.")
    fields = {"dataset_name": args.dataset, "task": args.task, "dataset_config_name": args.version}
    fields |= {"id2label": args.id2label, "validation_share": args.validation_share}
    pairs = [(a, b) for i, a in enumerate(args.splits) for b in args.splits[i + 1 :]] or [
        (args.splits[0], "validation")
    ]
    for train_split, eval_split in pairs if len(args.splits) > 1 else ():
        check_splits(DataArguments(**fields, train_split=train_split, eval_split=eval_split))
    data = DataArguments(**fields, train_split=pairs[0][0], eval_split=pairs[0][1])
    labels = None
    categories: dict[str, object] = {}
    with write_new_folder(args.output) as temporary:
        for split in args.splits:
            dataset = open_dataset(data, split, labels=labels)
            check_label_maps(dataset)
            labels, categories = dataset.labels, categories or describe_categories(dataset, args.task)
            write_parquet(dataset, args.task, temporary, split, args.workers)
        for name, content in categories.items():
            write_json(content, temporary / name)
    print(f"{', '.join(args.splits)} of {args.dataset} are in {args.output}")
