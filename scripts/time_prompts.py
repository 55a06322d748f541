"""Time of a call of `model.refine` for an encoded image, as a share of the full forward pass of the model.

python -m scripts.time_prompts --output_file training/results/study/prompts_time.json

A ResNet-50 MP-Former with random weights and 80 classes. Forward pass and calls take turns in one process; the result
is the ratio of the medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import ResNetConfig

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation
from mpformer_hf.cli.main import run_command
from mpformer_hf.files import write_json

SIZES = ((512, 512), (800, 1216))
PROMPTS = (1, 10, 50)


def seconds(call: Callable[[], object]) -> float:
    """Time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="number of turns")
    parser.add_argument("--output_file", type=Path, help="JSON of the results")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    backbone = ResNetConfig(out_features=[f"stage{i}" for i in range(1, 5)])
    model = MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=backbone, num_labels=80)).eval()
    rows = []
    for height, width in SIZES:
        image = torch.randn(1, 3, height, width)
        features, corner = model.encode(image), torch.rand(max(PROMPTS), 2) * torch.tensor([width, height]) * 0.7
        boxes = torch.cat((corner, corner + 100), 1)
        calls = {"forward": lambda image=image: model(image)}
        for count in PROMPTS:
            prompts = {"boxes": boxes[:count], "labels": [0] * count}
            calls[count] = lambda features=features, prompts=prompts: model.refine(features, **prompts)
        times = {name: [] for name in calls}
        for _ in range(args.rounds + 1):
            for name, call in calls.items():
                times[name].append(seconds(call))
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first is a warm-up
        for count in PROMPTS:
            row = {"height": height, "width": width, "prompts": count, "seconds": round(medians[count], 4)}
            row |= {"share_of_forward": round(medians[count] / medians["forward"], 4)}
            rows.append(row)
            print(row)
    if args.output_file:
        write_json({"threads": torch.get_num_threads(), "rows": rows}, args.output_file)


if __name__ == "__main__":
    run_command(main)
