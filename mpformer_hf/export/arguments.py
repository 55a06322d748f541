"""What is exported, and how."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..utils.arguments import CheckedArguments, argument, option

Precision = Literal["fp32", "fp16", "int8"]


@dataclass
class ExportArguments(CheckedArguments):
    """What is exported, and how."""

    _argument_group_name = "export"

    model: str = argument("model", "saved MP-Former or Mask2Former: folder or Hub name")
    file: Path = argument("file", "new file: .onnx, .pt2, .aoti.pt2, .pte, .tflite or .mlpackage")
    height: int = option(512, "Height of the traced images, a multiple of 32.")
    width: int = option(512, "Width of the traced images, a multiple of 32.")
    with_postprocessing: bool = option(False, "From 8-bit images to results.")
    detections: int = option(100, "with_postprocessing: number of instances of an image.")
    precision: Precision = option("fp32", "Precision of an ONNX file.")
    photos: Path | None = option(
        None, "Folder of typical images: results are compared on them; int8: also for the ranges of values."
    )

    @property
    def is_compared(self) -> bool:
        """Whether the results of the file can be compared with those of the model."""
        return not self.with_postprocessing and self.file.suffix != ".mlpackage"
