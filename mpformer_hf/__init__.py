"""MP-Former (mask-piloted Mask2Former) for Hugging Face Transformers.

Importing this package registers its classes with the Auto classes and with `pipeline("image-segmentation")`.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_mpformer import MPFormerConfig
from .image_processing_mpformer import MPFormerImageProcessor, MPFormerImageProcessorPil
from .modeling_mpformer import MPFormerForUniversalSegmentation, MPFormerModel, MPFormerPreTrainedModel
from .pipeline_mpformer import MPFormerImageSegmentationPipeline
from .visualization import draw_segmentation

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


def _register():
    AutoConfig.register("mpformer", MPFormerConfig, exist_ok=True)
    AutoImageProcessor.register(
        MPFormerConfig,
        image_processor_classes={"torchvision": MPFormerImageProcessor, "pil": MPFormerImageProcessorPil},
        exist_ok=True,
    )
    AutoModel.register(MPFormerConfig, MPFormerModel, exist_ok=True)
    for auto in (AutoModelForUniversalSegmentation, AutoModelForImageSegmentation):
        auto.register(MPFormerConfig, MPFormerForUniversalSegmentation, exist_ok=True)
    # Same pipeline for every other model; for ours it asks the processor for task and thresholds.
    PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"] = MPFormerImageSegmentationPipeline


_register()
