"""Registration with transformers' Auto classes and pipelines, once transformers is loaded.

Loading transformers takes seconds, which `mpformer --help` does not need. So a finder on `sys.meta_path` waits for it.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder


def register() -> None:
    """Register the classes."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageSegmentation,
        AutoModelForUniversalSegmentation,
    )
    from transformers.pipelines import PIPELINE_REGISTRY, ImageSegmentationPipeline

    from ..model.configuration_mpformer import MPFormerConfig
    from ..model.image_processing_mpformer import MPFormerImageProcessor, MPFormerImageProcessorPil
    from ..model.modeling_mpformer import MPFormerForUniversalSegmentation, MPFormerModel
    from ..model.pipeline_mpformer import MPFormerImageSegmentationPipeline

    class _ImageSegmentationPipeline(ImageSegmentationPipeline):
        """Creates MP-Former's pipeline for MP-Former models, and transformers' own pipeline for all other models.

        `transformers.pipeline` picks its class from the task alone (transformers/pipelines/__init__.py, `check_task`),
        and a repository's `custom_pipelines` need `trust_remote_code`. So the class that is registered looks at the
        model.
        """

        def __new__(cls, *args, model=None, **kwargs):
            own = isinstance(getattr(model, "config", None), MPFormerConfig)
            chosen = MPFormerImageSegmentationPipeline if own else ImageSegmentationPipeline
            return chosen(*args, model=model, **kwargs)  # not an instance of `cls`, so its __init__ is not called again

    AutoConfig.register("mpformer", MPFormerConfig, exist_ok=True)
    processors = {"torchvision": MPFormerImageProcessor, "pil": MPFormerImageProcessorPil}
    AutoImageProcessor.register(MPFormerConfig, image_processor_classes=processors, exist_ok=True)
    AutoModel.register(MPFormerConfig, MPFormerModel, exist_ok=True)
    for auto_class in (AutoModelForUniversalSegmentation, AutoModelForImageSegmentation):
        auto_class.register(MPFormerConfig, MPFormerForUniversalSegmentation, exist_ok=True)
    PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"] = _ImageSegmentationPipeline


class RegisterWhenLoaded(MetaPathFinder):
    """Registers after transformers was imported, by others or by a module of this package.

    A module of this package that imports transformers is half loaded at that moment, and the registration may need it.
    So both are counted, and the registration follows the outermost of them.
    """

    def __init__(self):
        self.depth = 0
        self.own: set[str] = set()  # modules that are being looked for by the other finders

    def find_spec(self, name, path=None, target=None):
        if name in self.own or not (name == "transformers" or name.startswith("mpformer_hf.")):
            return None
        self.own.add(name)
        spec = importlib.util.find_spec(name)
        self.own.remove(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_when_loaded() -> None:
    """Register now if transformers is loaded, else when it is."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, RegisterWhenLoaded())
