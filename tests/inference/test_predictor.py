"""Test-time augmentation and sliding windows."""

import copy
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.inference.arguments import InferenceOptions
from mpformer_hf.inference.predictor import Predictor, QueryMeans, match_queries
from mpformer_hf.inference.windows import (
    ScoreMap,
    SegmentJoiner,
    WindowSegment,
    segments_to_instances,
    segments_to_panoptic,
    taper,
    window_boxes,
    window_segments,
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
    plain, twice = (
        predictor(model, task).predict([picture()])[0],
        predictor(model, task, scales=(1.0, 1.0)).predict([picture()])[0],
    )
    if task == "semantic":
        assert (plain == twice).float().mean() > 0.99  # probabilities were rounded on the way
    else:
        assert [s["label_id"] for s in plain["segments_info"]] == [s["label_id"] for s in twice["segments_info"]]
        assert (plain["segmentation"] == twice["segmentation"]).float().mean() > 0.99


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_with_flips_the_mirrored_image_gives_the_mirrored_result(model, task):
    flip = predictor(model, task, flip=True)
    image = picture()
    here, there = flip.predict([image])[0], flip.predict([image.flip(-1)])[0]
    plain = [predictor(model, task).predict([x])[0] for x in (image, image.flip(-1))]
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
    found, agree = match_queries(classes, masks, classes[order], masks[order])
    assert torch.equal(classes[order][found], classes) and agree.all()


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_one_window_is_the_whole_image(model, task):
    whole, window = (
        predictor(model, task).predict([picture()])[0],
        predictor(model, task, window=96).predict([picture()])[0],
    )
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
    result = predictor(model, task, window=48, flip=True).predict([picture(100, 150)])[0]
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


def segments_of(mask, window, label=1, score=0.5):
    """Segments of a window: the connected parts of a mask inside of it."""
    part = mask[window[0] : window[1], window[2] : window[3]].numpy()
    parts, count = ndimage.label(part)
    maps = torch.stack([torch.from_numpy(parts == i + 1) for i in range(count)]) if count else torch.zeros(0, 1, 1)
    rows = [{"id": i, "label_id": label, "score": score} for i in range(count)]
    return window_segments({"segmentation": maps, "segments_info": rows}, window, tuple(mask.shape))


def joined(masks, window=40, overlap=0.25, **options):
    """Objects that windows see in connected parts, and what is joined of them."""
    joiner, size = SegmentJoiner(), tuple(masks[0].shape)
    for box in window_boxes(size, window, overlap):
        joiner.add(box, [segment for mask in masks for segment in segments_of(mask, box, **options)])
    return joiner.joined()


def shape(rows, size=(100, 100)):
    """A mask of rectangles (top, bottom, left, right)."""
    mask = torch.zeros(size, dtype=torch.bool)
    for top, bottom, left, right in rows:
        mask[top:bottom, left:right] = True
    return mask


U = [(10, 90, 10, 25), (10, 90, 60, 75), (75, 90, 10, 75)]


COMB = [(80, 92, 5, 95), *((8, 85, x, x + 10) for x in (5, 35, 62, 85))]


@pytest.mark.parametrize("rows", [U, COMB, [(5, 95, 5, 95)], [(45, 55, 2, 98)]])
@pytest.mark.parametrize("window, overlap", [(40, 0.25), (60, 0.5), (64, 0.1)])
def test_an_object_that_windows_see_in_parts_is_one(rows, window, overlap):
    mask = shape(rows)
    (found,) = joined([mask], window, overlap)
    assert torch.equal(found.crop((0, 100, 0, 100)), mask) and found.score == pytest.approx(0.5)


def test_objects_side_by_side_remain_apart():
    masks = [shape([(5, 95, 3, 30)]), shape([(5, 95, 31, 60)]), shape([(30, 44, 70, 90)]), shape([(45, 60, 70, 90)])]
    found = joined(masks)
    assert sorted(int(part.mask.sum()) for part in found) == sorted(int(mask.sum()) for mask in masks)


def test_classes_are_not_joined_and_scores_are_means_by_area():
    joiner, mask = SegmentJoiner(), shape([(40, 60, 0, 100)])
    windows = [(0, 100, 0, 60), (0, 100, 40, 100)]
    joiner.add(windows[0], segments_of(mask, windows[0], score=0.9))
    joiner.add(windows[1], segments_of(mask[:, :], windows[1], score=0.3) + segments_of(mask, windows[1], label=2))
    same_class, other = sorted(joiner.joined(), key=lambda part: part.label)
    assert (same_class.label, other.label) == (1, 2) and same_class.score == pytest.approx(0.6)
    small = SegmentJoiner()
    small.add(windows[0], segments_of(shape([(40, 60, 30, 60)]), windows[0], score=0.9))
    small.add(windows[1], segments_of(shape([(40, 60, 40, 100)]), windows[1], score=0.3))
    (found,) = small.joined()
    assert found.score == pytest.approx((600 * 0.9 + 1200 * 0.3) / 1800)


def test_many_segments_at_threshold_0_take_seconds():
    """100 of each window, as at threshold 0; only those of neighbouring windows are compared."""
    generator, joiner, start = torch.Generator().manual_seed(0), SegmentJoiner(), time.perf_counter()
    size, rows = (1200, 1200), [{"id": i, "label_id": i % 3, "score": 0.01} for i in range(100)]
    for box in window_boxes(size, 256, 0.25):
        maps = torch.rand(100, 8, 8, generator=generator).repeat_interleave(32, 1).repeat_interleave(32, 2) > 0.8
        joiner.add(box, window_segments({"segmentation": maps, "segments_info": rows}, box, size))
    assert len(joiner.segments) == 3600 and joiner.joined() and time.perf_counter() - start < 30


def test_too_many_instances_of_a_large_image_are_refused():
    segments = [WindowSegment(torch.ones(1, 1, dtype=torch.bool), (0, 1, 0, 1), 0, 0.5)] * 1000
    with pytest.raises(ValueError, match="1000 instances of 6000x4000 pixels need 22 GiB; give a higher threshold"):
        segments_to_instances(segments, (6000, 4000))
    result = segments_to_instances(segments[:1], (4, 6))
    assert result["segments_info"][0]["bbox"] == [0, 0, 1, 1] and int(result["segmentation"].sum()) == 1


def test_painting_gives_each_pixel_to_the_best_and_fuses_stuff():
    def segment(left, right, label, score=0.5):
        return WindowSegment(torch.ones(2, right - left, dtype=torch.bool), (1, 3, left, right), label, score)

    segments = [segment(0, 8, 1), segment(4, 12, 2), segment(0, 4, 2), segment(14, 18, 2)]
    result = segments_to_panoptic(segments, (4, 20), {2})
    assert [(s["id"], s["label_id"], s["was_fused"]) for s in result["segments_info"]] == [(1, 1, False), (2, 2, True)]
    assert result["segmentation"][1].tolist() == [1] * 8 + [2] * 4 + [0] * 2 + [2] * 4 + [0] * 2


def test_scores_of_windows_are_blended_and_forgotten():
    size, boxes = (70, 110), window_boxes((70, 110), 40, 0.25)
    torch.manual_seed(0)
    scores, total, most = ScoreMap(boxes, size, 10), torch.zeros(5, *size), 0
    for box in boxes:
        part = torch.rand(5, box[1] - box[0], box[3] - box[2])
        total[:, box[0] : box[1], box[2] : box[3]] += part * taper(box, size, 10)
        scores.add(box, part)
        most = max(most, sum(part.numel() for part in scores.sums.values()))
    assert torch.equal(scores.classes, total.argmax(0)) and not scores.sums
    assert most < 0.4 * total.numel(), "the scores of the whole image were kept"
    weights = taper((30, 70, 0, 40), size, 10)
    assert weights[0, 0] == pytest.approx(0.05) and weights[-1, 0] == 1 and weights[20, -1] == pytest.approx(0.05)


def test_windows_without_overlap_are_warned_of(caplog):
    InferenceOptions(window=64, overlap=0.0)
    assert "objects are cut at their borders" in caplog.text


def test_what_one_view_finds_keeps_its_certainty():
    empty, sure = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.996, 0.0, 0.004])
    left, right = torch.zeros(1, 6, 8), torch.zeros(1, 6, 8)
    left[:, :, :3], right[:, :, 5:] = 1, 1
    first = QueryMeans(torch.stack((sure, empty)), torch.cat((left, torch.full((1, 6, 8), 0.1))))
    first.add(torch.stack((empty, sure)), torch.cat((torch.full((1, 6, 8), 0.2), right)))
    classes, masks = first.means()
    certain = (classes[:, 0] > 0.99).nonzero()[:, 0]
    assert len(certain) == 2 and torch.equal(masks[certain], torch.cat((left, right)))
    first = QueryMeans(sure[None], left)
    first.add(torch.tensor([[0.5, 0.3, 0.2]]), 0.5 * left)
    assert torch.allclose(first.means()[0], torch.tensor([[0.748, 0.15, 0.102]])) and len(first.counts) == 1


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
        predictor(model).predict([torch.zeros(3, 1, 30000, dtype=torch.uint8)])


def test_an_image_may_come_in_any_form(model, tmp_path):
    pixels = picture()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    segment = predictor(model)
    (expected,) = segment([pixels])
    rows = pixels.permute(1, 2, 0).numpy()
    backwards = rows[:, :, ::-1].copy()[:, :, ::-1]  # BGR as OpenCV reads it, turned to RGB: a negative stride
    forms = [pixels, rows, torch.from_numpy(rows), backwards, rows / 255, Image.fromarray(rows)]
    for form in (*forms, tmp_path / "image.png", str(tmp_path / "image.png")):
        assert torch.equal(segment(form).raw, expected.raw)
    assert [tuple(result.raw.shape) for result in segment([rows, tmp_path / "image.png"])] == [(64, 96)] * 2
    for wrong, message in ((pixels[:2], "has shape"), (None, "got NoneType"), (pixels[None], "has shape")):
        with pytest.raises(ValueError, match=message):
            segment(wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_dtypes(model, dtype):
    given = picture()
    expected, found = predictor(model)(given).raw, predictor(copy.deepcopy(model).to(dtype))(given).raw
    assert (expected == found).float().mean() > 0.95
    for task in ("instance", "panoptic"):
        assert len(predictor(copy.deepcopy(model).to(dtype), task)(given)) > 0


def test_a_model_in_training_mode_is_used_in_evaluation_mode_and_stays_as_it_is(model):
    training = copy.deepcopy(model).train()
    training.model.pixel_level_module.eval()
    before = {name: value.clone() for name, value in training.state_dict().items()}
    modes = [module.training for module in training.modules()]
    box = [[10, 10, 40, 40]]
    assert torch.equal(predictor(training)(picture()).raw, predictor(model)(picture()).raw)
    expected = predictor(model).refine(picture(), boxes=box)["segments_info"]
    assert predictor(training.train()).refine(picture(), boxes=box)["segments_info"] == expected
    assert all(torch.equal(value, before[name]) for name, value in training.state_dict().items())
    training.model.pixel_level_module.eval()
    assert [module.training for module in training.modules()] == modes


def test_from_pretrained_is_the_saved_model(model, tmp_path):
    expected = predictor(model, "panoptic")
    model.save_pretrained(tmp_path)
    expected.processor.save_pretrained(tmp_path)
    options = InferenceOptions(threshold=0.0)
    assert same(Predictor.from_pretrained(str(tmp_path), "panoptic", options)(picture()).raw, expected(picture()).raw)


def test_classes_of_prompts_by_name(model):
    boxes = torch.tensor([[10.0, 10.0, 40.0, 50.0]] * 3)
    segmenter, names = predictor(model), model.config.id2label
    by_name = segmenter.refine(picture(), boxes=boxes, labels=[names[2], None, 1])["segments_info"]
    assert by_name == segmenter.refine(picture(), boxes=boxes, labels=[2, -1, 1])["segments_info"]
    with pytest.raises(ValueError, match="The model has no class 'unicorn', only "):
        segmenter.refine(picture(), boxes=boxes[:1], labels=["unicorn"])
