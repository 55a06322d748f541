"""Objects that are found, missed and confused: pycocotools' precision, and cases that can be counted by hand."""

import numpy as np
import pytest
import torch
from pycocotools.cocoeval import COCOeval

from mpformer_hf.data.labels import Labels
from mpformer_hf.data.segments import Segments
from mpformer_hf.evaluation.details import EvaluationDetails
from mpformer_hf.evaluation.drawing import draw_sides, drawn_reference, mark_errors
from mpformer_hf.evaluation.object_matches import ObjectCounts, match_objects
from mpformer_hf.evaluation.report import object_section
from mpformer_hf.metrics.average_precision import AveragePrecision

NAMES = {0: "cat", 1: "dog", 2: "cow"}


def box(left, right, size=(20, 40)):
    mask = np.zeros(size, dtype=bool)
    mask[4:14, left:right] = True
    return mask


def random_image(generator, num_labels: int) -> tuple[dict, dict]:
    """Predictions that are moved objects, objects moved further, and others; some objects are crowds."""
    lefts = generator.integers(0, 26, size=8)
    masks = [box(left, left + generator.integers(6, 14)) for left in lefts]
    labels = generator.integers(0, num_labels, size=8).tolist()
    reference = {"masks": masks, "label_ids": labels, "iscrowd": [index % 4 == 3 for index in range(8)]}
    moved = [np.roll(mask, generator.integers(-5, 6), axis=1) for mask in masks + masks[:4]]
    others = [label if generator.random() < 0.8 else 0 for label in labels + labels[:4]]
    # scores that occur twice
    return {"masks": moved, "label_ids": others, "scores": generator.integers(1, 9, size=12) / 10}, reference


@pytest.mark.parametrize("seed", range(4))
def test_precision_is_that_of_pycocotools(seed):
    generator, counts, metric = np.random.default_rng(seed), ObjectCounts(3, 0.5), AveragePrecision(num_labels=3)
    for _ in range(6):
        prediction, reference = random_image(generator, 3)
        prediction["scores"] = generator.random(12)
        counts.add(prediction, reference)
        metric.add(prediction=prediction, reference=reference)
    precisions = metric.evaluate(metric.images, COCOeval).eval["precision"]
    levels = np.linspace(0, 1, 101)
    for label in range(3):
        _, precision, recall = counts.curve(label)
        highest = np.maximum.accumulate(precision[::-1])[::-1]  # as COCO interpolates
        at_level = np.append(highest, 0.0)[np.searchsorted(recall, levels, side="left")]
        expected = precisions[0, :, label, 0, -1]
        assert (expected > 0).sum() > 20
        np.testing.assert_allclose(at_level, expected, atol=1e-9)


def test_what_is_taken_for_another_class():
    masks = [box(0, 10), box(12, 22), box(24, 34), box(34, 40)]
    found = [box(0, 10), box(12, 21), box(24, 26), box(34, 40)]
    matches = match_objects(found, [0, 1, 2, 1], [0.9, 0.8, 0.7, 0.6], masks, [0, 2, 2, 1], [False, False, False, True])
    assert matches.same_class.tolist() == [0, -1, -1, -2] and matches.other_class.tolist() == [-1, 1, -1, -1]
    assert matches.missed == [1, 2]
    counts = ObjectCounts(3, 0.5)
    reference = {"masks": masks, "label_ids": [0, 2, 2, 1], "iscrowd": [False, False, False, True]}
    counts.add({"masks": found, "label_ids": [0, 1, 2, 1], "scores": [0.9, 0.8, 0.7, 0.6]}, reference)
    counts.add({"masks": found[:1], "label_ids": [0], "scores": [0.4]}, reference)
    # of each object: cat found and missed, cow taken for a dog, three cows missed; a false cow
    assert counts.confusion.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 3], [0, 0, 1, 0]]
    assert counts.objects.tolist() == [2, 0, 4] and len(counts.predictions) == 4
    both = ObjectCounts(3, 0.5)
    both += counts
    both += counts
    assert both.objects.tolist() == [4, 0, 8] and both.at_threshold(0.5) == pytest.approx((1 / 3, 1 / 6, 2 / 9))


def test_the_recommended_threshold_has_the_largest_f1():
    counts = ObjectCounts(1, 0.5)
    assert counts.best_threshold() is None and len(counts.curve()[0]) == 0
    counts.objects[0] = 4
    counts.predictions = [
        (0, 0.9, True),
        (0, 0.8, True),
        (0, 0.6, False),
        (0, 0.5, True),
        (0, 0.2, False),
        (0, 0.1, False),
    ]
    threshold, f1 = counts.best_threshold()
    assert (threshold, f1) == pytest.approx((0.35, 0.75))
    close = ObjectCounts(1, 0.5)
    close.objects[0] = 10
    close.predictions = [(0, 0.9991, True)] * 5 + [(0, 0.996, True)] * 5 + [(0, 0.9952, False)] * 20
    assert close.best_threshold() == (0.996, 1.0)
    section = object_section(close, Labels(["a"], {0: 0}, {0}), "instance")
    assert section["best"] == {"threshold": "0.996", "f1": "1.000"}
    assert ("0.996", ["1.000", "1.000", "1.000"]) in section["thresholds"]
    assert counts.at_threshold(threshold)[2] == pytest.approx(f1)
    assert max(counts.at_threshold(t)[2] for t in np.linspace(0, 1, 101)) == pytest.approx(f1)
    assert counts.at_threshold(0.95) == (1.0, 0.0, 0.0)


def test_errors_are_marked_but_not_on_void_or_crowds():
    maps = np.zeros((20, 40), dtype=int)
    for index, left in enumerate((0, 10, 20)):
        maps[4:14, left : left + 8] = index + 1
    maps[15:, :] = 4
    rows = [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 1}, {"id": 3, "label_id": 2}, {"id": 4, "label_id": 1}]
    rows[3]["iscrowd"] = True
    found = np.zeros((20, 40), dtype=int)
    found[4:14, 0:8], found[4:14, 10:18], found[0:3, :], found[16:, :] = 1, 2, 3, 4
    found[9:13, 20:23] = 5
    labels = [0, 0, 2, 1, 1]
    result = {"segmentation": found, "segments_info": [{"id": i + 1, "label_id": x} for i, x in enumerate(labels)]}
    truth, drawn = mark_errors({"segmentation": maps, "segments_info": rows}, result, NAMES)
    assert [row.get("mark") for row in truth["segments_info"]] == [None, "taken for cat", "missed", None]
    assert [row.get("mark") for row in drawn["segments_info"]] == [None, "is dog", None, None, "false"]
    assert "mark" not in rows[2] and "mark" not in result["segments_info"][1], "the arguments are not changed"


def test_void_that_the_dataset_states_is_not_false():
    maps = torch.zeros(20, 40, dtype=torch.int64)
    maps[4:14, :8], maps[4:14, 20:30] = 1, 7
    result = {"segmentation": (maps == 7)[None], "segments_info": [{"id": 0, "label_id": 0, "score": 0.9}]}
    for ignored, mark in ((frozenset({7}), None), (None, "false")):
        segments = Segments(map=maps, classes={1: 0}, ignored=ignored)
        reference = drawn_reference(segments, "instance", {0})
        assert mark_errors(reference, result, NAMES)[1]["segments_info"][0].get("mark") == mark
        details = EvaluationDetails(objects=ObjectCounts(3, 0.5))
        prediction = {"masks": [(maps == 7).numpy()], "label_ids": [0], "scores": [0.9]}
        details.add(1.0, 0, {"instance": prediction}, segments, {0})
        assert len(details.objects.predictions) == (mark == "false") and details.image_scores == [(0.0, 0, 1)]


def test_false_objects_lower_the_score_of_an_image():
    counts = ObjectCounts(2, 0.5)
    one = {"masks": [box(0, 10)], "label_ids": [0], "iscrowd": [False]}
    found = {"masks": [box(0, 10), box(20, 30), box(30, 40)], "label_ids": [0, 0, 1], "scores": [0.9, 0.8, 0.3]}
    assert counts.add(found, one) == pytest.approx(1 / 1.5)
    nothing = {"masks": [], "label_ids": [], "iscrowd": []}
    assert counts.add(found, nothing) == 0.0
    assert counts.add({"masks": [], "label_ids": [], "scores": []}, nothing) is None


def test_marks_are_drawn():
    maps = torch.zeros(60, 90, dtype=torch.int64)
    maps[10:50, 10:50] = 1
    segments = Segments(map=maps, classes={1: 0})
    nothing = {"segmentation": torch.zeros(0, 60, 90, dtype=torch.bool), "segments_info": []}
    labels = Labels(["cat"], {0: 0}, {0})
    sides = draw_sides(torch.full((3, 60, 90), 99, dtype=torch.uint8), nothing, segments, "instance", labels)
    red = (np.asarray(sides.truth).reshape(-1, 3) == (215, 0, 40)).all(1)
    assert red.sum() > 100 and sides.label_ids == {0}
    assert not (np.asarray(sides.prediction).reshape(-1, 3) == (215, 0, 40)).all(1).any()


def test_extremes_are_disjoint_ordered_and_not_trivial():
    details = EvaluationDetails([(0.5, 0, 3), (0.1, 1, 3), (0.9, 2, 3), (0.3, 3, 3), (0.7, 4, 3), (None, 5, 0)])
    assert details.extremes(4) == ([1, 3], [2, 4])
    assert details.extremes(99) == ([1, 3, 0], [2, 4])
    assert details.extremes(1) == ([1], []) and details.extremes(0) == ([], [])
    details.image_scores.append((1.0, 6, 0))
    assert details.extremes(4) == ([1, 3], [2, 4]), "an empty image is not among the best"
    assert EvaluationDetails([(0.5, 7, 1)]).extremes(4) == ([7], [])
