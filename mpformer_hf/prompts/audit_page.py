"""The page of the findings of an audit, the most suspicious first."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.coco_masks import decode_segmentation
from ..data.dataset import SegmentationDataset
from ..data.labels import Labels
from ..evaluation.drawing import DrawnSides
from ..evaluation.pages import class_buttons, picture_of, write_page
from ..evaluation.task_metrics import number
from ..inference.drawing import draw_segmentation
from ..model.boxes import mask_boxes
from ..model.label_maps import compress_counts, encode_rle
from .audit import KINDS, Annotation, Finding

MARGIN = 0.6  # of the object's longer side, around it in a picture
LEAST_MARGIN = 16  # in pixels
MEANINGS = {
    "mask": "the refined mask is far from the annotated one",
    "class": "predicted with another class",
    "missing": "predicted, but not annotated",
    "duplicate": "annotated twice",
}
MOST_IMAGES = 10  # of the table of images


def describe_finding(finding: Finding, row: int, dataset: SegmentationDataset) -> dict:
    """A finding as JSON: image, kind, suspicion, annotated and suggested class, suggested mask as RLE, and the reason.

    Args:
        finding: one of the image.
        row: of the image in the split.
        dataset: the split.
    """
    image_id, file_name, _ = dataset.identity(row)
    own, names, rle = finding.annotation, dataset.labels.names, encode_rle(finding.mask)
    return {
        "row": row,
        "image_id": image_id,
        "file_name": file_name,
        "kind": finding.kind,
        "suspicion": round(finding.suspicion, 4),
        "segment": None if own is None else own.segment,
        "label_id": None if own is None else own.label_id,
        "label": None if own is None else names[own.label_id],
        "suggested_label_id": finding.label_id,
        "suggested_label": names[finding.label_id],
        "segmentation": {"size": rle["size"], "counts": compress_counts(rle["counts"])},
        "text": finding.text,
    }


def choose_drawn(findings: list[dict], count: int) -> list[dict]:
    """Findings to draw, in their order: the first ones of each kind in equal numbers, then the first of the others."""
    kinds = {finding["kind"] for finding in findings}
    of_kind: Counter[str] = Counter()
    ranks = []
    for position, finding in enumerate(findings):
        of_kind[finding["kind"]] += 1
        ranks.append((of_kind[finding["kind"]] * len(kinds) > count, position))
    return [findings[position] for position in sorted(position for _, position in sorted(ranks)[:count])]


def draw_finding(image: Tensor, annotations: list[Annotation], finding: dict, labels: Labels) -> DrawnSides:
    """The part of an image around a finding: what is annotated, with the finding marked, and what is suggested.

    Args:
        image: uint8 `[3, H, W]`.
        annotations: of the image.
        finding: see `describe_finding`.
        labels: classes of the dataset.
    """
    mask = decode_segmentation(finding["segmentation"], *finding["segmentation"]["size"])
    own = next((a for a in annotations if a.segment == finding["segment"]), None)
    shown = mask | own.mask if own is not None else mask
    x0, y0, x1, y1 = mask_boxes(torch.from_numpy(shown)[None])[0].tolist()
    margin = max(LEAST_MARGIN, round(MARGIN * max(x1 - x0, y1 - y0)))
    rows, columns = slice(max(y0 - margin, 0), y1 + margin), slice(max(x0 - margin, 0), x1 + margin)
    photo = Image.fromarray(image[:, rows, columns].permute(1, 2, 0).numpy())
    given = [a for a in annotations if a.mask[rows, columns].any()]
    segments = [
        {"id": i, "label_id": a.label_id} | ({"mark": finding["kind"] + "?"} if a is own else {})
        for i, a in enumerate(given)
    ]
    masks = np.array([a.mask[rows, columns] for a in given]).reshape(-1, *photo.size[::-1])
    suggested = {"id": 0, "label_id": finding["suggested_label_id"], "mark": "suggested"}
    sides = (
        {"segmentation": masks, "segments_info": segments},
        {"segmentation": mask[rows, columns][None], "segments_info": [suggested]},
    )
    options: dict[str, Any] = {"opacity": 0.35, "legend": False, "palette": labels.palette}
    truth, prediction = (draw_segmentation(photo, side, labels.id2label, **options) for side in sides)
    classes = {finding["suggested_label_id"]} | ({own.label_id} if own is not None else set())
    return DrawnSides(truth, prediction, classes)


def describe(finding: dict) -> str:
    """Caption of a finding."""
    given = "" if finding["label"] is None else f"annotated as {finding['label']}, "
    same = finding["suggested_label"] == finding["label"]
    suggested = "" if same else f"suggested {finding['suggested_label']}, "
    head = f"{finding['file_name']}: {finding['kind']}, suspicion {finding['suspicion']:.2f}; "
    return f"{head}{given}{suggested}{finding['text']}"


def write_audit_page(
    file: Path,
    title: str,
    findings: list[dict],
    annotations: Counter,
    pictures: list[tuple[dict, DrawnSides]],
    labels: Labels,
) -> None:
    """Write the page.

    Args:
        file: HTML file.
        title: heading of the page.
        findings: of `describe_finding`, the most suspicious first.
        annotations: number of annotations of each class.
        pictures: findings and their pictures.
        labels: classes of the dataset.
    """
    by_class = Counter(
        (f["suggested_label_id"] if f["label_id"] is None else f["label_id"], f["kind"]) for f in findings
    )
    classes = [
        (labels.names[label], [annotations[label], *(by_class[label, kind] for kind in KINDS)])
        for label in sorted(labels.things)
    ]
    images = Counter(finding["file_name"] for finding in findings).most_common(MOST_IMAGES)
    tables = [
        (["class", "annotations", *KINDS], classes),
        (["image", "findings"], [(name, [count]) for name, count in images]),
    ]
    drawn = [finding for finding, _ in pictures]
    kinds = {finding["kind"] for finding in drawn}
    label_ids = {f["suggested_label_id"] for f in drawn} | {f["label_id"] for f in drawn} - {None}
    write_page(
        file,
        "audit.html",
        title=title,
        findings=number(len(findings), "finding"),
        annotations=number(annotations.total(), "annotation"),
        tables=tables if findings else [],
        drawn=[picture_of(sides, describe(finding), finding["kind"]) for finding, sides in pictures],
        drawn_count=number(len(pictures), "finding"),
        shown=[{"value": kind, "text": f"{kind}: {MEANINGS[kind]}", "color": None} for kind in KINDS if kind in kinds]
        + class_buttons(label_ids, labels),
    )
