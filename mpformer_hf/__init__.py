"""MP-Former (mask-piloted Mask2Former) for Hugging Face Transformers.

Importing this package takes milliseconds: public names are loaded when they are used, and MP-Former's classes are
registered with the Auto classes and `pipeline("image-segmentation")` when these are loaded.
"""

import importlib
from typing import TYPE_CHECKING

from .hub.registration import register_when_loaded

if TYPE_CHECKING:
    from .inference.drawing import draw_segmentation
    from .inference.predictor import InferenceOptions, Predictor
    from .inference.result import Result, Segment
    from .model.configuration_mpformer import MPFormerConfig
    from .model.image_processing_mpformer import MPFormerImageProcessor, MPFormerImageProcessorPil
    from .model.modeling_mpformer import MPFormerForUniversalSegmentation, MPFormerModel, MPFormerPreTrainedModel
    from .model.pipeline_mpformer import MPFormerImageSegmentationPipeline
    from .training.run import Run, train

__version__ = "0.1.0"

_MODULES = {  # of the public names
    "inference.arguments": ("InferenceOptions",),
    "inference.drawing": ("draw_segmentation",),
    "inference.predictor": ("Predictor",),
    "inference.result": ("Result", "Segment"),
    "model.configuration_mpformer": ("MPFormerConfig",),
    "model.image_processing_mpformer": ("MPFormerImageProcessor", "MPFormerImageProcessorPil"),
    "model.modeling_mpformer": ("MPFormerForUniversalSegmentation", "MPFormerModel", "MPFormerPreTrainedModel"),
    "model.pipeline_mpformer": ("MPFormerImageSegmentationPipeline",),
    "training.run": ("Run", "train"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [
    "InferenceOptions",
    "MPFormerConfig",
    "MPFormerForUniversalSegmentation",
    "MPFormerImageProcessor",
    "MPFormerImageProcessorPil",
    "MPFormerImageSegmentationPipeline",
    "MPFormerModel",
    "MPFormerPreTrainedModel",
    "Predictor",
    "Result",
    "Run",
    "Segment",
    "draw_segmentation",
    "train",
]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_loaded()
