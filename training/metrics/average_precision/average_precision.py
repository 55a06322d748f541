"""COCO's average precision of instance masks, by pycocotools."""

import contextlib
import io

import datasets
import evaluate
import numpy as np
from accelerate.utils import gather_object
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

DESCRIPTION = """
AP = precision averaged over recall (101 points), classes, and IoU thresholds 0.5, 0.55, ..., 0.95; AP50 and AP75 at one
threshold; small, medium, large: objects below 32^2, below 96^2, and above, in pixels; AR = recall averaged over IoU
thresholds. Crowds match anything and count for nothing.
"""
SIZES = ("small", "medium", "large")


def as_rle(mask) -> dict:
    """A bool `[H, W]` mask, or run lengths of it, as pycocotools' compressed run lengths."""
    if not isinstance(mask, dict):
        return coco_mask.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
    return coco_mask.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask


class AveragePrecision(evaluate.Metric):
    """Keeps compressed run lengths per image; reduces over all processes in `compute`.

    Args:
        num_labels: number of classes K; ids are 0..K-1.
        max_detections: best instances of an image that count.
    """

    def __init__(self, *args, num_labels: int, max_detections: int = 100, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_labels, self.max_detections = num_labels, max_detections
        self.reset()

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=(
                "predictions and references: per image a dict of `masks`, bool (n, height, width) or a list of run "
                "lengths, and `label_ids`; in predictions `scores`, in references, if there are any, `iscrowd`"
            ),
            features=datasets.Features({"predictions": {}, "references": {}}),
        )

    def reset(self) -> None:
        self.images: list[dict] = []

    def add(self, *, prediction, reference) -> float:
        """One image; returns the mean IoU of its objects with the best instance of their class (crowds apart; 1 without
        objects if nothing was found, else 0).

        Raises:
            ValueError: numbers of masks, labels and scores differ.
        """
        image = {"found": [], "truth": []}
        for name, content, key in (("found", prediction, "scores"), ("truth", reference, "iscrowd")):
            extra = content.get(key, [0] * len(content["label_ids"]))
            if not len(content["masks"]) == len(content["label_ids"]) == len(extra):
                raise ValueError(f"{name}: {len(content['masks'])} masks, {len(content['label_ids'])} labels.")
            rows = zip(content["masks"], content["label_ids"], extra, strict=True)
            image[name] = [(as_rle(mask), int(label), float(x)) for mask, label, x in rows]
        self.images.append(image)
        best = []
        for rle, label, crowd in image["truth"]:
            if not crowd:
                same = [found for found, other, _ in image["found"] if other == label]
                best.append(coco_mask.iou(same, [rle], [0]).max() if same else 0.0)
        return float(np.mean(best)) if best else float(not image["found"])

    def add_batch(self, *, predictions, references) -> None:
        """Several images, see `add`."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(self) -> dict:
        """`ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, `ar` in [0, 1] (0 where there are no objects of a
        size), and `per_class_ap` (None where a class never occurs); resets."""
        images = gather_object(self.images)
        self.reset()
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every step
            evaluation = self.evaluate(images)
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        # precision: [IoU thresholds, recall points, classes, areas, detections]; -1 where there is no object

        def mean(values: np.ndarray) -> float:
            return float(values[values > -1].mean()) if (values > -1).any() else 0.0

        per_class = [precision[:, :, label, 0, -1] for label in range(self.num_labels)]
        return {
            "ap": mean(precision[:, :, :, 0, -1]),
            "ap50": mean(precision[0, :, :, 0, -1]),
            "ap75": mean(precision[5, :, :, 0, -1]),
            **{f"ap_{size}": mean(precision[:, :, :, i, -1]) for i, size in enumerate(SIZES, start=1)},
            "ar": mean(recall[:, :, 0, -1]),
            "per_class_ap": [mean(values) if (values > -1).any() else None for values in per_class],
        }

    def evaluate(self, images: list[dict]) -> COCOeval:
        """pycocotools' own evaluation of all images."""
        truth, found = [], []
        for index, image in enumerate(images):
            for rle, label, crowd in image["truth"]:
                area = float(coco_mask.area(rle))
                row = {"image_id": index, "category_id": label, "segmentation": rle, "area": area}
                truth.append({**row, "iscrowd": int(crowd), "id": len(truth) + 1})
            for rle, label, score in image["found"]:
                row = {"image_id": index, "category_id": label, "segmentation": rle, "score": score}
                found.append({**row, "area": float(coco_mask.area(rle)), "iscrowd": 0, "id": len(found) + 1})
        sizes = []
        for index, image in enumerate(images):
            height, width = next((rle["size"] for rle, *_ in image["truth"] + image["found"]), (0, 0))
            sizes.append({"id": index, "height": height, "width": width})
        categories = [{"id": label} for label in range(self.num_labels)]
        ours, theirs = COCO(), COCO()
        ours.dataset = {"images": sizes, "categories": categories, "annotations": truth}
        theirs.dataset = {"images": sizes, "categories": categories, "annotations": found}
        ours.createIndex(), theirs.createIndex()
        evaluation = COCOeval(ours, theirs, "segm")
        evaluation.params.maxDets = [1, 10, self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation
