"""Export of the inference model to ONNX or torch.export."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .files import write_atomically
from .loading import load_model
from .modeling_mpformer import MPFormerForUniversalSegmentation

STRIDE, LARGEST_BATCH, LONGEST_SIDE = 32, 64, 8192
# They compute window sizes with Python integers, which are traced as constants; to see that takes minutes.
FIXED_SIZE = ("swin", "swinv2")
OUTPUTS = ["class_queries_logits", "masks_queries_logits"]
TOLERANCE = 1e-3  # for mask logits, whose magnitude is in the tens


class ExportableModel(nn.Module):
    """The model as a function of one tensor with two outputs."""

    def __init__(self, model: MPFormerForUniversalSegmentation):
        super().__init__()
        self.model = model
        encoder = model.model.pixel_level_module.encoder
        encoder.set_attn_implementation("eager")  # fused attention cannot be exported to ONNX
        self.fixed_size = model.config.backbone_config.model_type in FIXED_SIZE

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """float `[B, 3, H, W]` -> class logits `[B, Q, K + 1]` and mask logits `[B, Q, H / 4, W / 4]`."""
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in OUTPUTS)


@dataclass
class Exported:
    """A traced model.

    Attributes:
        program: of torch.export, with a dynamic batch size.
        dynamic_size: whether the image size is dynamic too.
        height, width: sides of the traced images in pixels.
        difference: largest absolute difference of a logit.
    """

    program: ExportedProgram
    dynamic_size: bool
    height: int
    width: int
    difference: float = math.inf

    def other_images(self) -> Tensor:
        """Images of another batch size and, if it is dynamic, of another image size than the traced ones."""
        grow = STRIDE if self.dynamic_size else 0
        size = (3, 3, self.height + grow, self.width + 2 * grow)
        return torch.randn(size, generator=torch.Generator().manual_seed(0))


def export_program(model: ExportableModel, height: int, width: int, check: Callable[[Exported], float]) -> Exported:
    """`torch.export` with a dynamic batch size and, where the backbone allows it, dynamic image size.

    Args:
        model: the model.
        height, width: of the traced images.
        check: returns the largest difference of a logit of what is made of the program, for `other_images`; if it is
            above `TOLERANCE` or fails, the image size is not dynamic.

    Raises:
        ValueError: the model cannot be exported.
    """
    rows, columns = (Dim(name, min=2, max=LONGEST_SIDE // STRIDE) for name in ("rows", "columns"))
    batch = {0: Dim("batch", min=1, max=LARGEST_BATCH)}
    sizes = {**batch, 2: STRIDE * rows, 3: STRIDE * columns}
    example = torch.zeros(2, 3, height, width)
    for dynamic in (batch,) if model.fixed_size else (sizes, batch):
        try:
            with torch.no_grad():
                program = torch.export.export(model, (example,), dynamic_shapes={"pixel_values": dynamic})
            exported = Exported(program, 2 in dynamic, height, width)
            exported.difference = check(exported)
        except Exception as error:  # of many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        if exported.difference <= TOLERANCE:
            return exported
        reason = f"its logits differ from the model's by {exported.difference:.1e}"
    raise ValueError(f"The model cannot be exported at {height}x{width}: {reason}; nothing was saved.")


def require_onnx() -> None:
    """
    Raises:
        ValueError: packages for ONNX are missing.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'ONNX export needs {error.name}: pip install "mpformer-hf[onnx]".') from error


def save_onnx(program: ExportedProgram, file: Path) -> None:
    """Write an ONNX file."""
    names = {"input_names": ["pixel_values"], "output_names": OUTPUTS}
    torch.onnx.export(program, **names, dynamo=True, verbose=False).save(file)


def run_exported(file: Path, pixel_values: Tensor) -> list[Tensor]:
    """Outputs of an exported file."""
    if file.suffix == ".pt2":
        return list(torch.export.load(file).module()(pixel_values))
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(OUTPUTS, {"pixel_values": pixel_values.numpy()})]


def largest_difference(model: ExportableModel, pixel_values: Tensor, outputs: Iterable[Tensor]) -> float:
    """Largest absolute difference between logits and those of the model; infinite if they are not finite."""
    with torch.no_grad():
        differences = [(ours - theirs).abs().max() for ours, theirs in zip(model(pixel_values), outputs, strict=True)]
    largest = torch.stack(differences).max().item()
    return largest if math.isfinite(largest) else math.inf


def save_and_compare(model: ExportableModel, exported: Exported, file: Path) -> float:
    """Save a traced model; returns the largest difference of the logits of the file."""
    if file.suffix == ".onnx":
        save_onnx(exported.program, file)
    else:
        torch.export.save(exported.program, file)
    images = exported.other_images()
    return largest_difference(model, images, run_exported(file, images))


def export(name: str, file: Path, height: int, width: int) -> tuple[float, bool]:
    """Export a saved model; the file is checked against the model before it is put in place.

    Args:
        name: saved MP-Former or Mask2Former, folder or Hub name.
        file: new file, `.onnx` or `.pt2`.
        height, width: size of the traced images in pixels, multiples of 32.

    Returns:
        largest absolute difference of a logit, and whether the image size is dynamic.

    Raises:
        ValueError: an argument is invalid, or the exported model differs from the original.
    """
    if file.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{file} must end in .onnx or .pt2.")
    if file.exists():
        raise ValueError(f"{file} exists; choose another file name.")
    if height % STRIDE or width % STRIDE or min(height, width) < 2 * STRIDE:
        raise ValueError(f"{height}x{width}: sides must be multiples of {STRIDE}, at least {2 * STRIDE}.")
    if file.suffix == ".onnx":
        require_onnx()
    model = ExportableModel(load_model(name))
    with write_atomically(file) as temporary:
        exported = export_program(model, height, width, partial(save_and_compare, model, file=temporary))
    return exported.difference, exported.dynamic_size
