"""Exported files as models: commands and `Predictor` take a file of `mpformer export` for a saved model."""

import contextlib
import importlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from ..model.configuration_mpformer import MPFormerConfig
from ..model.modeling_mpformer import MPFormerForUniversalSegmentation
from ..model.outputs import MPFormerForUniversalSegmentationOutput

Run = Callable[[Tensor], list[Tensor]]  # from images, float32 `[B, 3, H, W]` or uint8, to the outputs of the file


UNPICKLED = ("custom_obj_", "opaque_obj_")  # beginnings of names of constants that torch unpickles


def open_with_torch(file: Path) -> Run:
    check_pickles(file)
    module = torch.export.load(file).module()
    return lambda images: list(module(images))


def check_pickles(file: Path) -> None:
    """
    Raises:
        UnpicklingError: a part of a file of torch.export holds more than tensors, so reading it may run code.
    """
    with zipfile.ZipFile(file) as opened:
        for part in opened.infolist():  # two may have one name
            if part.filename.endswith((".pt", ".pkl")):
                torch.load(io.BytesIO(opened.read(part)), map_location="cpu", weights_only=True)
            elif part.filename.endswith(("_weights_config.json", "_constants_config.json")):
                for row in json.loads(opened.read(part))["config"].values():
                    if row["use_pickle"] or row["path_name"].startswith(UNPICKLED):
                        raise pickle.UnpicklingError("it holds Python objects, which may run code")


def open_with_inductor(file: Path) -> Run:
    compiled = torch._inductor.aoti_load_package(str(file))
    return lambda images: list(compiled(images))


def open_with_onnxruntime(file: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]


def open_with_openvino(file: Path) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: [torch.from_numpy(output.copy()) for output in compiled(images.numpy()).values()]


def open_with_executorch(file: Path) -> Run:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(file)).load_method("forward")
    return lambda images: [output.clone() for output in method.execute([images])]


def open_with_litert(file: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(file)).get_signature_runner()
    (name,) = runner.get_input_details()
    outputs = sorted(runner.get_output_details())

    def run(images: Tensor) -> list[Tensor]:
        found = runner(**{name: images.numpy()})
        return [torch.from_numpy(found[output].copy()) for output in outputs]

    return run


@dataclass(frozen=True)
class Runtime:
    """What runs an exported file, on a CPU.

    Attributes:
        name: of the runtime.
        suffix: end of the names of its files.
        package: module that it needs.
        install: the package of PyPI that brings it.
        open: returns what runs a file on float32 images `[B, 3, H, W]`.
        batches: whether files have a dynamic batch size; else they run one image.
    """

    name: str
    suffix: str
    package: str
    install: str
    open: Callable[[Path], Run]
    batches: bool = False

    def is_installed(self) -> bool:
        """Whether its package can be imported."""
        try:
            importlib.import_module(self.package)
        except ImportError:
            return False
        return True


RUNTIMES = (
    Runtime("AOTInductor", ".aoti.pt2", "torch", "torch", open_with_inductor),
    Runtime("torch.export", ".pt2", "torch", "torch", open_with_torch, batches=True),
    Runtime("onnxruntime", ".onnx", "onnxruntime", "onnxruntime", open_with_onnxruntime, batches=True),
    Runtime("OpenVINO", ".onnx", "openvino", "openvino", open_with_openvino, batches=True),
    Runtime("ExecuTorch", ".pte", "executorch.runtime", "executorch", open_with_executorch),
    Runtime("LiteRT", ".tflite", "ai_edge_litert", "ai-edge-litert", open_with_litert),
)


SUFFIXES = (*dict.fromkeys(runtime.suffix for runtime in RUNTIMES), ".mlpackage")  # of Core ML, which runs on a Mac


def suffix_of(file: str | Path) -> str | None:
    """Which of `SUFFIXES` the name of a file ends in."""
    return next((suffix for suffix in SUFFIXES if str(file).endswith(suffix)), None)


def is_exported(name: str | Path) -> bool:
    """Whether a model is a file of `mpformer export`."""
    return suffix_of(name) is not None and Path(name).exists()


def runtimes_of(file: str | Path) -> list[Runtime]:
    """Runtimes of a file, the usual one first.

    Raises:
        ValueError: none is of its kind, or those that are, are not installed.
    """
    fitting = [runtime for runtime in RUNTIMES if runtime.suffix == suffix_of(file)]
    if not fitting:
        raise ValueError(f"{file} cannot be run: its runtime, Core ML, is not supported here.")
    installed = [runtime for runtime in fitting if runtime.is_installed()]
    if not installed:
        raise ValueError(f"{file} needs {fitting[0].name}: pip install {fitting[0].install}.")
    return installed


def settings_folder(file: str | Path) -> Path:
    """Folder of the configuration and the image processor of an exported file."""
    file = Path(file)
    return file.with_name(f"{file.name.removesuffix(suffix_of(file) or '')}_processor")


class ExportedModel(nn.Module):
    """An exported file, which is called as the model is.

    Args:
        file: of `mpformer export`, without post-processing, beside the folder of its image processor.
        runtime: what runs it; default: the first of `runtimes_of`.

    Raises:
        ValueError: it cannot be run.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, file: str | Path, runtime: Runtime | None = None):
        super().__init__()
        self.file, folder = Path(file), settings_folder(file)
        if not (folder / "config.json").is_file():
            where = f"{folder.name}/config.json, which mpformer export writes beside it without --with_postprocessing"
            raise ValueError(f"{file} cannot be used as a model: there is no {where}.")
        self.config = MPFormerConfig.from_pretrained(folder, mask_piloting=False)  # it has no pilot
        self.runtime = runtime or runtimes_of(file)[0]
        try:
            self.run = self.runtime.open(self.file)
        except Exception as error:  # of each runtime another
            raise ValueError(f"{self.runtime.name} cannot read {file}: {first_line(error)}") from error

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """A file has no other mode."""
        return contextlib.nullcontext()

    def encode(self, *_, **__) -> NoReturn:
        """
        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.file} has no pilot, which boxes and rough masks need: give the saved model.")

    refine = encode

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **_
    ) -> MPFormerForUniversalSegmentationOutput:
        """Logits of float32 images `[B, 3, H, W]`.

        Raises:
            ValueError: the file does not take images of this size.
        """
        parts = [pixel_values] if self.runtime.batches else pixel_values.split(1)
        try:
            found = [self.run(part.contiguous()) for part in parts]
        except Exception as error:  # of each runtime another
            size = "x".join(map(str, pixel_values.shape[2:]))
            raise ValueError(f"{self.file} does not take images of {size} pixels: {first_line(error)}") from error
        classes, masks = (torch.cat(column) for column in zip(*found, strict=True))
        return MPFormerForUniversalSegmentationOutput(
            class_queries_logits=classes, masks_queries_logits=masks, pixel_mask=pixel_mask
        )


Model = MPFormerForUniversalSegmentation | ExportedModel  # what predicts


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
