"""Tests of `task_metrics`."""

import json

import hotcoco
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mpformer_hf.data.labels import Labels
from mpformer_hf.data.segments import ObjectMask, Segments, from_objects
from mpformer_hf.evaluation.task_metrics import TaskMetrics, format_score
from mpformer_hf.metrics.average_precision import AveragePrecision, as_rle


def test_scores_without_objects_are_none_and_shown_as_a_dash():
    metric = AveragePrecision(num_labels=2)
    mask = np.zeros((1, 40, 40), dtype=bool)
    mask[0, :10, :10] = True
    truth = {"masks": mask, "label_ids": [0]}
    metric.add(prediction={**truth, "scores": [1.0]}, reference=truth)
    scores = metric.compute()
    assert scores["ap"] == scores["ap_small"] == pytest.approx(1)
    assert scores["ap_medium"] is None and scores["ap_large"] is None and scores["per_class_ap"][1] is None
    assert json.loads(json.dumps(scores)) == scores and format_score(scores["ap_large"]) == "-"


def random_masks(rng, count, size=48):
    masks = np.zeros((count, size, size), dtype=bool)
    for mask in masks:
        y, x, height, width = rng.integers(0, 30), rng.integers(0, 30), rng.integers(6, 18), rng.integers(6, 18)
        mask[y : y + height, x : x + width] = True
    return masks


def lvis_images(rng, number=12, classes=4):
    """Objects, shifted and added predictions, and the classes that were looked for in vain, or labelled in part."""
    for _ in range(number):
        truth = random_masks(rng, 5)
        labels = rng.integers(0, classes, 5)
        predicted = np.concatenate((np.roll(truth, rng.integers(0, 3), axis=2), random_masks(rng, 6)))
        predicted_labels = np.concatenate((labels, rng.integers(0, classes, 6)))
        absent = [label for label in range(classes) if label not in labels]
        negative = [label for label in absent if rng.random() < 0.5]
        partly = [label for label in set(labels.tolist()) if rng.random() < 0.4]
        yield truth, labels, predicted, predicted_labels, rng.random(11), negative, partly


def test_ap_of_partly_annotated_images_is_that_of_lvis():
    rng = np.random.default_rng(0)
    labels = Labels([f"class {i}" for i in range(4)], {i: i for i in range(4)}, set(range(4)))
    metrics = TaskMetrics("instance", labels, max_detections=300)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(labels.names)],
    }
    content["categories"] = [{**row, "frequency": "f"} for row in content["categories"]]
    detections = []
    for number, (truth, classes, predicted, predicted_classes, scores, negative, partly) in enumerate(lvis_images(rng)):
        image = {"id": number, "height": 48, "width": 48, "neg_category_ids": negative}
        content["images"].append({**image, "not_exhaustive_category_ids": partly})
        for mask, label in zip(truth, classes.tolist(), strict=True):
            row = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": label, "iscrowd": 0}
            content["annotations"].append({**row, **rle_and_area(mask)})
        for mask, label, score in zip(predicted, predicted_classes.tolist(), scores.tolist(), strict=True):
            detections.append({"image_id": number, "category_id": label, "score": score, **rle_and_area(mask)})
        known = (set(classes.tolist()) | set(negative)) - set(partly)
        objects = (ObjectMask(mask, int(label)) for mask, label in zip(truth, classes, strict=True))
        segments = from_objects(objects, 48, 48)
        segments.annotated = tuple(label in known for label in range(4))
        prediction = {"masks": predicted, "label_ids": predicted_classes.tolist(), "scores": scores.tolist()}
        metrics.add({"instance": prediction}, segments)
    ours = metrics.compute()
    tool = hotcoco.COCOeval(hotcoco.COCO(content), hotcoco.COCO(content).load_res(detections), "segm", lvis_style=True)
    tool.run()
    theirs = tool.get_results()
    for name, key in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75")):
        assert ours[name] == pytest.approx(theirs[key], abs=1e-9)
    assert ours["ignored_predictions"] > 10


def rle_and_area(mask):
    rle = as_rle(mask)
    area, box = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    return {"segmentation": {**rle, "counts": rle["counts"].decode()}, "area": area, "bbox": box}


@pytest.mark.parametrize("complete", [True, False])
def test_predictions_that_may_be_right_are_not_wrong(complete):
    """One object is found; another prediction has no object, and a third lies on an ignored region."""
    masks = np.zeros((3, 40, 40), dtype=bool)
    masks[0, :10, :10] = masks[1, 20:30, :10] = masks[2, 30:, 30:] = True
    labels = Labels(["a", "b"], {0: 0, 1: 1}, {0, 1})
    map_ = torch.from_numpy(masks[0] * 1 + masks[2] * 7).int()
    ids = (masks * np.array([1, 2, 3])[:, None, None]).sum(0)
    rows = [{"id": number, "label_id": int(number == 4), "score": 1.0} for number in (1, 2, 3, 4)]
    predictions = {
        "instance": {"masks": masks, "label_ids": [0, 0, 0], "scores": [0.7, 0.8, 0.9]},
        "panoptic": {"segmentation": torch.from_numpy(np.where(ids, ids, 4)), "segments_info": rows},
        "semantic": torch.zeros(40, 40),
    }
    rest = torch.where(map_ == 0, 2, map_)  # in panoptic segmentation, what has no segment is void
    for task, segments, wrong in (
        ("instance", Segments(map_, {1: 0}, ignored_objects=frozenset({7}), complete=complete), 0.5),
        ("panoptic", Segments(rest, {1: 0, 2: 1}, ignored_objects=frozenset({7}), complete=complete), 2 / 3),
    ):
        metrics = TaskMetrics(task, labels)
        metrics.add(predictions, segments)
        scores = metrics.compute()
        score = scores["per_class_ap" if task == "instance" else "per_class_pq"]["a"]
        assert score == pytest.approx(1.0 if not complete else wrong, abs=0.01)
        assert scores["ignored_predictions"] == (1 if complete else 2)
