"""The average precision of a resample is pycocotools' of the images it has."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scripts.study.bootstrap import matches_of, mean_precision


def rle(left: int, top: int) -> dict:
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[top : top + 12, left : left + 12] = 1
    return coco_mask.encode(mask)


def random_split(generator, images: int) -> tuple[list[dict], list[dict]]:
    """Objects, some of them crowds, and predictions near some of them."""
    objects, predictions = [], []
    for image in range(images):
        for _ in range(generator.integers(0, 5)):
            left, top, label = generator.integers(0, 48), generator.integers(0, 28), int(generator.integers(1, 3))
            row = {"image_id": image, "category_id": label, "segmentation": rle(left, top), "area": 144}
            objects.append({**row, "iscrowd": int(generator.random() < 0.2)})
            moved = rle(min(left + generator.integers(0, 5), 48), top)
            predictions.append(
                {"image_id": image, "category_id": label, "segmentation": moved, "score": generator.random()}
            )
        predictions.append({**predictions[-1], "image_id": image, "score": generator.random()}) if predictions else None
    return objects, predictions


def coco_of(objects: list[dict], images: int) -> COCO:
    coco = COCO()
    annotations = [{**row, "id": index + 1} for index, row in enumerate(objects)]
    rows = [{"id": image, "height": 40, "width": 60} for image in range(images)]
    coco.dataset = {"images": rows, "categories": [{"id": 1}, {"id": 2}], "annotations": annotations}
    coco.createIndex()
    return coco


def repeated(rows: list[dict], weights: list[int]) -> list[dict]:
    """Rows of each image as often as its weight, in images of their own."""
    copies = [image for image, weight in enumerate(weights) for _ in range(weight)]
    return [{**row, "image_id": new} for new, old in enumerate(copies) for row in rows if row["image_id"] == old]


@pytest.mark.parametrize("weights", [[1] * 6, [2, 0, 1, 3, 0, 1]])
def test_weights_are_repetitions(weights, tmp_path):
    objects, predictions = random_split(np.random.default_rng(3), 6)
    (tmp_path / "p.json").write_text(
        json.dumps(predictions, default=lambda x: x.decode() if isinstance(x, bytes) else float(x))
    )
    order = [3, 0, 5, 1, 4, 2]  # rows of the split, whose ids do not ascend
    classes = matches_of(coco_of(objects, 6), order, tmp_path / "p.json")
    found = mean_precision(classes, np.array(weights)[order])
    reference = coco_of(repeated(objects, weights), sum(weights))
    evaluation = COCOeval(reference, reference.loadRes(repeated(predictions, weights)), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    assert found == pytest.approx(precision[precision > -1].mean(), abs=1e-9) and 0.1 < found < 0.9
