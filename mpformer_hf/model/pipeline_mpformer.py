"""`pipeline("image-segmentation")` with task and thresholds from the image processor."""

import base64
import binascii
import io
import logging
import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

from .cleaning import check_cleaning
from .images import fetch_image, open_image, to_rgb_image
from .postprocessing import segments_of

logger = logging.getLogger(__name__)


class MPFormerImageSegmentationPipeline(ImageSegmentationPipeline):
    """transformers' [`ImageSegmentationPipeline`] with defaults from MP-Former's image processor.

    The processor's `task` and thresholds are used unless `subtask`, `threshold`, `mask_threshold` or
    `overlap_mask_area_threshold` are given. Instance masks may overlap. `nms` leaves out instances with at least
    this IoU with a better one of their class; `min_pixels` removes smaller parts of segments and fills smaller holes.
    """

    CLEANING = ("nms", "min_pixels")
    THRESHOLDS = ("threshold", "mask_threshold", "overlap_mask_area_threshold")

    def check_model_type(self, supported_models) -> None:
        """Overridden, since transformers' lists of supported models do not have MP-Former and an error would be
        logged."""

    def _sanitize_parameters(self, **kwargs):
        known = ("subtask", *self.THRESHOLDS, *self.CLEANING)
        unknown = sorted(set(kwargs) - {"timeout", *known})
        if unknown:
            raise ValueError(f"Unknown options: {', '.join(unknown)}; known: {', '.join(known)}.")
        before, during, after = super()._sanitize_parameters(**kwargs)
        return before, during, after | {name: kwargs[name] for name in self.CLEANING if name in kwargs}

    def preprocess(self, image: str | Image.Image, subtask: str | None = None, timeout: float | None = None):
        """An image, path, URL or base64 text to model inputs. Images of 16 bits are converted as in training, where
        transformers would saturate them."""
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            image = fetch_image(image, timeout)
        elif isinstance(image, str) and os.path.isfile(image):
            image = open_image(image)
        elif isinstance(image, str):
            image = image_of_base64(image)
        image = to_rgb_image(image) if isinstance(image, Image.Image) else image
        inputs = super().preprocess(image, subtask=subtask, timeout=timeout)
        # In lists, which the collation of transformers leaves as they are: it cannot batch images of different sizes.
        return {**inputs, "pixel_values": [inputs["pixel_values"]], "pixel_mask": [inputs["pixel_mask"]]}

    def _forward(self, model_inputs: dict[str, Any]) -> Any:
        """Model outputs of an image or of a batch, whose images are padded to a common size at the right and bottom."""
        inputs = {name: flatten(model_inputs[name]) for name in ("pixel_values", "pixel_mask")}
        height, width = (max(image.shape[dim] for image in inputs["pixel_values"]) for dim in (-2, -1))
        for name, tensors in inputs.items():
            padded = [F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in tensors]
            model_inputs[name] = torch.cat(padded)
        with self.model.evaluating():
            return super()._forward(model_inputs)

    def postprocess(
        self,
        model_outputs: Any,
        subtask: str | None = None,
        nms: float | None = None,
        min_pixels: int = 0,
        **thresholds: float,
    ) -> list[dict[str, Any]]:
        """Model outputs of one image to `[{"label", "score", "mask"}]`, masks as PIL images of mode L, 0 or 255.

        Raises:
            ValueError: `subtask` is not semantic, instance or panoptic, or an option has no effect on it.
        """
        subtask = subtask or self.image_processor.task
        if subtask not in ("semantic", "instance", "panoptic"):
            raise ValueError(f"subtask must be semantic, instance or panoptic, got {subtask!r}.")
        check_cleaning(subtask, nms, min_pixels)
        sizes = {"target_sizes": model_outputs["target_size"]}
        process = getattr(self.image_processor, f"post_process_{subtask}_segmentation")
        options: dict[str, Any] = {} if subtask == "semantic" else {**thresholds, "min_pixels": min_pixels}
        if subtask == "instance":
            options = options | {"nms": nms, "return_binary_maps": True}
        result = process(model_outputs, **options, **sizes)[0]
        segments = segments_of(result)
        if not segments:
            used = {name: thresholds.get(name, getattr(self.image_processor, name)) for name in self.THRESHOLDS}
            logger.warning("No segment is above %s.", ", ".join(f"{name} {value}" for name, value in used.items()))
        return [
            {
                "score": row.get("score"),
                "label": self.model.config.id2label[row["label_id"]],
                "mask": Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255),
            }
            for row, mask in segments
        ]


def image_of_base64(text: str) -> Image.Image:
    """An image from a text in base64, perhaps with `data:image/png;base64,` before it.

    Raises:
        ValueError: it is none.
    """
    try:
        content = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text[:100]!r} is no file, no URL and not base64") from error
    return open_image(io.BytesIO(content))


def flatten(tensors: list) -> list[Tensor]:
    """The tensors of a list, or of the lists of a batch."""
    return [x for entry in tensors for x in (flatten(entry) if isinstance(entry, list) else [entry])]
