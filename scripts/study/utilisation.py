"""Query utilisation of things and of stuff: how early the query of an object is decided, by saved models.

python -m scripts.study.utilisation outputs/study/question_2/off-0/last outputs/study/question_2/on-0/last \\
    --dataset_name data/camvid-panoptic --eval_split test --output_file utilisation.json

For each prediction of the decoder: the share of objects whose matched query is that of the last prediction
(`mpformer_hf/diagnostics.py`), for things and stuff apart.
"""

import argparse
import json
from pathlib import Path

import torch

from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.files import write_json
from mpformer_hf.loading import load_model

from .reasons import matched_queries


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="saved models")
    parser.add_argument("--dataset_name", required=True, help="panoptic dataset")
    parser.add_argument("--eval_split", required=True, help="split")
    parser.add_argument("--output_file", type=Path, help="JSON of the results")
    args = parser.parse_args(argv)
    split = open_dataset(DataArguments(dataset_name=args.dataset_name, task="panoptic"), args.eval_split)
    results = {}
    for folder in args.models:
        queries, labels = matched_queries(load_model(str(folder)), folder, split)
        is_thing = torch.isin(labels, torch.tensor(sorted(split.labels.things), dtype=labels.dtype))
        results[str(folder)] = {
            name: {"objects": int(own.sum()), "query_utilisation": shares(queries[:, own])}
            for name, own in (("things", is_thing), ("stuff", ~is_thing))
        }
    print(json.dumps(results))
    if args.output_file:
        write_json(results, args.output_file)


def shares(queries: torch.Tensor) -> list[float]:
    """Share of objects whose query is the last one, for each prediction; `queries` int64 `[P, T]`."""
    return [round(value, 4) for value in (queries == queries[-1]).float().mean(1).tolist()]


if __name__ == "__main__":
    run_command(main)
