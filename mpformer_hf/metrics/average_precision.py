"""COCO's average precision of instance masks and of their boundaries, computed by pycocotools."""

import contextlib
import io

import numpy as np
from accelerate.utils import gather_object
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..model.label_maps import decompress_counts, encode_part, part_of_runs
from .boundary import boundary_reach, mask_boundary
from .metric import ImageMetric

DESCRIPTION = """
AP = precision averaged over recall (101 points), classes and IoU thresholds 0.5, 0.55, ..., 0.95; AP50, AP75: at IoU
0.5 and 0.75; small, medium, large: objects of area below 32^2, from 32^2 to 96^2, and above 96^2 pixels; AR = recall
averaged over IoU thresholds. Detections that match a crowd are ignored. Boundary AP: the same, with the smaller of the
IoU of masks and of boundaries (Cheng et al., "Boundary IoU", 2021, section 6).
"""
SIZES = ("small", "medium", "large")


def as_rle(mask) -> dict:
    """A bool `[H, W]` mask or an RLE as pycocotools' compressed RLE."""
    if not isinstance(mask, dict):
        return coco_mask.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
    return coco_mask.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask


def boundary_rle(rle: dict) -> dict:
    """RLE of the boundary of a compressed RLE."""
    height, width = rle["size"]
    part, top, left = part_of_runs(decompress_counts(rle["counts"]), height)
    return as_rle(encode_part(mask_boundary(part, boundary_reach(height, width)), top, left, height, width))


def best_overlaps(objects: list[tuple], predicted: list[tuple]) -> float | None:
    """Mean over objects (without crowds) of the IoU with the best prediction of their class; None without objects.

    Args:
        objects: RLE, class, whether it is a crowd.
        predicted: RLE, class, score.
    """
    best: list[float] = []
    for label in {label for _, label, crowd in objects if not crowd}:
        own = [rle for rle, other, crowd in objects if other == label and not crowd]
        same_class = [rle for rle, other, _ in predicted if other == label]
        best += coco_mask.iou(same_class, own, [0] * len(own)).max(0).tolist() if same_class else [0.0] * len(own)
    return float(np.mean(best)) if best else None


class BoundaryEvaluation(COCOeval):
    """COCO's evaluation with the smaller IoU, of masks or of boundaries; annotations have a `boundary`, an RLE."""

    def computeIoU(self, image, category):
        ious = super().computeIoU(image, category)
        objects, found = self._gts[image, category], self._dts[image, category]
        if not len(objects) or not len(found):
            return ious
        order = np.argsort([-row["score"] for row in found], kind="mergesort")[: self.params.maxDets[-1]]
        boundaries = [found[index]["boundary"] for index in order], [row["boundary"] for row in objects]
        return np.minimum(ious, coco_mask.iou(*boundaries, [int(row["iscrowd"]) for row in objects]))


class InstanceMetric(ImageMetric):
    """Base of average precisions: keeps what `add_image` makes of each image.

    Args:
        num_labels: number of classes K; ids are 0..K-1.
        max_detections: number of best-scored instances per image that are counted.
    """

    def __init__(self, *args, num_labels: int, max_detections: int = 100, **kwargs):
        self.num_labels, self.max_detections = num_labels, max_detections
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        self.images: list[dict] = []


class AveragePrecision(InstanceMetric):
    """COCO's average precision.

    Args:
        num_labels, max_detections: see `InstanceMetric`.
        boundary: also score boundaries.
    """

    description = DESCRIPTION
    inputs = (
        "predictions and references: per image a dict of `masks`, bool (n, height, width) or a list of RLE, and "
        "`label_ids`; predictions also have `scores`, references may have `iscrowd` and `areas`"
    )

    def __init__(self, *args, boundary: bool = False, **kwargs):
        self.boundary = boundary
        super().__init__(*args, **kwargs)

    def add_image(self, prediction, reference) -> float | None:
        """Add one image.

        Returns:
            mean over its objects of the IoU with the best instance, see `best_overlaps`.

        Raises:
            ValueError: numbers of masks, labels and scores differ.
        """
        image: dict[str, list] = {"prediction": [], "reference": []}
        for name, content, key in (("prediction", prediction, "scores"), ("reference", reference, "iscrowd")):
            extra = content.get(key, [0] * len(content["label_ids"]))
            if not len(content["masks"]) == len(content["label_ids"]) == len(extra):
                raise ValueError(f"{name}: {len(content['masks'])} masks, {len(content['label_ids'])} labels.")
            rows = zip(content["masks"], content["label_ids"], extra, strict=True)
            image[name] = [(as_rle(mask), int(label), float(x)) for mask, label, x in rows]
        image["areas"] = list(reference.get("areas") or [None] * len(image["reference"]))
        if self.boundary:
            self.add_boundaries(image)
        self.images.append(image)
        return best_overlaps(image["reference"], image["prediction"])

    @staticmethod
    def add_boundaries(image: dict) -> None:
        """Add the RLE of the boundaries; None for predictions of classes without an object, which need none."""
        labels = {label for _, label, _ in image["reference"]}
        for name in ("prediction", "reference"):
            image[f"{name}_boundary"] = [
                boundary_rle(rle) if label in labels else None for rle, label, _ in image[name]
            ]

    def scores(self) -> dict:
        """Scores of all images.

        Returns:
            `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, `ar` in [0, 1], and `per_class_ap`; None without
            an object (of the size, of the class). With `boundary` also `boundary_ap`. `ignored_predictions`: number of
            those on crowds at an IoU of 0.5, which are not counted.
        """
        images = gather_object(self.images)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = self.evaluate(images, COCOeval)
            boundaries = self.evaluate(images, BoundaryEvaluation) if self.boundary else None
        every_area = evaluation.params.areaRng[0]
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        # precision: [IoU thresholds, recall points, classes, areas, max detections]; -1 = no object

        def mean(values: np.ndarray) -> float | None:
            return float(values[values > -1].mean()) if (values > -1).any() else None

        per_class = [precision[:, :, label, 0, -1] for label in range(self.num_labels)]
        scores = {
            "ap": mean(precision[:, :, :, 0, -1]),
            "ap50": mean(precision[0, :, :, 0, -1]),
            "ap75": mean(precision[5, :, :, 0, -1]),
            **{f"ap_{size}": mean(precision[:, :, :, i, -1]) for i, size in enumerate(SIZES, start=1)},
            "ar": mean(recall[:, :, 0, -1]),
            "per_class_ap": [mean(values) for values in per_class],
            "ignored_predictions": sum(
                int(found["dtIgnore"][0].sum())
                for found in evaluation.evalImgs
                if found and found["aRng"] == every_area
            ),
        }
        if boundaries is not None:
            scores["boundary_ap"] = mean(boundaries.eval["precision"][:, :, :, 0, -1])
        return scores

    def evaluate(self, images: list[dict], kind: type[COCOeval]) -> COCOeval:
        """Run pycocotools' evaluation. Areas of objects are those of the dataset, where it states them."""
        annotations: list[dict] = []
        detections: list[dict] = []
        sizes: list[dict] = []
        for index, image in enumerate(images):
            for rows, name, extra in ((annotations, "reference", "iscrowd"), (detections, "prediction", "score")):
                areas = image["areas"] if name == "reference" else [None] * len(image[name])
                boundaries = image.get(f"{name}_boundary", areas)
                for (rle, label, value), area, border in zip(image[name], areas, boundaries, strict=True):
                    row = {"image_id": index, "category_id": label, "segmentation": rle, "iscrowd": 0, extra: value}
                    area = float(coco_mask.area(rle)) if area is None else float(area)
                    rows.append({**row, "area": area, "boundary": border, "id": len(rows) + 1})
            height, width = next((rle["size"] for rle, *_ in image["reference"] + image["prediction"]), (0, 0))
            sizes.append({"id": index, "height": height, "width": width})
        categories = [{"id": label} for label in range(self.num_labels)]
        ground_truth, results = COCO(), COCO()
        for coco, rows in ((ground_truth, annotations), (results, detections)):
            coco.dataset = {"images": sizes, "categories": categories, "annotations": rows}
            coco.createIndex()
        evaluation = kind(ground_truth, results, "segm")
        evaluation.params.maxDets = [1, 10, self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation
