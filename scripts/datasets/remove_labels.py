"""Make the training labels of a panoptic parquet dataset incomplete, for the study of missing labels.

python -m scripts.datasets.remove_labels data/nuclei_tiles data/nuclei_missing --objects 0.6

Objects, classes or a region of each training image lose their labels, by a seed; other splits stay. With `--known`,
what was removed stays as a crowd, which has no loss: an oracle that knows where it lies.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from PIL import Image

from mpformer_hf.utils.command import run_command
from mpformer_hf.utils.files import check_new_folder, write_new_folder

from .panoptic_parquet import FEATURES, SEGMENT, write_split

COMPLETENESS = {"annotated_classes": [Value("int64")], "complete": Value("bool")}


def removed_segments(row: dict, args: argparse.Namespace, classes: list[int], rng: np.random.Generator) -> set[int]:
    """Ids of the segments of a row that lose their labels. Of classes, the row says which are kept."""
    segments = row["segments_info"]
    if args.objects:
        return {s["id"] for s, drawn in zip(segments, rng.random(len(segments)), strict=True) if drawn < args.objects}
    kept = sorted(rng.permutation(classes)[: round((1 - args.classes) * len(classes))].tolist())
    row["annotated_classes"] = kept
    return {s["id"] for s in segments if s["category_id"] not in kept}


def without_labels(row: dict, args: argparse.Namespace, classes: list[int], rng: np.random.Generator) -> dict:
    """A row whose labels are incomplete."""
    label = np.array(row["label"]).astype(np.int64)
    ids = label[..., 0] + 256 * label[..., 1] + 65536 * label[..., 2]
    row = {**row, "complete": not args.objects}
    if args.region:  # a band of columns
        width = round(args.region * ids.shape[1])
        first = int(rng.integers(ids.shape[1] - width + 1))
        new = int(ids.max()) + 1
        ids[:, first : first + width] = new
        void = {**dict.fromkeys(SEGMENT, 0), "id": new, "category_id": classes[0], "iscrowd": 1, "bbox": []}
        present = set(np.unique(ids).tolist())
        row["segments_info"] = [s for s in row["segments_info"] if s["id"] in present] + [void]
    else:
        removed = removed_segments(row, args, classes, rng)
        if args.known:
            row["segments_info"] = [{**s, "iscrowd": int(s["id"] in removed)} for s in row["segments_info"]]
            row |= {"complete": True, "annotated_classes": None}
        else:
            row["segments_info"] = [s for s in row["segments_info"] if s["id"] not in removed]
            ids[np.isin(ids, sorted(removed))] = 0
    rgb = np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8)
    return {**row, "label": Image.fromarray(rgb)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of a panoptic parquet dataset")
    parser.add_argument("output", type=Path, help="new or empty folder")
    parser.add_argument("--objects", type=float, default=0.0, help="share of the objects that are removed")
    parser.add_argument("--classes", type=float, default=0.0, help="share of the classes of each image that is removed")
    parser.add_argument("--region", type=float, default=0.0, help="share of each image that becomes void")
    parser.add_argument("--known", action="store_true", help="keep what is removed as crowds")
    parser.add_argument("--without_column", action="store_true", help="do not say which classes are annotated")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    check_new_folder(args.output)
    rng = np.random.default_rng(args.seed)
    features = Features({**FEATURES, **COMPLETENESS})
    with write_new_folder(args.output) as temporary:
        for file in sorted((args.source / "data").glob("*.parquet")):
            split = file.name.split("-")[0]
            rows = list(Dataset.from_parquet(str(file)))
            classes = sorted({s["category_id"] for row in rows for s in row["segments_info"]})
            if split == "train":
                rows = [without_labels(row, args, classes, rng) for row in rows]
            rows = [{"annotated_classes": None, "complete": None, **row} for row in rows]
            if args.without_column:
                rows = [{**row, "annotated_classes": None} for row in rows]
            write_split(rows, features, temporary, split)
        for file in args.source.glob("*.json"):
            (temporary / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    run_command(main)
