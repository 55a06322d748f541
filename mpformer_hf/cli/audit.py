"""Which annotations of a dataset are wrong? Ranks them by what a trained model says against them.

mpformer audit --model_name_or_path outputs/yours --dataset_name data/yours --eval_split train --task instance \\
    --output_dir audit

Finds objects whose mask the pilot moves far from the annotated one (mask), that are predicted with another class
(class), that are predicted but not annotated (missing), and that are annotated twice (duplicate). The model may have
been trained on the same images. Writes audit/index.html, the most suspicious ones first; audit/audit.json, all findings
from `--min_suspicion` on; and audit/annotations/instances_default.json, the suggestions as COCO annotations, which CVAT
imports: kind and suspicion are their attributes. Stuff is not audited. Needs `pip install "mpformer-hf[data]"`.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.arguments import DataArguments
from ..data.coco_masks import decode_segmentation
from ..data.dataset import SegmentationDataset, open_dataset
from ..data.labels import check_classes
from ..data.writers.coco import Cvat
from ..data.writers.format import Category, ImageRecord
from ..evaluation.task_metrics import number
from ..inference.predictor import InferenceOptions, Predictor
from ..model.boxes import mask_boxes
from ..prompts.audit import KINDS, annotations_of, audit_image
from ..prompts.audit_page import choose_drawn, describe_finding, draw_finding, write_audit_page
from ..utils.arguments import CheckedArguments, option, parse
from ..utils.files import check_new_folder, write_json
from ..utils.progress import progress


@dataclass
class AuditArguments(CheckedArguments):
    """The model that is asked, and what is written."""

    _argument_group_name = "audit"

    model_name_or_path: str = option("", "Saved model with a pilot: folder or Hub name.")
    output_dir: str = option("", "New folder.")
    min_suspicion: float = option(0.2, "Findings with less are left out.", within="[0, 1]")
    num_pictures: int = option(60, "Findings that are drawn on the page.", within="[0, 10000]")


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: an argument, the model or the dataset is invalid.
    """
    data, args = parse([DataArguments, AuditArguments], argv, __doc__, "mpformer audit", ignore_unknown=True)
    for name in ("model_name_or_path", "output_dir"):
        if not getattr(args, name):
            raise ValueError(f"Give --{name}.")
    if not data.dataset_name or data.streaming:
        raise ValueError("Name a dataset with --dataset_name, and leave out streaming.")
    if data.task == "semantic":
        raise ValueError("audit is for objects: task must be instance or panoptic.")
    output = check_new_folder(Path(args.output_dir))
    predictor = auditing_predictor(args.model_name_or_path)
    split = open_dataset(data, data.eval_split, data.max_eval_samples)
    check_classes(predictor.model.config.id2label, split.labels.id2label)
    predictor.processor.label_ids_to_fuse = split.labels.stuff
    counts: Counter[int] = Counter()
    findings = []
    for row in progress(range(len(split)), "audit", unit="image"):
        annotations, found = audit_image(predictor, *split[row], split.labels.things)
        counts.update(annotation.label_id for annotation in annotations)
        findings += [describe_finding(x, row, split) for x in found if x.suspicion >= args.min_suspicion]
    findings.sort(key=lambda finding: -finding["suspicion"])
    pictures = []
    for finding in progress(choose_drawn(findings, args.num_pictures), "draw", unit="picture"):
        image, segments = split[finding["row"]]
        annotations, _ = annotations_of(segments, split.labels.things)
        pictures.append((finding, draw_finding(image, annotations, finding, split.labels)))
    write_json(findings, output / "audit.json", indent=None)
    write_suggestions(findings, split, output)
    title = f"Audit of {Path(data.dataset_name).name}, {data.eval_split}, by {Path(args.model_name_or_path).name}"
    write_audit_page(output / "index.html", title, findings, counts, pictures, split.labels)
    kinds = Counter(finding["kind"] for finding in findings)
    print(", ".join(f"{kind}: {kinds[kind]}" for kind in KINDS), f"in {number(counts.total(), 'annotation')}")
    print(f"page: {output / 'index.html'}")


def auditing_predictor(model: str) -> Predictor:
    """Predictor of a saved model, whose predictions of any score are evidence.

    Raises:
        ValueError: the model has no pilot.
    """
    predictor = Predictor.from_pretrained(model, "instance", InferenceOptions(threshold=0.0))
    if not predictor.model.config.mask_piloting:
        raise ValueError(f"{model} has no pilot (mask_piloting is False), so it cannot audit masks.")
    return predictor


def write_suggestions(findings: list[dict], split: SegmentationDataset, output: Path) -> None:
    """Write the suggestions as annotations that CVAT imports."""
    records: dict[int, ImageRecord] = {}
    for finding in findings:
        size, row = finding["segmentation"]["size"], finding["row"]
        image_id, file_name, name = split.identity(row)
        record = records.setdefault(row, ImageRecord(image_id, file_name, name, *size))
        mask = decode_segmentation(finding["segmentation"], *size)
        x0, y0, x1, y1 = mask_boxes(torch.from_numpy(mask)[None])[0].tolist()
        attributes = {
            "finding": finding["kind"],
            "suspicion": finding["suspicion"],
            "annotated": finding["label"] or "",
        }
        record.segments.append(
            {
                "label_id": finding["suggested_label_id"],
                "score": finding["suspicion"],
                "area": int(mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": finding["segmentation"],
                "attributes": attributes,
            }
        )
    categories = [Category(label, name, True) for label, name in split.labels.id2label.items()]
    Cvat(output, "instance", categories, 0.0).finish([records[row] for row in sorted(records)])
