"""ONNX files of half precision and of 8-bit integers."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.images import to_image_tensor
from ..utils.files import IMAGE_SUFFIXES, files_below

# Norms and positions need more than the 11 bits of half precision.
FLOAT32 = ("Resize", "Sin", "Cos", "LayerNormalization", "InstanceNormalization", "ReduceMax", "Einsum")
LEARNED = ("MatMul", "Gemm", "Conv", "Softmax", "LayerNormalization")  # what positions are computed from
FLOAT, HALF = 1, 10  # types of ONNX
QUANTIZED = ("Conv", "MatMul", "Gemm")  # with weights and activations of 8 bits
CALIBRATION_IMAGES = 32


def convert_to_half(file: Path) -> None:
    """Convert weights and most operators of a file to half precision; inputs and outputs remain float32."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    content, blocked = onnx.load(file), [*DEFAULT_OP_BLOCK_LIST, *FLOAT32]
    nodes = position_nodes(content.graph)
    half = convert_float_to_float16(content, keep_io_types=True, op_block_list=blocked, node_block_list=nodes)
    skip_round_trips(half.graph)
    onnx.save(half, file)


def skip_round_trips(graph) -> None:
    """Let nodes that remain in float32 read float32 where the converter put a cast to half precision between them."""
    casts = [node for node in graph.node if node.op_type == "Cast"]
    before_half = {node.output[0]: node.input[0] for node in casts if node.attribute[0].i == HALF}
    for node in casts:
        if node.attribute[0].i == FLOAT:
            node.input[0] = before_half.get(node.input[0], node.input[0])


def position_nodes(graph) -> list[str]:
    """Names of the nodes that compute the rows that a graph gathers, and of those that use their positions: float32 is
    exact up to row 2**24, half precision up to row 2048."""
    producers = {output: node for node in graph.node for output in node.output}
    pending = [node.input[1] for node in graph.node if node.op_type == "Gather"]
    found: dict[str, None] = {}
    positions: set[str] = set()
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node.op_type not in LEARNED and node.name not in found:
            found[node.name] = None
            pending += node.input
            positions |= set(node.output)
    users = [node.name for node in graph.node if node.op_type not in LEARNED and positions & set(node.input)]
    return [*dict.fromkeys([*found, *users])]


def images_in(folder: Path) -> list[Path]:
    """Images of a folder, sorted.

    Raises:
        ValueError: it is no folder, or has no image.
    """
    files = sorted(file for file in files_below(folder) if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} {'has no image' if folder.is_dir() else 'is not a folder'}.")
    return files


def evenly_drawn(files: list[Path]) -> list[Path]:
    """Those that an int8 file is calibrated with."""
    return files[:: -(-len(files) // CALIBRATION_IMAGES)]


def check_photos(folder: Path) -> None:
    """Check what calibration and comparison will read of a folder of photos.

    Raises:
        ValueError: it has no image, or one cannot be read.
    """
    files, problems = images_in(folder), []
    for file in dict.fromkeys((*evenly_drawn(files), *files[:CALIBRATION_IMAGES])):
        try:
            to_image_tensor(file)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"Photos cannot be read; remove them: {'; '.join(problems)}.")


def inputs_of(
    files: list[Path], processor: MPFormerImageProcessor, name: str, size: tuple[int, int]
) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of a session, one image each, resized to (height, width)."""
    for file in files:
        fields = {"size": {"height": size[0], "width": size[1]}, "do_resize": True}
        if name == "image":  # normalised in the graph
            fields |= {"do_rescale": False, "do_normalize": False}
        pixels = processor(to_image_tensor(file), **fields, return_tensors="pt")["pixel_values"].numpy()
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

    inputs = inputs_of(evenly_drawn(images_in(calibration)), processor, name, size)

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
