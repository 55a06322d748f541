"""`mpformer audit`: rank the annotations of a split, and write the page and the suggestions."""

import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch

from ..data.arguments import DataArguments
from ..data.census import log_census
from ..data.coco_masks import decode_all
from ..data.dataset import SegmentationDataset
from ..data.labels import check_classes
from ..data.opening import open_dataset
from ..data.writers.format import Category, ImageRecord, describe_segments
from ..data.writers.registry import make_writers
from ..evaluation.task_metrics import number
from ..inference.arguments import InferenceOptions, LoadingArguments
from ..inference.loading import with_task
from ..inference.predictor import Predictor
from ..utils.files import check_new_folder, write_json, write_new_folder
from ..utils.progress import progress
from .arguments import AuditArguments
from .audit import KINDS, annotations_of, audit_image
from .audit_page import choose_drawn, describe_finding, draw_finding, write_audit_page


def audit(loading: LoadingArguments, data: DataArguments, args: AuditArguments) -> None:
    """Audit a split.

    Raises:
        ValueError: an argument, the model or the dataset is invalid.
    """
    if data.streaming:
        raise ValueError("audit reads the whole dataset: leave out streaming.")
    data = with_task(data, loading.model, loading.revision)
    if data.task == "semantic":
        raise ValueError("audit is for objects: task must be instance or panoptic.")
    output = check_new_folder(args.output)
    make_writers(args.formats, output, "instance", [], polygons=args.polygons)  # needs packages, perhaps
    predictor = auditing_predictor(loading)
    split = open_dataset(data, data.eval_split, data.max_eval_samples)
    log_census(split, data.task, data.eval_split)
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
    if not findings and counts:
        print("note: no finding; `mpformer evaluate` tells whether the model finds these objects", file=sys.stderr)
    title = f"Audit of {Path(data.dataset_name).name}, {data.eval_split}, by {Path(loading.model).name}"
    with write_new_folder(output) as temporary:
        write_json(findings, temporary / "audit.json", indent=None)
        write_suggestions(findings, split, temporary, args)
        write_audit_page(temporary / "index.html", title, findings, counts, pictures, split.labels)
    kinds = Counter(finding["kind"] for finding in findings)
    print(", ".join(f"{kind}: {kinds[kind]}" for kind in KINDS), f"in {number(counts.total(), 'annotation')}")
    print(f"page: {output / 'index.html'}")


def auditing_predictor(loading: LoadingArguments) -> Predictor:
    """Predictor of a saved model, whose predictions of any score are evidence.

    Raises:
        ValueError: the model has no pilot.
    """
    predictor = Predictor.from_arguments(loading, "instance", InferenceOptions(threshold=0.0))
    if not predictor.model.config.mask_piloting:
        raise ValueError(f"{loading.model} has no pilot (mask_piloting is False), so it cannot audit masks.")
    return predictor


def write_suggestions(findings: list[dict], split: SegmentationDataset, output: Path, args: AuditArguments) -> None:
    """Write the suggestions as annotations that tools import, with the suspicion as score."""
    id2label = split.labels.id2label
    categories = [Category(label, name, True) for label, name in id2label.items()]
    writers = make_writers(args.formats, output, "instance", categories, polygons=args.polygons)
    by_image = defaultdict(list)
    for finding in findings:
        by_image[finding["row"]].append(finding)
    records = []
    for row in sorted(by_image):
        found = by_image[row]
        masks = decode_all([finding["segmentation"] for finding in found], *found[0]["segmentation"]["size"])
        rows = [
            {"id": number, "label_id": finding["suggested_label_id"], "score": finding["suspicion"]}
            for number, finding in enumerate(found, start=1)
        ]
        result = {"segmentation": torch.from_numpy(masks), "segments_info": rows}
        segments = describe_segments(result, "instance", id2label, mark_duplicates=False)
        for segment, finding in zip(segments, found, strict=True):
            told = {"finding": finding["kind"], "suspicion": finding["suspicion"], "annotated": finding["label"] or ""}
            segment["attributes"] = told
        image_id, file_name, name = split.identity(row)
        records.append(ImageRecord(image_id, file_name, name, masks.shape[1], masks.shape[2], segments))
        for writer in writers:
            writer.write(records[-1], result)
    for writer in writers:
        writer.finish(records)
