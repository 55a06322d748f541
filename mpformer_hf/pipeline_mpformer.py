"""`pipeline("image-segmentation")` that is right by default: task and thresholds come from the image processor."""

import logging
from typing import Any

import numpy as np
from PIL import Image
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

logger = logging.getLogger(__name__)


class MPFormerImageSegmentationPipeline(ImageSegmentationPipeline):
    """transformers' pipeline; a processor that knows its `task` decides where the caller does not.

    Calls as in [`ImageSegmentationPipeline`]: `subtask`, `threshold`, `mask_threshold` and
    `overlap_mask_area_threshold` override the processor. Instance results keep overlapping masks whole. Models with
    any other image processor behave as in transformers.
    """

    def check_model_type(self, supported_models) -> None:
        """Logs an error for a model that has no image segmentation; ours is in none of transformers' tables."""
        if not type(self.model).__name__.startswith("MPFormer"):
            super().check_model_type(supported_models)

    def postprocess(self, model_outputs: Any, subtask: str | None = None, **thresholds: float) -> list[dict[str, Any]]:
        """Model outputs of one image to `[{"label", "score", "mask"}]`, masks as PIL images of mode L, 0 or 255.

        Raises:
            ValueError: `subtask` is not semantic, instance or panoptic.
        """
        task = getattr(self.image_processor, "task", None)
        if task is None:
            return super().postprocess(model_outputs, subtask=subtask, **thresholds)
        subtask = subtask or task
        if subtask not in ("semantic", "instance", "panoptic"):
            raise ValueError(f"subtask must be semantic, instance or panoptic, got {subtask!r}.")
        sizes = {"target_sizes": model_outputs["target_size"]}
        process = getattr(self.image_processor, f"post_process_{subtask}_segmentation")
        if subtask == "semantic":
            labels = process(model_outputs, **sizes)[0].cpu().numpy()
            found = [(label, None, labels == label) for label in np.unique(labels).tolist()]
        else:
            options = {"return_binary_maps": True} if subtask == "instance" else {}
            result = process(model_outputs, **thresholds, **sizes, **options)[0]
            maps, segments = result["segmentation"].cpu().numpy(), result["segments_info"]
            masks = maps if subtask == "instance" else (maps == segment["id"] for segment in segments)
            found = [(s["label_id"], s["score"], mask > 0) for s, mask in zip(segments, masks, strict=True)]
        if not found:
            used = {name: thresholds.get(name, getattr(self.image_processor, name)) for name in self.THRESHOLDS}
            logger.warning("No segment in the image passed %s.", ", ".join(f"{k} {v}" for k, v in used.items()))
        return [
            {
                "score": score,
                "label": self.model.config.id2label[label],
                "mask": Image.fromarray(mask.astype(np.uint8) * 255),
            }
            for label, score, mask in found
        ]

    THRESHOLDS = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
