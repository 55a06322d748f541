"""Export of the inference model to ONNX or torch.export."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .files import write_atomically
from .loading import load_model
from .modeling_mpformer import MPFormerForUniversalSegmentation

STRIDE, LARGEST_BATCH, LONGEST_SIDE = 32, 64, 8192
FIXED_SIZE = ("swin",)  # pads its windows with Python integers, which are traced as constants
OUTPUTS = ["class_queries_logits", "masks_queries_logits"]
TOLERANCE = 1e-3  # for mask logits, whose magnitude is in the tens


class ExportableModel(nn.Module):
    """The model as a function of one tensor with two outputs."""

    def __init__(self, model: MPFormerForUniversalSegmentation):
        super().__init__()
        self.model = model
        encoder = model.model.pixel_level_module.encoder
        encoder.set_attn_implementation("eager")  # fused attention cannot be exported to ONNX
        self.dynamic_size = model.config.backbone_config.model_type not in FIXED_SIZE

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """float `[B, 3, H, W]` -> class logits `[B, Q, K + 1]` and mask logits `[B, Q, H / 4, W / 4]`."""
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in OUTPUTS)


def export_program(model: ExportableModel, height: int, width: int) -> ExportedProgram:
    """`torch.export` with a dynamic batch size and, where the backbone allows it, dynamic image size."""
    dynamic = {0: Dim("batch", min=1, max=LARGEST_BATCH)}
    if model.dynamic_size:
        rows, columns = (Dim(name, min=2, max=LONGEST_SIDE // STRIDE) for name in ("rows", "columns"))
        dynamic |= {2: STRIDE * rows, 3: STRIDE * columns}
    example = torch.zeros(2, 3, height, width)
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes={"pixel_values": dynamic})


def save_onnx(program: ExportedProgram, file: Path) -> None:
    """Write an ONNX file.

    Raises:
        ValueError: packages are missing.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'ONNX export needs {error.name}: pip install "mpformer-hf[onnx]".') from error
    names = {"input_names": ["pixel_values"], "output_names": OUTPUTS}
    torch.onnx.export(program, **names, dynamo=True, verbose=False).save(file)


def run_exported(file: Path, pixel_values: Tensor) -> list[Tensor]:
    """Outputs of an exported file."""
    if file.suffix == ".pt2":
        return list(torch.export.load(file).module()(pixel_values))
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(OUTPUTS, {"pixel_values": pixel_values.numpy()})]


def verify_export(model: ExportableModel, file: Path, height: int, width: int) -> float:
    """Largest absolute difference between the logits of the file and of the model, for another batch size and, if it is
    dynamic, another image size than the traced ones.

    Raises:
        ValueError: it is above `TOLERANCE`.
    """
    if model.dynamic_size:
        height, width = height + STRIDE, width + 2 * STRIDE
    pixel_values = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = zip(model(pixel_values), run_exported(file, pixel_values), strict=True)
    difference = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    if not difference <= TOLERANCE:
        raise ValueError(f"The exported model differs from the original by {difference:.1e}; it was not saved.")
    return difference


def export(name: str, file: Path, height: int, width: int) -> float:
    """Export a saved model; the file is checked against the model before it is put in place.

    Args:
        name: saved MP-Former or Mask2Former, folder or Hub name.
        file: new file, `.onnx` or `.pt2`.
        height, width: size of the traced images in pixels, multiples of 32.

    Returns:
        largest absolute difference of a logit.

    Raises:
        ValueError: an argument is invalid, or the exported model differs from the original.
    """
    if file.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{file} must end in .onnx or .pt2.")
    if file.exists():
        raise ValueError(f"{file} exists; choose another file name.")
    if height % STRIDE or width % STRIDE or min(height, width) < 2 * STRIDE:
        raise ValueError(f"{height}x{width}: sides must be multiples of {STRIDE}, at least {2 * STRIDE}.")
    model = ExportableModel(load_model(name))
    with write_atomically(file) as temporary:
        program = export_program(model, height, width)
        if file.suffix == ".onnx":
            save_onnx(program, temporary)
        else:
            torch.export.save(program, temporary)
        return verify_export(model, temporary, height, width)
