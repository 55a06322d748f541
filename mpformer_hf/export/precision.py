"""ONNX files of half precision and of 8-bit integers."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.images import read_image
from ..utils.files import IMAGE_SUFFIXES, files_below

PRECISIONS = ("fp32", "fp16", "int8")
# Sampling positions and norms need more than the 11 bits of half precision.
FLOAT32 = ("GridSample", "Resize", "Sin", "Cos", "LayerNormalization", "InstanceNormalization", "ReduceMax", "Einsum")
QUANTIZED = ("Conv", "MatMul", "Gemm")  # with weights and activations of 8 bits
CALIBRATION_IMAGES = 32


def convert_to_half(file: Path) -> None:
    """Convert weights and most operators of a file to half precision; inputs and outputs remain float32."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST, *FLOAT32]
    onnx.save(convert_float_to_float16(onnx.load(file), keep_io_types=True, op_block_list=blocked), file)


def calibration_images(folder: Path) -> list[Path]:
    """Images of a folder, evenly drawn.

    Raises:
        ValueError: it has none.
    """
    files = sorted(file for file in files_below(folder) if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} has no image to calibrate with.")
    return files[:: -(-len(files) // CALIBRATION_IMAGES)]


def inputs_of(
    files: list[Path], processor: MPFormerImageProcessor, name: str, size: tuple[int, int]
) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of a session, one image each, resized to (height, width)."""
    for file in files:
        fields = {"size": {"height": size[0], "width": size[1]}, "do_resize": True}
        if name == "image":  # normalised in the graph
            fields |= {"do_rescale": False, "do_normalize": False}
        pixels = processor(read_image(file), **fields, return_tensors="pt")["pixel_values"].numpy()
        yield {name: pixels.round().astype(np.uint8) if name == "image" else pixels}


def quantize(
    file: Path, calibration: Path, processor: MPFormerImageProcessor, name: str, size: tuple[int, int]
) -> None:
    """Quantise convolutions and matrix products of a file to 8 bits, statically: the ranges of activations are those of
    images (MinMax).

    Args:
        file: replaced.
        calibration: folder of images as the model will see them.
        processor: of the model.
        name: of the input.
        size: (height, width) in pixels.

    Raises:
        ValueError: the folder has no image.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    inputs = inputs_of(calibration_images(calibration), processor, name, size)

    class Reader(CalibrationDataReader):
        def get_next(self):
            return next(inputs, None)

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises a preparation that changes nothing here
    try:
        quantize_static(
            file, file, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(QUANTIZED), per_channel=True
        )
    finally:
        logging.getLogger().setLevel(level)
