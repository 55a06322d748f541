"""Make the training labels of a panoptic parquet dataset incomplete, for the study of missing labels.

python -m scripts.datasets.remove_labels data/nuclei_tiles data/nuclei_missing --objects 0.6

Objects or a region of each training image lose their labels, by a seed; other splits stay. With `--known`, the removed
objects stay as crowds, which have no loss: an oracle that knows where they lie. The region has category 0.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from PIL import Image

from mpformer_hf.utils.command import run_command
from mpformer_hf.utils.files import check_new_folder, write_new_folder

from .panoptic_parquet import FEATURES, SEGMENT, write_split


def without_labels(row: dict, args: argparse.Namespace, rng: np.random.Generator) -> dict:
    """A row whose labels are incomplete."""
    label = np.array(row["label"]).astype(np.int64)
    ids = label[..., 0] + 256 * label[..., 1] + 65536 * label[..., 2]
    segments, complete = row["segments_info"], True
    if args.region:  # a band of columns
        width, new = round(args.region * ids.shape[1]), int(ids.max()) + 1
        first = int(rng.integers(ids.shape[1] - width + 1))
        ids[:, first : first + width] = new
        present = set(np.unique(ids).tolist())
        crowd = {**dict.fromkeys(SEGMENT, 0), "id": new, "iscrowd": 1, "bbox": []}
        segments = [segment for segment in segments if segment["id"] in present] + [crowd]
    else:
        drawn = rng.random(len(segments)) < args.objects
        if args.known:
            segments = [{**s, "iscrowd": int(removed)} for s, removed in zip(segments, drawn, strict=True)]
        else:
            removed = [segment["id"] for segment, lost in zip(segments, drawn, strict=True) if lost]
            segments, complete = [s for s in segments if s["id"] not in removed], False
            ids[np.isin(ids, removed)] = 0
    rgb = np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8)
    return {**row, "label": Image.fromarray(rgb), "segments_info": segments, "complete": complete}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of a panoptic parquet dataset")
    parser.add_argument("output", type=Path, help="new or empty folder")
    parser.add_argument("--objects", type=float, default=0.0, help="share of the objects that are removed")
    parser.add_argument("--region", type=float, default=0.0, help="share of each image that becomes void")
    parser.add_argument("--known", action="store_true", help="keep the removed objects as crowds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    check_new_folder(args.output)
    rng = np.random.default_rng(args.seed)
    features = Features({**FEATURES, "complete": Value("bool")})
    with write_new_folder(args.output) as temporary:
        for file in sorted((args.source / "data").glob("*.parquet")):
            split = file.name.split("-")[0]
            rows = [{**row, "complete": None} for row in Dataset.from_parquet(str(file))]
            if split == "train":
                rows = [without_labels(row, args, rng) for row in rows]
            write_split(rows, features, temporary, split)
        for file in args.source.glob("*.json"):
            (temporary / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    run_command(main)
