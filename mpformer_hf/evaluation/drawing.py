"""Pictures of ground truth and prediction side by side."""

import numpy as np
import torch
from PIL import Image

from ..data.labels import Labels
from ..data.segments import Segments
from ..visualization import draw_segmentation
from .task_metrics import instance_reference, panoptic_reference, semantic_reference


def draw_pair(image: torch.Tensor, result, segments: Segments, task: str, labels: Labels) -> Image.Image:
    """Ground truth on the left, prediction with a legend on the right.

    Args:
        image: uint8 `[3, H, W]`.
        result: post-processed result of the image, see `draw_segmentation`.
        segments: ground truth of the image.
        task: semantic, instance or panoptic.
        labels: classes of the dataset.
    """
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    if task == "semantic":
        truth = semantic_reference(segments)
    elif task == "panoptic":
        truth = panoptic_reference(segments)
    else:
        reference = instance_reference(segments, labels.things)
        rows = [{"id": i, "label_id": label} for i, label in enumerate(reference["label_ids"])]
        truth = {"segmentation": np.array(reference["masks"]).reshape(-1, *image.shape[1:]), "segments_info": rows}
    left = draw_segmentation(photo, truth, labels.id2label, legend=False)
    right = draw_segmentation(photo, result, labels.id2label)
    pair = Image.new("RGB", (left.width + 8 + right.width, max(left.height, right.height)), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 8, 0))
    return pair
