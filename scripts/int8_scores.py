"""Scores of a trained model with its linear layers in int8 (torchao), beside float32.

python -m scripts.int8_scores outputs/quickstart/model --dataset_name outputs/quickstart/data --eval_split test \\
    --task panoptic --output_file training/results/int8_quickstart.json

Weights: they are int8, products are in the model's precision. Weights and activations: activations are int8 too, with a
scale for each row, computed at inference. Convolutions, norms and the packed projections of the cross-attention stay as
they are.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

from mpformer_hf.arguments import parse
from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.evaluation.evaluator import evaluate_model, evaluation_loader
from mpformer_hf.evaluation.task_metrics import TASK_METRICS, format_score
from mpformer_hf.files import write_json
from mpformer_hf.loading import load_model, load_processor

CONFIGS = {
    "float32": None,
    "int8 weights": Int8WeightOnlyConfig,
    "int8 weights and activations": Int8DynamicActivationInt8WeightConfig,
}


def parameter_megabytes(model: torch.nn.Module) -> float:
    """Size of all parameters and buffers, in MB."""
    tensors = [*model.parameters(), *model.buffers()]
    plain = (part for x in tensors for part in (parts_of(x) if hasattr(x, "__tensor_flatten__") else [x]))
    return sum(x.numel() * x.element_size() for x in plain) / 1e6


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors of a quantised one."""
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="saved MP-Former: folder or Hub name")
    parser.add_argument("--output_file", type=Path, help="JSON file of the scores")
    args, flags = parser.parse_known_args(argv)
    (data,) = parse([DataArguments], flags)
    processor, accelerator = load_processor(args.model), Accelerator()
    processor.task = data.task
    split = open_dataset(data, data.eval_split, data.max_eval_samples)
    rows = {}
    for title, config in CONFIGS.items():
        model = load_model(args.model).to(accelerator.device)
        if config is not None:
            quantize_(model, config())
        scores = evaluate_model(model, processor, evaluation_loader(split, processor, accelerator, 1), accelerator)
        rows[title] = {name: scores[name] for name in TASK_METRICS[data.task]}
        rows[title]["parameters_mb"] = round(parameter_megabytes(model), 2)
        main_scores = (f"{name} {format_score(rows[title][name])}" for name in TASK_METRICS[data.task][:2])
        print(f"{title}: {', '.join(main_scores)}, {rows[title]['parameters_mb']} MB", flush=True)
    if args.output_file:
        write_json(rows, args.output_file)


if __name__ == "__main__":
    run_command(main)
