"""Prompts made of ground truth, to measure and to calibrate what a model makes of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.coco_masks import decode_all
from ..data.dataset import SegmentationDataset
from ..evaluation.task_metrics import instance_reference
from ..inference.predictor import Predictor
from ..model.boxes import mask_boxes
from ..model.pilot_noise import box_masks, grow_masks, transform_masks
from ..utils.progress import progress


def moved(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Masks moved by a quarter of their width and height, to one of four sides."""
    boxes = mask_boxes(masks).float()
    signs = 2.0 * torch.randint(0, 2, (len(masks), 2), generator=generator) - 1
    return transform_masks(masks, signs * (boxes[:, 2:] - boxes[:, :2]) / 4, torch.ones(len(masks)))


KINDS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "box": lambda masks, _: box_masks(masks, 0.0, None),
    "dilated by 4": lambda masks, _: grow_masks(masks, torch.full((len(masks),), 4)),
    "eroded by 3": lambda masks, _: 1 - grow_masks(1 - masks, torch.full((len(masks),), 3)),
    "shifted": moved,
    "clean": lambda masks, _: masks,
}


@dataclass
class PromptedObjects:
    """Prompts of one kind for the objects of an image; objects whose prompt is empty are left out.

    Attributes:
        kind: of `KINDS`.
        given: prompts, uint8 `[P, H, W]`.
        truth: ground truth of the same objects, uint8 `[P, H, W]`.
        labels: their classes.
    """

    kind: str
    given: Tensor
    truth: Tensor
    labels: list[int]

    @property
    def arguments(self) -> dict:
        """Arguments of `Predictor.refine`."""
        given = {"boxes": mask_boxes(self.given)} if self.kind == "box" else {"masks": self.given}
        return {**given, "labels": self.labels}


def objects_of_images(split: SegmentationDataset, title: str) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Images of a split that have objects, uint8 `[3, H, W]`, their masks, uint8 `[P, H, W]`, and classes. Crowds and
    objects without pixels are left out."""
    for index in progress(range(len(split)), title, unit="image"):
        image, segments = split[index]
        reference = instance_reference(segments, split.labels.things)
        masks = torch.from_numpy(decode_all(reference["masks"], *image.shape[1:])).to(torch.uint8)
        kept = [i for i, crowd in enumerate(reference["iscrowd"]) if not crowd and masks[i].any()]
        if kept:
            yield image, masks[kept], [reference["label_ids"][i] for i in kept]


def prompts_of(masks: Tensor, labels: list[int], generator: torch.Generator) -> Iterator[PromptedObjects]:
    """Prompts of all kinds for the objects of an image, see `PromptedObjects`."""
    for kind, change in KINDS.items():
        given = change(masks, generator)
        rows = given.flatten(1).any(1).nonzero()[:, 0]  # erosion removes small objects
        if len(rows):
            yield PromptedObjects(kind, given[rows], masks[rows], [labels[row] for row in rows.tolist()])


def pair_ious(found: Tensor, truth: Tensor) -> list[float]:
    """IoU of masks, `[P, H, W]` each, pair by pair."""
    found, truth = found.bool().flatten(1), truth.bool().flatten(1)
    return ((found & truth).sum(1) / (found | truth).sum(1).clamp(min=1)).tolist()


def scores_and_ious(predictor: Predictor, split: SegmentationDataset) -> tuple[list[float], list[float]]:
    """Score and IoU with the truth of all prompts of a split after one round of refinement; the class is given."""
    scores, ious, generator = [], [], torch.Generator().manual_seed(0)
    for image, masks, labels in objects_of_images(split, "calibrate"):
        encoded = predictor.encode(image)
        for prompts in prompts_of(masks, labels, generator):
            found = predictor.refine(encoded, **prompts.arguments)
            scores += [row["score"] for row in found["segments_info"]]
            ious += pair_ious(found["segmentation"], prompts.truth)
    return scores, ious
