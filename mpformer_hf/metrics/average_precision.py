"""COCO's average precision of instance masks, computed by pycocotools."""

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
AP = precision averaged over recall (101 points), classes and IoU thresholds 0.5, 0.55, ..., 0.95; AP50, AP75: at IoU
0.5 and 0.75; small, medium, large: objects of area below 32^2, from 32^2 to 96^2, and above 96^2 pixels; AR = recall
averaged over IoU thresholds. Detections that match a crowd are ignored.
"""
SIZES = ("small", "medium", "large")


def as_rle(mask) -> dict:
    """A bool `[H, W]` mask or an RLE as pycocotools' compressed RLE."""
    if not isinstance(mask, dict):
        return coco_mask.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
    return coco_mask.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask


class AveragePrecision(evaluate.Metric):
    """Stores RLE masks per image; `compute` gathers them from all processes.

    Args:
        num_labels: number of classes K; ids are 0..K-1.
        max_detections: number of best-scored instances per image that are counted.
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
                "predictions and references: per image a dict of `masks`, bool (n, height, width) or a list of RLE, "
                "and `label_ids`; predictions also have `scores`, references may have `iscrowd`"
            ),
            features=datasets.Features({"predictions": {}, "references": {}}),
        )

    def reset(self) -> None:
        self.images: list[dict] = []

    def add(self, *, prediction, reference) -> float:
        """Add one image.

        Returns:
            mean over its objects (without crowds) of the IoU with the best instance of their class; without objects 1
            if nothing was predicted, else 0.

        Raises:
            ValueError: numbers of masks, labels and scores differ.
        """
        image = {"prediction": [], "reference": []}
        for name, content, key in (("prediction", prediction, "scores"), ("reference", reference, "iscrowd")):
            extra = content.get(key, [0] * len(content["label_ids"]))
            if not len(content["masks"]) == len(content["label_ids"]) == len(extra):
                raise ValueError(f"{name}: {len(content['masks'])} masks, {len(content['label_ids'])} labels.")
            rows = zip(content["masks"], content["label_ids"], extra, strict=True)
            image[name] = [(as_rle(mask), int(label), float(x)) for mask, label, x in rows]
        self.images.append(image)
        best = []
        for rle, label, crowd in image["reference"]:
            if not crowd:
                same_class = [mask for mask, other, _ in image["prediction"] if other == label]
                best.append(coco_mask.iou(same_class, [rle], [0]).max() if same_class else 0.0)
        return float(np.mean(best)) if best else float(not image["prediction"])

    def add_batch(self, *, predictions, references) -> None:
        """Add several images, see `add`."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(self) -> dict:
        """Scores of all images since the last call.

        Returns:
            `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, `ar` in [0, 1], and `per_class_ap`; None without
            an object (of the size, of the class).
        """
        images = gather_object(self.images)
        self.reset()
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = self.evaluate(images)
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        # precision: [IoU thresholds, recall points, classes, areas, max detections]; -1 = no object

        def mean(values: np.ndarray) -> float | None:
            return float(values[values > -1].mean()) if (values > -1).any() else None

        per_class = [precision[:, :, label, 0, -1] for label in range(self.num_labels)]
        return {
            "ap": mean(precision[:, :, :, 0, -1]),
            "ap50": mean(precision[0, :, :, 0, -1]),
            "ap75": mean(precision[5, :, :, 0, -1]),
            **{f"ap_{size}": mean(precision[:, :, :, i, -1]) for i, size in enumerate(SIZES, start=1)},
            "ar": mean(recall[:, :, 0, -1]),
            "per_class_ap": [mean(values) for values in per_class],
        }

    def evaluate(self, images: list[dict]) -> COCOeval:
        """Run pycocotools' evaluation."""
        annotations, detections, sizes = [], [], []
        for index, image in enumerate(images):
            for rle, label, crowd in image["reference"]:
                row = {"image_id": index, "category_id": label, "segmentation": rle, "iscrowd": int(crowd)}
                annotations.append({**row, "area": float(coco_mask.area(rle)), "id": len(annotations) + 1})
            for rle, label, score in image["prediction"]:
                row = {"image_id": index, "category_id": label, "segmentation": rle, "iscrowd": 0, "score": score}
                detections.append({**row, "area": float(coco_mask.area(rle)), "id": len(detections) + 1})
            height, width = next((rle["size"] for rle, *_ in image["reference"] + image["prediction"]), (0, 0))
            sizes.append({"id": index, "height": height, "width": width})
        categories = [{"id": label} for label in range(self.num_labels)]
        ground_truth, results = COCO(), COCO()
        for coco, rows in ((ground_truth, annotations), (results, detections)):
            coco.dataset = {"images": sizes, "categories": categories, "annotations": rows}
            coco.createIndex()
        evaluation = COCOeval(ground_truth, results, "segm")
        evaluation.params.maxDets = [1, 10, self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation
