"""Does `mpformer audit` find planted errors? Precision and AUROC beside a ranking by the plain loss.

python -m scripts.audit_scores outputs/planted data/solids_planted --task panoptic \\
    --output_file training/results/study/audit_solids.json

The dataset is one of `scripts/plant_errors.py`; the model was trained on it, errors included. An annotation's suspicion
is that of its most suspicious finding. Its plain loss is the weighted sum of classification, mask and dice loss of the
query that Hungarian matching gives it, as in training, over all pixels. Objects without annotation have no loss:
`missing` is scored among the predictions that no annotation covers, by whether they are planted (IoU of at least 0.5
with the true mask), and images by whether they have any error. AUROC: chance that an error is ranked above what is
none. Precision at k: share of errors among the k highest, k being the number of errors.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from scipy.stats import mannwhitneyu
from torch import Tensor
from torch.nn import functional as F

from mpformer_hf.cli.audit import auditing_predictor
from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.coco_masks import decode_segmentation
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.evaluation.audit import SAME_OBJECT, Annotation, audit_image
from mpformer_hf.files import read_json, write_json
from mpformer_hf.inference import Predictor
from mpformer_hf.matcher import mask_costs
from mpformer_hf.metrics.average_precision import as_rle
from mpformer_hf.progress import progress


def score_rows(rows: list[tuple[str | None, float]]) -> dict:
    """AUROC and precision at k of a ranking; each row is the kind of an error, or None, and its value."""
    errors, others = ([value for kind, value in rows if (kind is not None) == wanted] for wanted in (True, False))
    if not errors or not others:
        return {"auroc": None, "precision": None, "errors": len(errors), "others": len(others)}
    auroc = mannwhitneyu(errors, others).statistic / (len(errors) * len(others))
    values = np.array(errors + others)
    threshold = np.sort(values)[-len(errors)]
    above, ties = values > threshold, values == threshold
    is_error = np.arange(len(values)) < len(errors)
    chosen = is_error[above].sum() + is_error[ties].mean() * (len(errors) - above.sum())  # ties in random order
    precision = chosen / len(errors)
    return {"auroc": round(auroc, 4), "precision": round(precision, 4), "errors": len(errors), "others": len(others)}


@torch.no_grad()
def plain_losses(predictor: Predictor, image: Tensor, annotations: list[Annotation]) -> list[float]:
    """Loss of the query that is matched to each annotation."""
    if not annotations:
        return []
    outputs, config = predictor.forward_scaled([image], 1.0), predictor.model.config
    valid = outputs.pixel_mask[0].bool()
    logits = F.interpolate(outputs.masks_queries_logits, valid.shape, mode="bilinear", align_corners=False)[0]
    logits = logits[:, : int(valid.any(1).sum()), : int(valid.any(0).sum())]
    logits = F.interpolate(logits[None], image.shape[1:], mode="bilinear", align_corners=False)[0].flatten(1)
    truth = torch.from_numpy(np.stack([a.mask for a in annotations])).float().flatten(1)
    labels = torch.tensor([a.label_id for a in annotations])
    mask, dice = mask_costs(logits, truth)
    log_classes = outputs.class_queries_logits[0].log_softmax(-1)[:, labels]
    masks = config.mask_weight * mask + config.dice_weight * dice
    cost = masks - config.class_weight * log_classes.exp()
    queries, targets = linear_sum_assignment(cost.numpy())
    losses = (masks - config.class_weight * log_classes)[queries, targets]
    found = dict(zip(targets.tolist(), losses.tolist(), strict=True))
    return [found.get(index, float("inf")) for index in range(len(annotations))]


def match_removed(masks: list[np.ndarray], errors: list[dict]) -> list[int | None]:
    """For each mask the index of the object, of those whose annotation was removed, that it is of, or None."""
    removed = [e["mask"] for e in errors if e["kind"] == "missing"]
    if not masks or not removed:
        return [None] * len(masks)
    true = [as_rle(decode_segmentation(rle, *rle["size"])) for rle in removed]
    ious = coco_mask.iou([as_rle(mask) for mask in masks], true, [0] * len(true))
    return [int(row.argmax()) if row.max() >= SAME_OBJECT else None for row in ious]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model that was trained on the dataset")
    parser.add_argument("dataset", type=Path, help="folder of scripts/plant_errors.py")
    parser.add_argument("--task", choices=("instance", "panoptic"), required=True, help="task of the annotations")
    parser.add_argument("--split", default="train", help="split that has the errors")
    parser.add_argument("--most_images", type=int, help="only the first images")
    parser.add_argument("--output_file", type=Path, help="JSON of the results")
    args = parser.parse_args(argv)
    data = DataArguments(dataset_name=str(args.dataset), task=args.task)
    split, planted = open_dataset(data, args.split, args.most_images), defaultdict(list)
    for error in read_json(args.dataset / "planted.json"):
        planted[error["row"]].append(error)
    predictor = auditing_predictor(args.model)
    predictor.processor.label_ids_to_fuse = split.labels.stuff
    # (kind of the error or None, value) by method, of annotations, images and predictions without annotation
    annotated, images, missing = {"audit": [], "loss": []}, {"audit": [], "loss": []}, []
    removed = predicted = 0
    for row in progress(range(len(split)), "audit", unit="image"):
        image, segments = split[row]
        annotations, findings = audit_image(predictor, image, segments, split.labels.things)
        losses, kinds = plain_losses(predictor, image, annotations), {e["segment"]: e["kind"] for e in planted[row]}
        for annotation, loss in zip(annotations, losses, strict=True):
            own = [f.suspicion for f in findings if f.annotation is annotation]
            annotated["audit"].append((kinds.get(annotation.segment), max(own, default=0.0)))
            annotated["loss"].append((kinds.get(annotation.segment), loss))
        absent = [f for f in findings if f.kind == "missing"]
        matches = match_removed([f.mask for f in absent], planted[row])
        missing += [(None if m is None else "missing", f.suspicion) for m, f in zip(matches, absent, strict=True)]
        removed += sum(error["kind"] == "missing" for error in planted[row])
        predicted += len(set(matches) - {None})
        kind = "image" if planted[row] else None
        images["audit"].append((kind, max((f.suspicion for f in findings), default=0.0)))
        images["loss"].append((kind, max(losses, default=0.0)))
    result = {"model": Path(args.model).name, "dataset": args.dataset.name, "images": len(split)}
    for method, rows in annotated.items():
        kinds = sorted({kind for kind, _ in rows} - {None})
        result[method] = {kind: score_rows([row for row in rows if row[0] in (kind, None)]) for kind in kinds}
        result[method] |= {"all annotations": score_rows(rows), "images": score_rows(images[method])}
    result["audit"]["missing"] = score_rows(missing)
    result |= {"removed_objects": removed, "removed_objects_with_a_prediction": predicted}
    for method in annotated:
        for kind, scores in result[method].items():
            numbers = f"AUROC {scores['auroc']}, precision {scores['precision']}, {scores['errors']} errors"
            print(f"{method:<6} {kind:<16} {numbers}")
    if args.output_file:
        write_json(result, args.output_file)


if __name__ == "__main__":
    run_command(main)
