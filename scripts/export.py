"""Export the inference model for use without transformers: ONNX, or a program of torch.export.

python scripts/export.py outputs/yours model.onnx
python scripts/export.py outputs/yours model.pt2 --height 512 --width 1024

The input is `pixel_values` `[batch, 3, height, width]`, as the image processor makes it; the outputs are
`class_queries_logits` and `masks_queries_logits`. Batches may have any size, and images any multiple of 32, unless the
backbone fixes it (Swin). The file is compared with the model, on other sizes where they are free, before it is put in
place. ONNX needs `pip install "mpformer-hf[onnx]"`.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":  # as a script: find the package `mpformer_hf`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mpformer_hf import MPFormerForUniversalSegmentation

STRIDE, LARGEST_BATCH, LONGEST_SIDE = 32, 64, 8192
FIXED_SIZE = ("swin",)  # it pads its windows by Python numbers, so the traced size stays
OUTPUTS = ["class_queries_logits", "masks_queries_logits"]
TOLERANCE = 1e-3  # of mask logits, which reach some tens


class Logits(nn.Module):
    """The model as a function of one tensor with two results."""

    def __init__(self, model: MPFormerForUniversalSegmentation):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in OUTPUTS)


def load(name: str) -> Logits:
    """A saved MP-Former or Mask2Former, ready to be traced.

    Raises:
        ValueError: there is none.
    """
    try:
        model = MPFormerForUniversalSegmentation.from_pretrained(name).eval()
    except OSError as error:
        raise ValueError(f"Cannot load {name}: {str(error).splitlines()[0]}") from error
    model.model.pixel_level_module.encoder.set_attn_implementation("eager")  # fused attention does not reach ONNX
    return Logits(model)


def has_free_size(logits: Logits) -> bool:
    """Whether exported images may have any size."""
    return logits.model.config.backbone_config.model_type not in FIXED_SIZE


def trace(logits: Logits, height: int, width: int) -> ExportedProgram:
    """`torch.export` with free batch and, where the backbone allows it, free sides."""
    dynamic = {0: Dim("batch", min=1, max=LARGEST_BATCH)}
    if has_free_size(logits):
        rows, columns = (Dim(name, min=2, max=LONGEST_SIDE // STRIDE) for name in ("rows", "columns"))
        dynamic |= {2: STRIDE * rows, 3: STRIDE * columns}
    example = torch.zeros(2, 3, height, width)
    with torch.no_grad():
        return torch.export.export(logits, (example,), dynamic_shapes={"pixel_values": dynamic})


def save_onnx(program: ExportedProgram, file: Path) -> None:
    """
    Raises:
        ValueError: the packages of the extra are missing.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'ONNX needs {error.name}: pip install "mpformer-hf[onnx]".') from error
    torch.onnx.export(program, input_names=["pixel_values"], output_names=OUTPUTS, dynamo=True, verbose=False).save(
        file
    )


def run(file: Path, pixel_values: Tensor) -> list[Tensor]:
    """What the exported file answers."""
    if file.suffix == ".pt2":
        return list(torch.export.load(file).module()(pixel_values))
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(OUTPUTS, {"pixel_values": pixel_values.numpy()})]


def largest_difference(logits: Logits, file: Path, height: int, width: int) -> float:
    """Between file and model, over all logits of a batch of another size than the traced one.

    Raises:
        ValueError: it is too large.
    """
    if has_free_size(logits):
        height, width = height + STRIDE, width + 2 * STRIDE
    pixel_values = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = zip(logits(pixel_values), run(file, pixel_values), strict=True)
    difference = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    if not difference <= TOLERANCE:
        raise ValueError(f"The exported model differs from this one by {difference:.1e}, so it was not kept.")
    return difference


def export(name: str, file: Path, height: int, width: int) -> float:
    """Write `file` and return its largest difference from the model.

    Raises:
        ValueError: an argument cannot be used, or the result is not the model.
    """
    if file.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{file} must end in .onnx or .pt2.")
    if file.exists():
        raise ValueError(f"{file} exists; name another file.")
    if height % STRIDE or width % STRIDE or min(height, width) < 2 * STRIDE:
        raise ValueError(f"{height}x{width}: sides must be multiples of {STRIDE}, at least {2 * STRIDE}.")
    logits = load(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".writing{file.suffix}")
    try:
        program = trace(logits, height, width)
        if file.suffix == ".onnx":
            save_onnx(program, aside)
        else:
            torch.export.save(program, aside)
        difference = largest_difference(logits, aside, height, width)
        aside.rename(file)
    finally:
        aside.unlink(missing_ok=True)
    return difference


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="saved MP-Former or Mask2Former: folder or Hub name")
    parser.add_argument("file", type=Path, help="new file, .onnx or .pt2")
    parser.add_argument("--height", type=int, default=512, help="of the images it is traced with")
    parser.add_argument("--width", type=int, default=512, help="of the images it is traced with")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        difference = export(args.model, args.file, args.height, args.width)
    except ValueError as error:
        sys.exit(f"error: {error}")
    size = args.file.stat().st_size / 2**20
    print(f"{args.model} -> {args.file} ({size:.1f} MiB): largest difference of a logit {difference:.1e}")


if __name__ == "__main__":
    main()
