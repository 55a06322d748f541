"""Metrics against straightforward computations."""

import evaluate
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from mpformer_hf.metrics.average_precision import AveragePrecision
from mpformer_hf.metrics.boundary import mask_boundary
from mpformer_hf.metrics.mean_iou import MeanIoU
from mpformer_hf.metrics.panoptic_quality import PanopticQuality
from mpformer_hf.model.label_maps import encode_rle


def mean_iou(**kwargs):
    return MeanIoU(**kwargs)


def panoptic_quality(**kwargs):
    return PanopticQuality(**kwargs)


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
    assert metric.compute()["mean_iou"] is None, "compute did not reset"


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
    with pytest.raises(ValueError, match=r"The prediction has pixels of segments that have no segments_info: \[7\]"):
        panoptic_quality(num_labels=1).add(
            prediction={"segmentation": np.full((2, 2), 7), "segments_info": []}, reference=truth
        )


def slow_boundary(labels, label, reach):
    """Pixels of a class that have something else, or nothing, in the window around them."""
    padded = np.pad(labels == label, reach)
    height, width = labels.shape
    inside = np.ones((height, width), dtype=bool)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            inside &= padded[dy : dy + height, dx : dx + width]
    return (labels == label) & ~inside


def test_boundary_mean_iou_equals_eroding_each_class():
    rng = np.random.default_rng(3)
    predictions, references = (np.kron(rng.integers(0, 3, (2, 4, 6, 9)), np.ones((12, 12), int))).reshape(2, 4, 72, 108)
    predictions[:, :40] = references[:, :40]
    references[0, 60:] = 255
    reach = round(0.02 * np.hypot(72, 108))
    assert reach > 1
    metric = mean_iou(num_labels=4)
    metric.add_batch(predictions=predictions, references=references)
    found, counts = metric.compute()["boundary_mean_iou"], np.zeros((2, 3))
    for prediction, reference in zip(predictions, references, strict=True):
        prediction = np.where(reference == 255, 255, prediction)
        for label in range(3):
            p, r = slow_boundary(prediction, label, reach) & (reference != 255), slow_boundary(reference, label, reach)
            counts[:, label] += (p & r).sum(), (p | r).sum()
    assert found == pytest.approx((counts[0] / counts[1]).mean()) and 0.1 < found < 0.95


def test_a_perfect_prediction_next_to_void_is_perfect():
    reference = np.zeros((50, 80), dtype=int)
    reference[20:30, 10:60], reference[:, 70:] = 1, 255
    prediction = np.where(reference == 255, 0, reference)
    metric = mean_iou(num_labels=2)
    metric.add(prediction=prediction, reference=reference)
    result = metric.compute()
    assert result["boundary_mean_iou"] == result["mean_iou"] == 1.0


def average_precision(**kwargs):
    return AveragePrecision(**kwargs)


def rectangles(rng, count, size=(160, 200)):
    masks = np.zeros((count, *size), dtype=bool)
    for mask in masks:
        y, x, h, w = rng.integers(0, 100), rng.integers(0, 130), rng.integers(6, 120), rng.integers(6, 120)
        mask[y : y + h, x : x + w] = True
    return masks


def instances(rng, count=8):
    truth = {"masks": rectangles(rng, count), "label_ids": rng.integers(0, 3, count).tolist()}
    truth["iscrowd"] = [0] * (count - 1) + [1]
    found = {
        "masks": np.concatenate([np.roll(truth["masks"], rng.integers(0, 8), axis=2), rectangles(rng, 3)]),
        "label_ids": [*truth["label_ids"], *rng.integers(0, 3, 3).tolist()],
        "scores": rng.random(count + 3).round(3).tolist(),
    }
    return found, truth


@pytest.mark.parametrize("most", [100, 4])
def test_average_precision_equals_pycocotools(most, capsys):
    rng = np.random.default_rng(4)
    pairs = [instances(rng) for _ in range(6)]
    metric = average_precision(num_labels=4, max_detections=most)
    metric.add_batch(predictions=[p for p, _ in pairs], references=[t for _, t in pairs])
    result = metric.compute()

    def rows(index, image, scored):
        columns = (image[key] for key in ("masks", "label_ids", "scores" if scored else "iscrowd"))
        for mask, label, extra in zip(*columns, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            row = {"image_id": index, "category_id": label, "segmentation": rle}  # with a box, COCO measures the box
            yield row | ({"score": extra} if scored else {"iscrowd": extra, "area": int(mask.sum())})

    truth = [row for index, (_, image) in enumerate(pairs) for row in rows(index, image, False)]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": 160, "width": 200} for i in range(6)],
        "categories": [{"id": label} for label in range(4)],
        "annotations": [{**row, "id": i} for i, row in enumerate(truth, start=1)],
    }
    coco.createIndex()
    found = coco.loadRes([row for index, (image, _) in enumerate(pairs) for row in rows(index, image, True)])
    official = COCOeval(coco, found, "segm")
    official.params.maxDets = [1, 10, most]
    official.evaluate()
    official.accumulate()
    precision = official.eval["precision"][..., -1]
    for name, values in {
        "ap": precision[:, :, :, 0],
        "ap50": precision[0, :, :, 0],
        "ap75": precision[5, :, :, 0],
        "ap_medium": precision[:, :, :, 2],
        "ap_large": precision[:, :, :, 3],
        "ar": official.eval["recall"][:, :, 0, -1],
    }.items():
        assert result[name] == pytest.approx(values[values > -1].mean()), name
    if most == 100:
        official.summarize()
        assert result["ap"] == pytest.approx(official.stats[0]) and result["ar"] == pytest.approx(official.stats[8])
    assert 0.05 < result["ap"] < 0.95 and result["per_class_ap"][3] is None
    assert metric.compute()["ap"] is None, "compute did not reset"


def test_average_precision_reads_run_lengths_and_scores_single_images():
    rng = np.random.default_rng(5)
    found, truth = instances(rng)
    metric = average_precision(num_labels=3)
    single = metric.add(prediction=found, reference=truth)
    as_rle = {**found, "masks": [encode_rle(mask) for mask in found["masks"]]}
    assert metric.add(prediction=as_rle, reference=truth) == single and 0.3 < single < 1
    perfect = {**truth, "scores": [1.0] * 8}
    assert metric.add(prediction=perfect, reference=truth) == 1.0
    nothing = {"masks": [], "label_ids": [], "scores": []}
    assert metric.add(prediction=nothing, reference=nothing) is None
    assert metric.add(prediction=found, reference=nothing) is None
    with pytest.raises(ValueError, match="prediction: 11 masks, 10 labels"):
        metric.add(prediction={**found, "label_ids": found["label_ids"][:-1]}, reference=truth)


def slow_mask_boundary(mask):
    """Erosion by a 3x3 square, once for each pixel of the width; outside of the image is no mask."""
    reach = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    padded = np.pad(mask, 1)
    return mask & ~ndimage.binary_erosion(padded, np.ones((3, 3)), reach)[1:-1, 1:-1]


@pytest.mark.parametrize("seed", range(5))
def test_boundaries_of_masks(seed):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(90, 160)), 6) > 0.02
    assert (mask_boundary(mask) == slow_mask_boundary(mask)).all() and mask_boundary(mask).sum() < mask.sum()
    for side in range(1, 9):  # of objects in an image whose boundaries reach 3 pixels
        whole = np.zeros((90, 120), bool)
        whole[40 : 40 + side, 50:70] = True
        part = mask_boundary(whole[40 : 40 + side, 50:70], 3)
        assert np.array_equal(mask_boundary(whole)[40 : 40 + side, 50:70], part)
        assert np.array_equal(mask_boundary(whole), slow_mask_boundary(whole))
    assert not mask_boundary(np.zeros((5, 7), bool)).any() and mask_boundary(np.ones((3, 3), bool)).sum() == 8


def test_boundary_ap_is_that_of_the_smaller_iou():
    """One object and one prediction an image, so that each is right at thresholds up to its IoU."""
    rng = np.random.default_rng(0)
    metric, ious, scores = average_precision(num_labels=1, boundary=True), [], rng.permutation(12) / 12
    for score in scores:
        truth = ndimage.gaussian_filter(rng.normal(size=(120, 160)), 12) > 0.03
        found = np.roll(truth, tuple(rng.integers(-3, 4, 2)), (0, 1))
        near = slow_mask_boundary(truth), slow_mask_boundary(found)
        ious.append(min((a & b).sum() / (a | b).sum() for a, b in ((truth, found), near)))
        prediction = {"masks": [found], "label_ids": [0], "scores": [float(score)]}
        metric.add(prediction=prediction, reference={"masks": [truth], "label_ids": [0]})
    expected, ordered = [], np.array(ious)[np.argsort(-scores)]
    for threshold in np.linspace(0.5, 0.95, 10):
        true = np.cumsum(ordered >= threshold)
        precision, recall = true / np.arange(1, 13), true / 12
        points = [precision[recall >= point - 1e-9] for point in np.linspace(0, 1, 101)]
        expected.append(np.mean([found.max() if len(found) else 0.0 for found in points]))
    result = metric.compute()
    assert result["boundary_ap"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert 0 < result["boundary_ap"] < result["ap"]


def test_boundary_pq_is_that_of_the_smaller_iou():
    rng = np.random.default_rng(1)
    metric = panoptic_quality(num_labels=2, thing_ids=[1], boundary=True)
    sums = np.zeros((2, 4))
    for _ in range(8):
        truth = (ndimage.gaussian_filter(rng.normal(size=(80, 100)), 9) > 0.02).astype(int) + 1
        found = np.roll(truth, tuple(rng.integers(-3, 4, 2)), (0, 1))
        rows = [{"id": i + 1, "label_id": i} for i in range(2)]
        metric.add(
            prediction={"segmentation": found, "segments_info": rows},
            reference={"segmentation": truth, "segments_info": rows},
        )
        for label in range(2):
            a, b = truth == label + 1, found == label + 1
            near = slow_mask_boundary(a), slow_mask_boundary(b)
            iou = min((x & y).sum() / (x | y).sum() for x, y in ((a, b), near))
            sums[label] += (iou, 1, 0, 0) if iou > 0.5 else (0, 0, 1, 1)
    expected = np.mean(sums[:, 0] / (sums[:, 1] + sums[:, 2] / 2 + sums[:, 3] / 2))
    scores = metric.compute()
    assert scores["boundary_pq"] == pytest.approx(expected, abs=1e-9) and scores["boundary_pq"] < scores["pq"]


def test_segments_without_pixels_are_missed_and_the_last_crowd_of_a_class_counts():
    truth = np.ones((4, 4), int)
    truth[2], truth[3] = 2, 3
    rows = [
        {"id": 1, "label_id": 0},
        {"id": 2, "label_id": 1, "iscrowd": True},
        {"id": 3, "label_id": 1, "iscrowd": True},
        {"id": 9, "label_id": 0},
    ]
    found = [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 1}, {"id": 3, "label_id": 1}]
    metric = panoptic_quality(num_labels=2, thing_ids=[0, 1])
    metric.add(
        prediction={"segmentation": truth, "segments_info": found},
        reference={"segmentation": truth, "segments_info": rows},
    )
    assert metric.statistics[0].tolist() == [[1, 1, 0, 1], [0, 0, 1, 0]]  # 9 is missed; 2 is on a crowd before the last


def test_metrics_are_combined_by_evaluate():
    """`evaluate.combine` of two metrics of label maps gives the scores of both, given at once or image by image."""
    generator = np.random.default_rng(0)
    maps = [generator.integers(0, 3, (2, 8, 9)) for _ in range(3)]
    alone = MeanIoU(num_labels=3)
    expected = alone.compute(predictions=[m[0] for m in maps], references=[m[1] for m in maps])
    both = evaluate.combine([MeanIoU(num_labels=3), MeanIoU(num_labels=3)])
    for prediction, reference in maps:
        both.add(prediction=prediction, reference=reference)
    scores = both.compute()
    assert scores["mean_io_u_0_mean_iou"] == scores["mean_io_u_1_mean_iou"] == expected["mean_iou"]


def test_metrics_need_no_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    for name in ("HF_METRICS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(evaluate.config, name, str(tmp_path / "missing"))
    MeanIoU(num_labels=2)
    assert not (tmp_path / "missing").exists()
