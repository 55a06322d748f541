"""Pictures of ground truth and prediction side by side."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..data.coco_masks import decode_all
from ..data.labels import Labels
from ..data.segments import Segments
from ..inference.drawing import draw_segmentation, result_segments
from .details import stated_void
from .object_matches import NOTHING, match_objects
from .task_metrics import classes_not_exhaustive, instance_reference, panoptic_reference, semantic_reference


def drawn_reference(segments: Segments, task: str, things: set[int]):
    """Ground truth in the form of a result, see `draw_segmentation`; rows of crowds have `iscrowd`."""
    if task == "semantic":
        return semantic_reference(segments)
    unsure = {"not_exhaustive": classes_not_exhaustive(segments, sorted(things))}
    if task == "panoptic":
        return panoptic_reference(segments) | unsure
    reference = instance_reference(segments, things)
    pairs = enumerate(zip(reference["label_ids"], reference["iscrowd"], strict=True))
    rows = [{"id": i, "label_id": label, "iscrowd": crowd} for i, (label, crowd) in pairs]
    return {
        "segmentation": decode_all(reference["masks"], *segments.map.shape[-2:]),
        "segments_info": rows,
        "void": stated_void(reference, segments),
        **unsure,
    }


def mark_errors(reference: dict, result: dict, id2label: dict[int, str]) -> tuple[dict, dict]:
    """Copies of ground truth and prediction, results of instance or panoptic segmentation. What is missed in the one
    and false in the other, or of another class, is marked; not what lies on void (`void` of the ground truth, or the
    pixels of no segment of a map), on a crowd of its class, or is of a class whose objects may have no label."""
    truth, found = result_segments(reference, id2label), result_segments(result, id2label)
    maps = np.asarray(reference["segmentation"])
    matches = match_objects(
        [segment.mask for segment in found],
        [segment.label_id for segment in found],
        [segment.score or 0.0 for segment in found],
        [segment.mask for segment in truth],
        [segment.label_id for segment in truth],
        [bool(row.get("iscrowd")) for row in reference["segments_info"]],
        maps == 0 if maps.ndim == 2 else reference.get("void"),
    )
    marks = {index: "missed" for index in matches.missed}
    found_rows = [dict(row) for row in result["segments_info"]]
    for row, segment, same, other in zip(found_rows, found, matches.same_class, matches.other_class, strict=True):
        if other != NOTHING:
            row["mark"] = f"is {id2label[truth[other].label_id]}"
            marks[int(other)] = f"taken for {id2label[segment.label_id]}"
        elif same == NOTHING and segment.label_id not in reference.get("not_exhaustive", ()):
            row["mark"] = "false"
    truth_rows = [
        {**row, **({"mark": marks[index]} if index in marks else {})}
        for index, row in enumerate(reference["segments_info"])
    ]
    return {**reference, "segments_info": truth_rows}, {**result, "segments_info": found_rows}


@dataclass
class DrawnSides:
    """Pictures of an image.

    Attributes:
        truth, prediction: the pictures.
        label_ids: classes of either.
    """

    truth: Image.Image
    prediction: Image.Image
    label_ids: set[int]


def draw_sides(
    image: torch.Tensor, result, segments: Segments, task: str, labels: Labels, legend: bool = True
) -> DrawnSides:
    """Pictures of ground truth and prediction; what is missed and what is false is marked.

    Args:
        image: uint8 `[3, H, W]`.
        result: post-processed result of the image, see `draw_segmentation`.
        segments: ground truth of the image.
        task: semantic, instance or panoptic.
        labels: classes of the dataset.
        legend: append a legend to the prediction.
    """
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    reference = drawn_reference(segments, task, labels.things)
    if task != "semantic":
        reference, result = mark_errors(reference, result, labels.id2label)
    return DrawnSides(
        draw_segmentation(photo, reference, labels.id2label, legend=False, palette=labels.palette),
        draw_segmentation(photo, result, labels.id2label, legend=legend, palette=labels.palette),
        {segment.label_id for side in (reference, result) for segment in result_segments(side, labels.id2label)},
    )


def draw_pair(image: torch.Tensor, result, segments: Segments, task: str, labels: Labels) -> Image.Image:
    """Ground truth on the left, prediction with a legend on the right, see `draw_sides`."""
    sides = draw_sides(image, result, segments, task, labels)
    left, right = sides.truth, sides.prediction
    pair = Image.new("RGB", (left.width + 8 + right.width, max(left.height, right.height)), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 8, 0))
    return pair
