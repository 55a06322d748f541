"""MP-Former (mask-piloted Mask2Former) for Hugging Face Transformers.

Importing this package registers its classes with the Auto classes and `pipeline("image-segmentation")`.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
)
from transformers.pipelines import PIPELINE_REGISTRY, ImageSegmentationPipeline

from .inference.drawing import draw_segmentation
from .model.configuration_mpformer import MPFormerConfig
from .model.image_processing_mpformer import MPFormerImageProcessor, MPFormerImageProcessorPil
from .model.modeling_mpformer import MPFormerForUniversalSegmentation, MPFormerModel, MPFormerPreTrainedModel
from .model.pipeline_mpformer import MPFormerImageSegmentationPipeline

__version__ = "0.1.0"

__all__ = [
    "MPFormerConfig",
    "MPFormerForUniversalSegmentation",
    "MPFormerImageProcessor",
    "MPFormerImageProcessorPil",
    "MPFormerImageSegmentationPipeline",
    "MPFormerModel",
    "MPFormerPreTrainedModel",
    "draw_segmentation",
]


class _ImageSegmentationPipeline(ImageSegmentationPipeline):
    """Creates MP-Former's pipeline for MP-Former models, and transformers' own pipeline for all other models.

    `transformers.pipeline` picks its class from the task alone (transformers/pipelines/__init__.py, `check_task`), and
    a repository's `custom_pipelines` need `trust_remote_code`. So a class is registered that depends on the model.
    """

    def __new__(cls, *args, model=None, **kwargs):
        own = isinstance(getattr(model, "config", None), MPFormerConfig)
        chosen = MPFormerImageSegmentationPipeline if own else ImageSegmentationPipeline
        return chosen(*args, model=model, **kwargs)  # not an instance of `cls`, so its __init__ is not called again


def _register():
    AutoConfig.register("mpformer", MPFormerConfig, exist_ok=True)
    AutoImageProcessor.register(
        MPFormerConfig,
        image_processor_classes={"torchvision": MPFormerImageProcessor, "pil": MPFormerImageProcessorPil},
        exist_ok=True,
    )
    AutoModel.register(MPFormerConfig, MPFormerModel, exist_ok=True)
    for auto_class in (AutoModelForUniversalSegmentation, AutoModelForImageSegmentation):
        auto_class.register(MPFormerConfig, MPFormerForUniversalSegmentation, exist_ok=True)
    PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"] = _ImageSegmentationPipeline


_register()
