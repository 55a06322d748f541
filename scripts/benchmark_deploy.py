"""Latency and memory of deployed models on the CPU, side by side: eager, compiled, onnxruntime and OpenVINO, in
float32 and int8; and what int8 does to the score of a trained model.

python -m scripts.benchmark_deploy latency --backbone r50 --side 512 --output_file training/results/deploy_r50_cpu.json
python -m scripts.benchmark_deploy score --model outputs/yours --dataset_name data/nuclei_tiles --task instance \\
    --calibration photos/ --height 160 --width 160 --output_file training/results/deploy_score.json

`latency` uses random weights and noise; each round runs all variants in turn, and the medians are compared with eager.
Memory is that of a process for each variant, above its imports. Compiled variants need a C++ compiler.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.evaluation.evaluator import evaluate_model, evaluation_loader
from mpformer_hf.exporting import OUTPUTS, export
from mpformer_hf.files import write_json
from mpformer_hf.loading import load_model, load_processor

from .benchmark.models import BACKBONES


class Runtime(nn.Module):
    """An exported file as a model that the evaluation takes.

    Args:
        run: from `pixel_values`, NumPy, to both logits.
    """

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, pixel_values, pixel_mask=None):
        logits = [torch.from_numpy(np.ascontiguousarray(x)) for x in self.run(pixel_values.numpy())]
        return SimpleNamespace(**dict(zip(OUTPUTS, logits, strict=True)), pixel_mask=pixel_mask)


def onnxruntime_runner(file: Path):
    """Runs a file with onnxruntime, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(OUTPUTS, {"pixel_values": pixels})


def openvino_runner(file: Path, precision: str):
    """Runs a file with OpenVINO; `precision` is that of its float operators."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    request = compiled.create_infer_request()

    def run(pixels):
        results = request.infer({"pixel_values": pixels})
        return [results[name] for name in OUTPUTS]

    return run


def quantized(model: nn.Module) -> nn.Module:
    """The model with linear layers of int8 weights and activations (torchao), in place."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def eager_runner(folder: Path, int8: bool = False, compiled: bool = False):
    """Runs the saved model with PyTorch; int8: linear layers, with torchao."""
    model = MPFormerForUniversalSegmentation.from_pretrained(folder / "model")
    if int8:
        quantized(model)
    if compiled:
        model = torch.compile(model)

    def run(pixels):
        with torch.no_grad():
            return model(torch.from_numpy(pixels))

    return run


VARIANTS = {  # from the folder of the model and its exports
    "eager float32": eager_runner,
    "eager int8": partial(eager_runner, int8=True),
    "compiled float32": partial(eager_runner, compiled=True),
    "compiled int8": partial(eager_runner, int8=True, compiled=True),
    "onnxruntime float32": lambda folder: onnxruntime_runner(folder / "fp32.onnx"),
    "onnxruntime int8": lambda folder: onnxruntime_runner(folder / "int8.onnx"),
    "OpenVINO float32": lambda folder: openvino_runner(folder / "fp32.onnx", "f32"),
    "OpenVINO bf16": lambda folder: openvino_runner(folder / "fp32.onnx", "bf16"),
    "OpenVINO int8": lambda folder: openvino_runner(folder / "int8.onnx", "f32"),
}
MEMORY = """
import sys
from pathlib import Path
import numpy as np
from scripts.benchmark_deploy import VARIANTS
import torch
from training.memory import peak_memory
cpu = torch.device("cpu")
before, folder = peak_memory(cpu), Path(sys.argv[2])
run = VARIANTS[sys.argv[1]](folder)
for _ in range(3):
    run(np.load(folder / "pixels.npy"))
print(peak_memory(cpu) - before)
"""


def measure_memory(name: str, folder: Path) -> float:
    """Peak memory of a variant in a process of its own, in MiB above that of the imports."""
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, name, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return round(float(done.stdout.split()[-1]), 1)


def measure(variants: dict, pixels: np.ndarray, rounds: int) -> dict[str, dict]:
    """Median seconds of each variant, and its ratio to eager: median, least and most of the rounds."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run(pixels)
            if round_:  # the first one compiles
                times[name].append(time.perf_counter() - start)
    eager = times["eager float32"]
    rows = {}
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, eager, strict=True)]
        ratio = statistics.median(own) / statistics.median(eager)
        row = {"seconds": statistics.median(own), "ratio": ratio, "least": min(ratios), "most": max(ratios)}
        rows[name] = {key: round(value, 4) for key, value in row.items()}
    return rows


def latency(args: argparse.Namespace) -> dict:
    """Latency and memory of a model with random weights."""
    torch.manual_seed(0)
    side = args.side
    model = MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=BACKBONES[args.backbone])).eval()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        MPFormerImageProcessor().save_pretrained(folder / "model")
        (folder / "photos").mkdir()
        for i in range(4):
            noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "photos" / f"{i}.png")
        pixels = rng.standard_normal((1, 3, side, side)).astype(np.float32)
        np.save(folder / "pixels.npy", pixels)
        sizes = {}
        for precision in ("fp32", "int8"):
            file, calibration = folder / f"{precision}.onnx", folder / "photos" if precision == "int8" else None
            export(str(folder / "model"), file, side, side, precision=precision, calibration=calibration)
            sizes[f"{precision} MiB"] = round(file.stat().st_size / 2**20, 1)
        memory = {name: measure_memory(name, folder) for name in VARIANTS}
        rows = measure({name: build(folder) for name, build in VARIANTS.items()}, pixels, args.rounds)
    for name, row in rows.items():
        row["memory_mib"] = memory[name]
        spread = f"({row['least']:.2f} to {row['most']:.2f})"
        print(f"{name:<22}{row['seconds']:8.3f} s  x{row['ratio']:.2f} {spread}{memory[name]:9.0f} MiB")
    return {"backbone": args.backbone, "side": side, "threads": torch.get_num_threads(), "files": sizes, "rows": rows}


def score(args: argparse.Namespace) -> dict:
    """Scores of a trained model and of its exports."""
    data = DataArguments(dataset_name=args.dataset_name, task=args.task, eval_split=args.split)
    split, processor = open_dataset(data, args.split, args.max_samples), load_processor(args.model)
    accelerator, rows = Accelerator(cpu=True), {}
    with tempfile.TemporaryDirectory() as name:
        models = {"eager float32": load_model(args.model), "eager int8": quantized(load_model(args.model))}
        for precision in ("fp32", "fp16", "int8"):
            file = Path(name) / f"{precision}.onnx"
            calibration = args.calibration if precision == "int8" else None
            export(args.model, file, args.height, args.width, precision=precision, calibration=calibration)
            models[f"onnxruntime {precision}"] = Runtime(onnxruntime_runner(file))
            if precision != "fp16":
                models[f"OpenVINO {precision}"] = Runtime(openvino_runner(file, "f32"))
        models["OpenVINO bf16"] = Runtime(openvino_runner(Path(name) / "fp32.onnx", "bf16"))
        for title, model in models.items():
            loader = evaluation_loader(split, processor, accelerator, 8)
            scores = evaluate_model(model, processor, loader, accelerator)
            rows[title] = {key: round(value, 4) for key, value in scores.items() if isinstance(value, float)}
            print(title, rows[title])
    return {"model": Path(args.model).name, "dataset": Path(args.dataset_name).name, "split": args.split, "rows": rows}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("latency", help="latency with random weights")
    timing.add_argument("--backbone", choices=BACKBONES, default="r50", help="backbone")
    timing.add_argument("--side", type=int, default=512, help="height and width of the image, a multiple of 32")
    timing.add_argument("--rounds", type=int, default=5, help="rounds")
    scoring = commands.add_parser("score", help="scores of a trained model")
    scoring.add_argument("--model", required=True, help="saved model")
    scoring.add_argument("--dataset_name", required=True, help="dataset")
    scoring.add_argument("--task", required=True, help="task")
    scoring.add_argument("--split", default="validation", help="split")
    scoring.add_argument("--calibration", type=Path, required=True, help="folder of images for int8")
    scoring.add_argument("--height", type=int, default=512, help="height of the traced images")
    scoring.add_argument("--width", type=int, default=512, help="width of the traced images")
    scoring.add_argument("--max_samples", type=int, help="use only the first images")
    for command in (timing, scoring):
        command.add_argument("--output_file", type=Path, help="JSON of the results")
    args = parser.parse_args(argv)
    results = latency(args) if args.command == "latency" else score(args)
    if args.output_file:
        write_json(results, args.output_file)


if __name__ == "__main__":
    run_command(main)
