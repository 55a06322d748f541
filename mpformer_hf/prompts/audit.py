"""Which annotations of an image look wrong to a trained model.

Four kinds of findings, each with a suspicion in [0, 1]:

- mask: the pilot, given the annotation as prompt, moves far from it: score of the refined mask (if the model is
  calibrated, the IoU that such masks have with the truth on average) minus its IoU with the annotation;
- class: the prediction of this object, made without the annotation, is of another class: score of the other class x
  (1 - score of the annotated one);
- missing: an object is predicted, but not annotated: its score x the share of it that no annotation covers;
- duplicate: two annotations of one class are of the same object: their IoU.
"""

from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..data.coco_masks import decode_all
from ..data.segments import Segments
from ..evaluation.details import stated_void
from ..evaluation.task_metrics import instance_reference
from ..inference.predictor import Predictor
from ..metrics.average_precision import as_rle
from .ground_truth import pair_ious

KINDS = ("mask", "class", "missing", "duplicate")
SAME_OBJECT = 0.5  # smallest IoU of a prediction and the annotation of its object
SAME_QUERY = 0.8  # smallest IoU of predictions that are one object with several classes
DUPLICATE = 0.7  # smallest IoU of annotations of one object


@dataclass
class Annotation:
    """An annotated object.

    Attributes:
        segment: its id in `Segments`.
        label_id: its class.
        mask: bool `[H, W]`.
    """

    segment: int
    label_id: int
    mask: np.ndarray


@dataclass
class Finding:
    """What looks wrong.

    Attributes:
        kind: of `KINDS`.
        suspicion: in [0, 1].
        annotation: what is wrong, or None if it is missing.
        label_id: class that the model suggests.
        mask: mask that the model suggests, bool `[H, W]`; of a duplicate the other annotation's.
        text: the reason, without names of classes.
    """

    kind: str
    suspicion: float
    annotation: Annotation | None
    label_id: int
    mask: np.ndarray
    text: str


@dataclass
class PredictedObject:
    """Predictions of one object: its mask, bool `[H, W]`, and the score of each class that was predicted."""

    mask: np.ndarray
    scores: dict[int, float]

    @property
    def label_id(self) -> int:
        """The class with the highest score."""
        return max(self.scores, key=lambda label: self.scores[label])


def predicted_objects(result: dict) -> list[PredictedObject]:
    """Objects of an instance result, by descending score: predictions whose masks have an IoU of at least 0.8 with that
    of a better one are of the same object."""
    masks, rows = result["segmentation"].numpy(), result["segments_info"]
    kept = [index for index in np.argsort([-row["score"] for row in rows], kind="stable") if masks[index].any()]
    encoded = {index: as_rle(masks[index]) for index in kept}
    objects: list[PredictedObject] = []
    firsts: list[dict] = []
    for index in kept:
        ious = coco_mask.iou([encoded[index]], firsts, [0] * len(firsts))[0] if firsts else np.zeros(1)
        label, score = rows[index]["label_id"], rows[index]["score"]
        if firsts and ious.max() >= SAME_QUERY:
            objects[int(ious.argmax())].scores.setdefault(label, score)
        else:
            objects.append(PredictedObject(masks[index], {label: score}))
            firsts.append(encoded[index])
    return objects


def annotations_of(segments: Segments, things: set[int]) -> tuple[list[Annotation], np.ndarray]:
    """Annotated objects of an image, without crowds and those without pixels, and the pixels in which nothing can be
    missing, bool `[H, W]`: those of annotations and crowds, and of void where the dataset states it; all pixels of an
    image that is not complete."""
    reference = instance_reference(segments, things)
    ids = [segment for segment, label in (segments.classes | segments.crowds).items() if label in things]
    masks = decode_all(reference["masks"], *segments.map.shape[-2:])
    rows = list(zip(ids, reference["label_ids"], masks, reference["iscrowd"], strict=True))
    covered = np.logical_or.reduce([np.zeros(segments.map.shape[-2:], dtype=bool), *(mask for _, _, mask, _ in rows)])
    void = stated_void(reference, segments)
    if void is not None:
        covered |= void
    covered |= not segments.complete
    return [Annotation(i, label, mask) for i, label, mask, crowd in rows if not crowd and mask.any()], covered


def audit_image(
    predictor: Predictor, image: Tensor, segments: Segments, things: set[int]
) -> tuple[list[Annotation], list[Finding]]:
    """The annotations of an image, see `annotations_of`, and all findings, in no order.

    Args:
        predictor: of task instance, whose threshold is 0.
        image: uint8 `[3, H, W]`.
        segments: its annotations.
        things: classes of objects.
    """
    annotations, covered = annotations_of(segments, things)
    (result,) = predictor.predict([image])
    objects = predicted_objects(result)
    masks = [as_rle(annotation.mask) for annotation in annotations]
    predictions = [as_rle(found.mask) for found in objects]
    ious = np.zeros((len(objects), len(annotations)))
    if objects and annotations:
        ious = coco_mask.iou(predictions, masks, [0] * len(masks))
    findings = find_moved_masks(predictor, image, annotations)
    findings += find_wrong_classes(annotations, objects, ious)
    findings += [found for found in find_missing(objects, ious, covered) if not segments.not_exhaustive(found.label_id)]
    return annotations, findings + find_duplicates(annotations, masks)


def find_moved_masks(predictor: Predictor, image: Tensor, annotations: list[Annotation]) -> list[Finding]:
    """Annotations and what the pilot makes of them; one finding for each, unless the model finds no pixel."""
    if not annotations:
        return []
    given = torch.from_numpy(np.stack([annotation.mask for annotation in annotations]))
    refined = predictor.refine(image, masks=given, labels=[annotation.label_id for annotation in annotations])
    ious, found = pair_ious(refined["segmentation"], given), refined["segmentation"].numpy()
    rows = zip(annotations, found, refined["segments_info"], ious, strict=True)
    return [
        Finding(
            "mask",
            max(0.0, row["score"] - iou),
            annotation,
            annotation.label_id,
            mask,
            f"IoU of the annotation with the refined mask {iou:.2f}, score of the refined mask {row['score']:.2f}",
        )
        for annotation, mask, row, iou in rows
        if mask.any()
    ]


def find_wrong_classes(
    annotations: list[Annotation], objects: list[PredictedObject], ious: np.ndarray
) -> list[Finding]:
    """Annotations whose object is predicted with another class; of each class the highest score counts. `ious` are
    `[objects, annotations]`; objects are ordered by score."""
    findings = []
    for column, annotation in enumerate(annotations):
        near = [objects[row] for row in np.flatnonzero(ious[:, column] >= SAME_OBJECT)]
        if not near:
            continue
        scores: dict[int, float] = {}
        for found in near:
            scores |= {label: max(score, scores.get(label, 0.0)) for label, score in found.scores.items()}
        own = scores.pop(annotation.label_id, 0.0)
        if scores:
            label = max(scores, key=lambda label: scores[label])
            text = f"score of this class {scores[label]:.2f}, of the annotated one {own:.2f}"
            findings.append(Finding("class", scores[label] * (1 - own), annotation, label, annotation.mask, text))
    return findings


def find_missing(objects: list[PredictedObject], ious: np.ndarray, covered: np.ndarray) -> list[Finding]:
    """Predicted objects without an annotation; `covered` are the pixels of annotations and of void, bool `[H, W]`."""
    findings = []
    for row, found in enumerate(objects):
        share = float((found.mask & ~covered).sum() / found.mask.sum())
        if ious[row].max(initial=0.0) < SAME_OBJECT and share > SAME_OBJECT:
            score = found.scores[found.label_id]
            text = f"predicted with score {score:.2f}, {share:.0%} of it without annotation"
            findings.append(Finding("missing", score * share, None, found.label_id, found.mask, text))
    return findings


def find_duplicates(annotations: list[Annotation], masks: list[dict]) -> list[Finding]:
    """Annotations of the same class and object as an earlier one; `masks` are their RLEs."""
    if not annotations:
        return []
    ious, findings = coco_mask.iou(masks, masks, [0] * len(masks)), []
    for row, annotation in enumerate(annotations):
        for earlier in range(row):
            other, iou = annotations[earlier], float(ious[row, earlier])
            if iou >= DUPLICATE and other.label_id == annotation.label_id:
                text = f"IoU with another annotation of the same class {iou:.2f}"
                findings.append(Finding("duplicate", iou, annotation, annotation.label_id, other.mask, text))
    return findings
