"""Writers of exported files, by the end of their names."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from .portable import portable

DIMENSIONS = ("batch", "channels", "rows", "columns")  # of images; their sides are 32 rows and 32 columns
OPSET = 18  # of ONNX; TensorRT 8.6 has no operator Gelu, which is of opset 20

# writes a program to a file, with names of its inputs and outputs and, where a file has a place for it, metadata
Save = Callable[[ExportedProgram, Path, list[str], list[str], dict[str, str]], None]


def save_torch(
    program: ExportedProgram, file: Path, inputs: list[str], outputs: list[str], metadata: dict[str, str]
) -> None:
    buffer = io.BytesIO()  # its writer of files aborts the process on a full disk
    torch.export.save(program, buffer, extra_files=metadata)
    file.write_bytes(buffer.getbuffer())


def save_inductor(program: ExportedProgram, file: Path, *_) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(file))


def name_dimensions(graph: Any) -> None:
    """Replace the symbols of torch.export, such as s40, by `DIMENSIONS`, in all shapes of a graph of onnx_ir."""
    symbols = [re.search(r"s\d+", str(side)) for side in graph.inputs[0].shape]
    names = {found[0]: name for found, name in zip(symbols, DIMENSIONS, strict=True) if found}

    def renamed(side: Any) -> Any:
        known = side if isinstance(side, int) else side.value  # None: unknown
        return re.sub(r"s\d+", lambda found: names.get(found[0], found[0]), known) if isinstance(known, str) else known

    for value in (*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = type(value.shape)([renamed(side) for side in value.shape])


def save_onnx(
    program: ExportedProgram, file: Path, inputs: list[str], outputs: list[str], metadata: dict[str, str]
) -> None:
    options: dict = {"dynamo": True, "verbose": False, "opset_version": OPSET}
    onnx_program: Any = torch.onnx.export(program, input_names=inputs, output_names=outputs, **options)
    name_dimensions(onnx_program.model.graph)
    onnx_program.model.metadata_props.update(metadata)
    onnx_program.save(file)


def save_executorch(program: ExportedProgram, file: Path, *_) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(portable(program), partitioner=[XnnpackPartitioner()])
    file.write_bytes(lowered.to_executorch().buffer)


def save_litert(program: ExportedProgram, file: Path, *_) -> None:
    import litert_torch

    example, _ = program.example_inputs
    litert_torch.convert(portable(program).module(), example).export(str(file))


def save_coreml(program: ExportedProgram, file: Path, inputs: list[str], outputs: list[str], *_) -> None:
    import coremltools

    names = {"outputs": [coremltools.TensorType(name=name) for name in outputs]}
    coremltools.convert(portable(program), **names).save(str(file))


@dataclass(frozen=True)
class Target:
    """A kind of exported files.

    Attributes:
        save: writes a file.
        packages: modules that it needs.
        install: what brings them.
        dynamic: whether batch and image size may be dynamic; else files take one image of the traced size.
        runs: whether the file can be compared with the model here.
    """

    save: Save
    packages: tuple[str, ...] = ()
    install: str = ""
    dynamic: bool = False
    runs: bool = True

    def require(self) -> None:
        """
        Raises:
            ValueError: a package is missing.
        """
        for package in self.packages:
            try:
                __import__(package)
            except ImportError as error:
                raise ValueError(f"This export needs {error.name or package}: pip install {self.install}.") from error


TARGETS = {
    ".aoti.pt2": Target(save_inductor),
    ".pt2": Target(save_torch, dynamic=True),
    ".onnx": Target(save_onnx, ("onnx", "onnxruntime", "onnxscript"), '"mpformer-hf[onnx]"', dynamic=True),
    ".pte": Target(save_executorch, ("executorch.runtime",), '"mpformer-hf[executorch]"'),
    ".tflite": Target(save_litert, ("litert_torch", "ai_edge_litert"), '"mpformer-hf[litert]"'),
    ".mlpackage": Target(save_coreml, ("coremltools",), '"mpformer-hf[coreml]"', runs=False),
}
