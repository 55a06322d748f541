"""Loading saved models and image processors, with errors in one sentence."""

import contextlib
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils.hub import cached_file

from ..data.arguments import DataArguments
from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.modeling_mpformer import MPFormerForUniversalSegmentation
from ..utils.compiling import compile_model
from ..utils.files import file_start, read_json
from ..utils.hub_errors import ANSWERED, reason_of
from .exported import ExportedModel, Model, is_exported, settings_folder


def load_pretrained(cls, name: str, **kwargs):
    """`cls.from_pretrained(name, **kwargs)`.

    Raises:
        ValueError: it cannot be loaded; the message names it and the reason.
    """
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        remedy = "load them with peft's PeftModel, and save model.merge_and_unload()"
        raise ValueError(f"{name} has LoRA adapters, not a whole model: {remedy}.")
    try:
        return cls.from_pretrained(name, **kwargs)
    except Exception as error:  # broken JSON, truncated safetensors, shapes, network: many types
        reason = reason_of(error)
        known = Path(name).is_dir() or reason.startswith(ANSWERED)
        hint = "" if known else " (there is no local folder of this name)"
        raise ValueError(f"Cannot load {name}{hint}: {reason}") from error


def load_weights(
    name: str, new: tuple[str, ...] = (), quantized: bool = False, **kwargs
) -> MPFormerForUniversalSegmentation:
    """Load an MP-Former or Mask2Former. No weight may be missing, except the pilot's class embedding and what changes
    no output.

    Args:
        name: folder or Hub name.
        new: parts of the names of other weights that may be newly initialised.
        quantized: whether the weights may be quantised.
        kwargs: arguments of `from_pretrained`; default dtype: float32.

    Raises:
        ValueError: it cannot be loaded, weights are missing, have other shapes, are not finite, or are quantised and
            may not be.
    """
    if Path(name).is_dir():
        check_stored_types(Path(name))
    kwargs = {"dtype": torch.float32, **kwargs}  # that of the images; autocast lowers it where it is used
    model, info = load_pretrained(MPFormerForUniversalSegmentation, name, output_loading_info=True, **kwargs)
    if not Path(name).is_dir():  # the files of the Hub are in its cache now
        known = {key: kwargs[key] for key in ("revision", "cache_dir", "token") if key in kwargs}
        check_stored_types(Path(cached_file(name, "config.json", **known)).parent)
    if getattr(model.config, "quantization_config", None) and not quantized:
        raise ValueError(f"The weights of {name} are quantised, for predictions only: give the model it was made of.")
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    lost = sorted(key for key in missing if not any(part in key for part in new))
    if lost:
        raise ValueError(
            f"Cannot load {name}: {len(lost)} weights are missing or have other shapes, such as {lost[0]}."
        )
    broken = [
        key
        for key, weight in model.state_dict().items()
        if not is_quantized(weight) and not torch.isfinite(weight).all()
    ]
    if broken:
        raise ValueError(f"Cannot load {name}: {len(broken)} weights are not finite, such as {broken[0]}.")
    return model


def check_stored_types(folder: Path) -> None:
    """Check that the weights of a folder are floats, unless its configuration says that they are quantised;
    transformers would convert integers.

    Raises:
        ValueError: some are not, or a file of weights is no regular file.
    """
    with contextlib.suppress(ValueError, AttributeError):  # a wrong configuration is reported when it is read
        if json.loads(file_start(folder / "config.json", 1 << 20)).get("quantization_config"):
            return
    for file in files_of_weights(folder):
        if file.exists() and not file.is_file():  # what is missing is reported when it is loaded
            raise ValueError(f"{file} is not a regular file.")
        check_floats(file)


def files_of_weights(folder: Path) -> list[Path]:
    """Files of weights in a folder, and those that its indices name.

    Raises:
        ValueError: an index names a file outside of the folder.
    """
    files = {*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")}
    for index in folder.glob("*.index.json"):
        content = read_json(index) if index.is_file() else None
        names = content.get("weight_map") if isinstance(content, dict) else None
        for name in sorted(set(map(str, names.values()))) if isinstance(names, dict) else ():
            if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
                raise ValueError(f"{index} names {name}, which is not in its folder.")
            files.add(folder / name)
    return sorted(files)


def check_floats(file: Path) -> None:
    """
    Raises:
        ValueError: a file of weights has values of other types than floats.
    """
    kinds: dict[str, str] = {}
    with contextlib.suppress(Exception):  # what cannot be read is reported when it is loaded
        if file.suffix == ".bin":
            weights = torch.load(file, map_location="meta", weights_only=True)
            kinds = {key: "F" if value.is_floating_point() else str(value.dtype) for key, value in weights.items()}
        else:
            with safe_open(file, "pt") as opened:
                kinds = {key: opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118 - no mapping
    for key, kind in kinds.items():
        if "F" not in kind and not key.endswith(("num_batches_tracked", "relative_position_index")):
            raise ValueError(f"{file}: {key} has values of type {kind}, expected floats.")


def load_model(name: str, quantized: bool = False, **kwargs) -> MPFormerForUniversalSegmentation:
    """Load a complete MP-Former or Mask2Former from a folder or the Hub, in evaluation mode.

    Args:
        name, quantized, kwargs: see `load_weights`.

    Raises:
        ValueError: see `load_weights`.
    """
    model = load_weights(name, quantized=quantized, **kwargs).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_quantized(tensor):
            tensor.data = tensor.data.clone()  # else a view of the file, whose later changes would change the model
    return model


def load_for_inference(
    name: str, device: str | torch.device, dtype: torch.dtype = torch.float32, compile: bool = False, **kwargs
) -> Model:
    """What a command or a `Predictor` runs: a saved model on a device, also one with quantised weights, or an exported
    file.

    Args:
        name: folder, Hub name, or exported file.
        device, dtype: of the model.
        compile: compile its layers, see `compile_model`.
        kwargs: see `load_model`.

    Raises:
        ValueError: it cannot be loaded, or is a file and options are for saved models.
    """
    if not is_exported(name):
        model = load_model(name, quantized=True, dtype=dtype, **kwargs).to(device)
        compile_model(model, "blocks" if compile else "none")
        return model
    if dtype != torch.float32 or compile or torch.device(device).type != "cpu":
        raise ValueError(f"{name} is an exported file and runs on the CPU as it is: leave out device, dtype, compile.")
    return ExportedModel(name)


def is_quantized(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of torchao."""
    return type(tensor.data) is not torch.Tensor


def fingerprint(name: str, revision: str | None = None) -> str:
    """Identifies the weights and settings of a saved model: a hash of its files, or the commit of a Hub repository."""
    folder = Path(name)
    if is_exported(name):
        files = sorted(file for file in folder.parent.glob("*") if file.name.startswith(folder.name) and file.is_file())
        folder = settings_folder(name)
    elif folder.is_dir():
        files = files_of_weights(folder)
    else:
        file = Path(cached_file(name, "config.json", revision=revision))  # .../snapshots/COMMIT/config.json
        return file.parent.name
    digest = hashlib.sha256()
    settings = ("config.json", "preprocessor_config.json", "processor_config.json", "adapter_config.json")
    for file in [*files, *(folder / name for name in settings)]:
        digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()


def with_task(data: DataArguments, name: str, revision: str | None = None) -> DataArguments:
    """The arguments of a dataset with the task of a model's image processor, if they have none.

    Raises:
        ValueError: the processor cannot be loaded.
    """
    if data.task is not None:
        return data
    return replace(data, task=load_processor(name, **({"revision": revision} if revision else {})).task)


def load_processor(name: str, **kwargs) -> MPFormerImageProcessor:
    """Load the image processor of an MP-Former or Mask2Former from a folder or the Hub.

    Args:
        name, kwargs: as for `load_model`; or an exported file.

    Raises:
        ValueError: it cannot be loaded.
    """
    name = str(settings_folder(name)) if is_exported(name) else name
    return load_pretrained(MPFormerImageProcessor, name, **kwargs)
