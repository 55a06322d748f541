"""Metrics against straightforward computations."""

import evaluate
import numpy as np
import pytest

from training.evaluation import METRICS


def mean_iou(**kwargs):
    return evaluate.load(str(METRICS / "mean_iou"), **kwargs)


def panoptic_quality(**kwargs):
    return evaluate.load(str(METRICS / "panoptic_quality"), **kwargs)


def test_mean_iou_equals_counting_pixels():
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 4, (2, 5, 20, 30))
    references[:, :3] = 255
    predictions[predictions == 3] = 2
    references[references == 3] = 1
    metric = mean_iou(num_labels=4)
    metric.add_batch(predictions=predictions[:3], references=references[:3])
    metric.add_batch(predictions=predictions[3:], references=references[3:])
    result = metric.compute()
    valid = references != 255
    expected = []
    for label in range(3):
        p, r = (predictions == label) & valid, references == label
        expected.append((p & r).sum() / (p | r).sum())
    assert result["per_class_iou"][:3] == pytest.approx(expected) and result["per_class_iou"][3] is None
    assert result["mean_iou"] == pytest.approx(np.mean(expected))
    assert result["pixel_accuracy"] == pytest.approx((predictions == references)[valid].mean())
    assert metric.compute()["mean_iou"] == 0.0, "compute did not reset"


def test_mean_iou_refuses_what_does_not_fit():
    metric = mean_iou(num_labels=3)
    with pytest.raises(ValueError, match=r"expected 0\.\.2"):
        metric.add(prediction=[[0, 3]], reference=[[0, 1]])
    with pytest.raises(ValueError, match="the reference"):
        metric.add(prediction=[[0]], reference=[[0, 1]])


def random_segmentation(rng, void, crowd):
    """Vertical and horizontal strips with random classes."""
    ids = np.zeros((24, 36), dtype=np.int64)
    for index in range(1, 7):
        y, x, h, w = rng.integers(0, 18), rng.integers(0, 28), rng.integers(4, 16), rng.integers(4, 20)
        ids[y : y + h, x : x + w] = index
    if not void:
        ids[ids == 0] = 9
    rows = [{"id": int(i), "label_id": int(rng.integers(3))} for i in np.unique(ids) if i]
    if crowd:
        rows[0]["iscrowd"] = 1
    return {"segmentation": ids, "segments_info": rows}


def slow_pq(pairs, num_labels):
    """Panoptic quality by boolean masks, one pair of segments at a time."""
    table = np.zeros((num_labels, 4))
    for found, truth in pairs:
        void = truth["segmentation"] == 0
        used = set()
        for t in truth["segments_info"]:
            t_mask = truth["segmentation"] == t["id"]
            hit = False
            for f in found["segments_info"]:
                f_mask = found["segmentation"] == f["id"]
                union = (t_mask | (f_mask & ~void)).sum()
                iou = (t_mask & f_mask).sum() / union
                if iou > 0.5 and t["label_id"] == f["label_id"] and not t.get("iscrowd"):
                    table[t["label_id"], :2] += iou, 1
                    used.add(f["id"])
                    hit = True
            if not hit and not t.get("iscrowd"):
                table[t["label_id"], 3] += 1
        for f in found["segments_info"]:
            if f["id"] in used:
                continue
            f_mask = found["segmentation"] == f["id"]
            excused = void.copy()
            for t in truth["segments_info"]:
                if t.get("iscrowd") and t["label_id"] == f["label_id"]:
                    excused |= truth["segmentation"] == t["id"]
            if (f_mask & excused).sum() / f_mask.sum() <= 0.5:
                table[f["label_id"], 2] += 1
    iou, tp, fp, fn = table.T
    return [i / (t + p / 2 + n / 2) if t + p + n else None for i, t, p, n in zip(iou, tp, fp, fn, strict=True)]


@pytest.mark.parametrize("void", [True, False])
@pytest.mark.parametrize("crowd", [True, False])
def test_panoptic_quality_equals_comparing_masks(void, crowd):
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(30):
        truth = random_segmentation(rng, void, crowd)
        found = random_segmentation(rng, True, False)
        if rng.random() < 0.7:  # mostly right
            segmentation = np.roll(truth["segmentation"], 1, axis=1)
            found = {
                "segmentation": segmentation,
                "segments_info": [
                    {"id": s["id"], "label_id": s["label_id"] if rng.random() < 0.8 else 2}
                    for s in truth["segments_info"]
                ],
            }
        pairs.append((found, truth))
    metric = panoptic_quality(num_labels=4, thing_ids=[0, 1])
    metric.add_batch(predictions=[p for p, _ in pairs], references=[t for _, t in pairs])
    result = metric.compute()
    expected = slow_pq(pairs, 4)
    assert result["per_class_pq"] == pytest.approx(expected)
    assert expected[3] is None and min(expected[:3]) > 0.1
    assert result["pq"] == pytest.approx(np.mean(expected[:3]))
    assert result["pq_things"] == pytest.approx(np.mean(expected[:2]))
    assert result["pq_stuff"] == pytest.approx(expected[2])


def test_a_perfect_prediction_and_its_parts():
    truth = random_segmentation(np.random.default_rng(2), True, False)
    metric = panoptic_quality(num_labels=3)
    metric.add(prediction=truth, reference=truth)
    result = metric.compute()
    assert result["pq"] == result["sq"] == result["rq"] == 1.0


def test_half_a_segment_is_no_match():
    truth = {"segmentation": np.ones((4, 4), int), "segments_info": [{"id": 1, "label_id": 0}]}
    found = {"segmentation": np.repeat([[1], [1], [2], [2]], 4, 1)}
    found["segments_info"] = [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 0}]
    metric = panoptic_quality(num_labels=1)
    metric.add(prediction=found, reference=truth)
    assert metric.compute()["pq"] == 0.0


def test_panoptic_quality_refuses_nameless_segments():
    truth = {"segmentation": np.ones((2, 2), int), "segments_info": [{"id": 1, "label_id": 0}]}
    with pytest.raises(ValueError, match=r"The prediction has pixels of segments without a row: \[7\]"):
        panoptic_quality(num_labels=1).add(
            prediction={"segmentation": np.full((2, 2), 7), "segments_info": []}, reference=truth
        )
