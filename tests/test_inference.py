"""Test-time augmentation and sliding windows."""

import numpy as np
import pytest
import torch

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.inference import (
    InferenceOptions,
    Predictor,
    WindowSegment,
    match_queries,
    merge_segments,
    segments_to_panoptic,
    window_boxes,
)
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model()


def predictor(model, task="semantic", size=64, **options):
    processor = MPFormerImageProcessor(size={"shortest_edge": size, "longest_edge": 2 * size}, label_ids_to_fuse=[3])
    return Predictor(model, processor, task, InferenceOptions(**{"threshold": 0.0, **options}))


def picture(height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 12, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return (255 * fine).byte()


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    return torch.equal(a["segmentation"], b["segmentation"]) and len(a["segments_info"]) == len(b["segments_info"])


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_looking_twice_at_the_same_changes_nothing(model, task):
    plain, twice = predictor(model, task)([picture()])[0], predictor(model, task, scales=(1.0, 1.0))([picture()])[0]
    if task == "semantic":
        assert (plain == twice).float().mean() > 0.99  # probabilities were rounded on the way
    else:
        assert [s["label_id"] for s in plain["segments_info"]] == [s["label_id"] for s in twice["segments_info"]]
        assert (plain["segmentation"] == twice["segmentation"]).float().mean() > 0.99


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_with_flips_the_mirrored_image_gives_the_mirrored_result(model, task):
    flip = predictor(model, task, flip=True)
    image = picture()
    here, there = flip([image])[0], flip([image.flip(-1)])[0]
    plain = [predictor(model, task)([x])[0] for x in (image, image.flip(-1))]
    if task == "panoptic":
        here, there, *plain = (labels_of(x) for x in (here, there, *plain))
    assert (here.flip(-1) == there).float().mean() > 0.99
    assert (plain[0].flip(-1) == plain[1]).float().mean() < 0.99, "the test shows nothing"


def labels_of(result):
    labels = torch.full_like(result["segmentation"], -1)
    for segment in result["segments_info"]:
        labels[result["segmentation"] == segment["id"]] = segment["label_id"]
    return labels


def test_views_are_aligned_query_by_query():
    classes, masks = torch.rand(5, 4).softmax(-1), (torch.rand(5, 6, 7) > 0.5).float()
    order = torch.tensor([3, 0, 4, 1, 2])
    found = match_queries(classes, masks, classes[order], masks[order])
    assert torch.equal(classes[order][found], classes)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_one_window_is_the_whole_image(model, task):
    whole, window = predictor(model, task)([picture()])[0], predictor(model, task, window=96)([picture()])[0]
    if task == "instance":  # in another order where scores are equal
        assert sorted(m.sum().item() for m in whole["segmentation"]) == sorted(
            m.sum().item() for m in window["segmentation"]
        )
    elif task == "semantic":
        assert same(whole, window)
    else:
        assert torch.equal(labels_of(whole), labels_of(window))


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_several_windows_cover_the_image(model, task):
    result = predictor(model, task, window=48, flip=True)([picture(100, 150)])[0]
    if task == "semantic":
        assert result.shape == (100, 150) and result.max() < 4
    else:
        assert result["segmentation"].shape[-2:] == (100, 150)
        assert all(0 <= segment["score"] <= 1 for segment in result["segments_info"])


def test_window_boxes():
    boxes = window_boxes((50, 100), 40, 0.25)
    covered = np.zeros((50, 100), dtype=int)
    for y0, y1, x0, x1 in boxes:
        assert y1 - y0 == 40 and x1 - x0 == 40
        covered[y0:y1, x0:x1] += 1
    assert covered.min() == 1 and len(boxes) == len(set(boxes)) == 2 * 3
    assert window_boxes((30, 20), 40, 0.5) == [(0, 30, 0, 20)]


def segment(x0, x1, columns, label=1, score=0.5):
    mask = torch.zeros(4, 20, dtype=torch.bool)
    mask[1:3, x0:x1] = True
    window = (0, 4, *columns)
    return WindowSegment(mask[:, columns[0] : columns[1]], window, [window], label, score)


def test_segments_of_one_object_are_joined_and_others_are_not():
    found = []
    merge_segments(found, [segment(4, 12, (0, 12)), segment(0, 2, (0, 12))])
    merge_segments(
        found, [segment(8, 16, (8, 20), score=0.9), segment(8, 12, (8, 20), label=2), segment(17, 19, (8, 20))]
    )
    assert [(p.label, int(p.mask.sum())) for p in found] == [(1, 24), (1, 4), (2, 8), (1, 4)]
    assert found[0].score == 0.9 and found[0].box == (0, 4, 0, 20) and len(found[0].windows) == 2


def test_painting_gives_each_pixel_to_the_best_and_fuses_stuff():
    segments = [
        segment(0, 8, (0, 20)),
        segment(4, 12, (0, 20), label=2),
        segment(0, 4, (0, 20), 2),
        segment(14, 18, (0, 20), 2),
    ]
    result = segments_to_panoptic(segments, (4, 20), {2})
    assert [(s["id"], s["label_id"], s["was_fused"]) for s in result["segments_info"]] == [(1, 1, False), (2, 2, True)]
    assert result["segmentation"][1].tolist() == [1] * 8 + [2] * 4 + [0] * 2 + [2] * 4 + [0] * 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scales": (0.0,)}, "scales must be greater than 0"),
        ({"window": 8}, "window must be at least 32"),
        ({"overlap": 1.0}, r"overlap must be at least 0 and less than 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        InferenceOptions(**options)


def test_an_image_that_would_vanish(model):
    with pytest.raises(ValueError, match="the image is 30000x1 pixels, too narrow"):
        predictor(model)([torch.zeros(3, 1, 30000, dtype=torch.uint8)])
