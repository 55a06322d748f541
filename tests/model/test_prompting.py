"""The pilot as a prompt: invariants, errors, and equality with the pilot of training."""

import json
import weakref

import pytest
import torch

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.postprocessing import ResizeGeometry
from mpformer_hf.model.prompting import (
    MOST_QUERIES,
    RefinedMasks,
    boxes_to_masks,
    class_chunks,
    enlarge_boxes,
    masks_of_logits,
    prepare_mask,
    refine_masks,
)
from mpformer_hf.model.targets import collect_targets
from mpformer_hf.prompts.ground_truth import KINDS
from scripts.study import prompt_scores
from tests import datasets_on_disk as make
from tests.tiny import tiny_model

SIZE = (64, 96)


BOXES = torch.tensor([[4.0, 8, 40, 30], [50, 20, 90, 60], [0, 0, 20, 64]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return tiny_model(decoder_layers=4).eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_it_is_the_pilot_of_training(model, image):
    labels = torch.tensor([2, 0, 1])
    masks = boxes_to_masks(BOXES, SIZE)
    refined = model.refine(image, masks=masks, labels=labels)
    model.config.pilot_label_noise, before = 0.0, model.config.pilot_label_noise
    targets = collect_targets([masks], [labels], SIZE)
    model.train()
    for module in model.modules():
        module.training = isinstance(module, type(model.model))  # the pilot, but no dropout and no batch statistics
    with torch.no_grad():
        out = model.model(image, targets=targets)
    model.eval()
    model.config.pilot_label_noise = before
    expected = out.masks_queries_logits[-1][0, :3]
    torch.testing.assert_close(refined.mask_logits, expected, atol=2e-5, rtol=0)
    assert refined.label_ids.shape == (3,) and ((refined.scores > 0) & (refined.scores < 1)).all()


def test_predictions_are_the_same_with_and_without_prompts(model, image):
    with torch.no_grad():
        before = model(image)
        features = model.encode(image)
        model.refine(features, boxes=BOXES, labels=[0, 1, 2])
        after = model(image)
    assert torch.equal(before.masks_queries_logits, after.masks_queries_logits)
    assert torch.equal(before.class_queries_logits, after.class_queries_logits)
    assert torch.equal(model.refine(features, boxes=BOXES).mask_logits, model.refine(image, boxes=BOXES).mask_logits)


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1, 1, -1], None])
def test_permuted_prompts_have_permuted_results(model, image, labels):
    order = [2, 0, 1]
    one = model.refine(image, boxes=BOXES, labels=labels)
    two = model.refine(image, boxes=BOXES[order], labels=None if labels is None else [labels[i] for i in order])
    torch.testing.assert_close(one.mask_logits[order], two.mask_logits, atol=2e-5, rtol=0)
    torch.testing.assert_close(one.scores[order], two.scores, atol=1e-5, rtol=0)
    assert torch.equal(one.label_ids[order], two.label_ids)


def test_an_unknown_class_is_the_best_of_all(model, image, monkeypatch):
    unknown = model.refine(image, boxes=BOXES[:1])
    tried = [model.refine(image, boxes=BOXES[:1], labels=[label]) for label in range(model.config.num_labels)]
    (label,) = unknown.label_ids.tolist()
    torch.testing.assert_close(unknown.mask_logits, tried[label].mask_logits, atol=2e-5, rtol=0)
    monkeypatch.setattr("mpformer_hf.model.prompting.MOST_QUERIES", 2)
    in_passes = model.refine(image, boxes=BOXES[:1])
    torch.testing.assert_close(in_passes.mask_logits, unknown.mask_logits, atol=2e-5, rtol=0)
    assert torch.equal(in_passes.label_ids, unknown.label_ids)


def test_passes_have_all_classes_and_not_too_many_queries():
    for classes, prompts in ((150, 7), (4, 1000), (80, 0)):
        chunks = class_chunks(classes, prompts, True)
        assert [label for chunk in chunks for label in chunk] == list(range(classes))
        assert all(len(chunk) == 1 or len(chunk) * prompts <= MOST_QUERIES for chunk in chunks)
    assert class_chunks(150, 7, False) == [[0]]


def test_rounds_end_at_a_fixed_point(model, image):
    labels = [0, 1, 2]
    first = model.refine(image, boxes=BOXES, labels=labels)
    second = model.refine(image, boxes=BOXES, labels=labels, rounds=2)
    many = model.refine(image, boxes=BOXES, labels=labels, rounds=60)
    masks = masks_of_logits(first.mask_logits, SIZE, boxes_to_masks(BOXES, SIZE))
    assert not torch.equal(masks, boxes_to_masks(BOXES, SIZE))
    again = model.refine(image, masks=masks, labels=labels)
    assert torch.equal(second.mask_logits, again.mask_logits) and torch.isfinite(many.mask_logits).all()
    empty = masks_of_logits(torch.full((3, 16, 24), -1.0), SIZE, masks)
    assert torch.equal(empty, masks), "an empty result does not replace a prompt"
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        model.refine(image, boxes=BOXES, rounds=0)


def test_rounds_stop_when_no_mask_changes(model, image, monkeypatch):
    calls, features = [], model.encode(image)
    logits = torch.full((1, 16, 24), -5.0)
    logits[0, 4:8, 4:8] = 5.0

    def refine_once(model, features, masks, labels):
        calls.append(masks.clone())
        moved = logits if len(calls) < 3 else logits.roll(4, 2)  # another mask in the third round
        return RefinedMasks(moved, torch.zeros(1, dtype=torch.int64), torch.ones(1))

    monkeypatch.setattr("mpformer_hf.model.prompting.refine_once", refine_once)
    box = boxes_to_masks(BOXES[:1], SIZE)
    refine_masks(model, features, box, torch.tensor([0]), rounds=9)
    assert len(calls) == 2 and torch.equal(calls[0], box)
    assert torch.equal(calls[1], masks_of_logits(logits, SIZE, box))


def test_no_prompts(model, image):
    refined = model.refine(image, boxes=torch.zeros(0, 4), labels=[])
    assert refined.mask_logits.shape == (0, 16, 24) and len(refined.label_ids) == len(refined.scores) == 0
    assert Predictor(model, MPFormerImageProcessor()).refine(
        torch.zeros(3, 40, 60, dtype=torch.uint8), boxes=torch.zeros(0, 4)
    )["segmentation"].shape == (0, 40, 60)


@pytest.mark.parametrize(
    "prompts, message",
    [
        ({"boxes": [[5, 5, 5, 20]]}, "Box 0 has no area: x from 5 to 5"),
        ({"boxes": [[0, 0, 9, 9], [5, float("nan"), 8, 20]]}, "Box 1 has no area"),
        ({"boxes": [[96, 0, 120, 20]]}, "Box 0 is outside of the image of 64x96 pixels"),
        ({"masks": torch.zeros(1, 64, 96)}, "Mask 0 is empty"),
        ({"masks": torch.ones(1, 64, 95)}, r"Mask 0 has shape \(64, 95\), expected \(64, 96\)"),
        ({"boxes": BOXES, "labels": [0, 1, 4]}, "Class 4 does not exist: 0 to 3, or -1"),
        ({"boxes": BOXES, "labels": [0, 1]}, "3 prompts, but 2 labels"),
        ({"boxes": BOXES, "labels": [0.5, 1, 1]}, "labels has dtype torch.float32"),
        ({}, "either masks or boxes"),
        ({"boxes": BOXES, "masks": torch.ones(3, 64, 96)}, "either masks or boxes"),
    ],
)
def test_invalid_prompts(model, image, prompts, message):
    with pytest.raises(ValueError, match=message):
        model.refine(image, **prompts)
    with pytest.raises(ValueError, match=message):
        Predictor(model, MPFormerImageProcessor()).refine(torch.zeros(3, *SIZE, dtype=torch.uint8), **prompts)


def test_a_model_without_pilot_cannot_refine(image):
    with pytest.raises(ValueError, match="has no pilot"):
        tiny_model(mask_piloting=False).eval().refine(image, boxes=BOXES)


def test_pixels_of_boxes():
    masks = boxes_to_masks(torch.tensor([[1.0, 2, 4, 5], [1.4, 2.6, 1.5, 2.7], [-5, -5, 99, 1]]), (8, 10))
    assert masks[0].nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (1, 2, 3)]
    assert masks[1].sum() == 1 and masks[2].sum() == 10


def test_the_predictor_maps_prompts_to_the_processed_image(model):
    processor = MPFormerImageProcessor(size={"height": 64, "width": 64})
    predictor = Predictor(model, processor)
    photo = torch.randint(0, 256, (3, 32, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    box = torch.tensor([[32.0, 8, 96, 24]])
    found = predictor.refine(photo, boxes=box, labels=[1])
    assert found["segmentation"].shape == (1, 32, 128) and found["segmentation"].dtype == torch.bool
    assert found["segments_info"][0].keys() == {"id", "label_id", "score"}
    encoded = predictor.encode(photo)
    assert torch.equal(predictor.refine(encoded, boxes=box, labels=[1])["segmentation"], found["segmentation"])
    same = predictor.refine(encoded, masks=boxes_to_masks(box, (32, 128)), labels=[1])["segmentation"]
    inside = boxes_to_masks(enlarge_boxes(box), (32, 128)).bool()
    assert inside.sum() == 76 * 20 and torch.equal(same & inside, found["segmentation"])
    anywhere = predictor.refine(encoded, boxes=box, labels=[1], limits=[[0, 0, 128, 32]])
    assert torch.equal(anywhere["segmentation"], same)
    larger = predictor.encode(photo, scale=2.0)
    assert larger.geometry.image == (128, 128) and larger.features.size == (128, 128)
    assert predictor.refine(larger, boxes=box, labels=[1])["segmentation"].shape == (1, 32, 128)
    with pytest.raises(ValueError, match="scale must be"):
        predictor.encode(photo, scale=0.0)
    direct = model.refine(encoded.features, boxes=torch.tensor([[16.0, 16, 48, 48]]), labels=[1])
    assert direct.scores[0].item() == pytest.approx(found["segments_info"][0]["score"], abs=1e-5)
    mask = torch.zeros(32, 128, dtype=torch.bool)
    mask[10, 61] = True
    small = prepare_mask(mask, ResizeGeometry((64, 64), (8, 8), (32, 128)))
    assert small.shape == (64, 64) and small.nonzero().tolist() == [[2, 3]]


def test_of_many_masks_few_are_in_memory(model):
    """Full masks are taken and given one by one; the results are those of all at once."""
    predictor = Predictor(model, MPFormerImageProcessor(task="instance", size={"height": 64, "width": 64}))
    encoded = predictor.encode(make.photo(96, 96))
    masks = torch.zeros(12, 96, 96, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[4 * index : 4 * index + 30, 10:60] = True
    alive: list = []

    def prompts():
        for mask in masks:
            given = mask.clone()
            alive.append(weakref.ref(given))
            yield given
            del given
            assert sum(reference() is not None for reference in alive) <= 1

    expected = predictor.refine(encoded, masks=masks, labels=[1] * 12)
    for index, (mask, info) in enumerate(predictor.refine_masks(encoded, prompts(), [1] * 12)):
        assert torch.equal(mask, expected["segmentation"][index]) and mask.shape == (96, 96)
        assert {"id": index, **info} == expected["segments_info"][index]


def test_the_script_scores_every_kind_of_prompt(model, tmp_path):
    data = make.shapes(tmp_path / "shapes", train=1, validation=3)
    names = dict(enumerate(json.loads((data / "id2label.json").read_text()).values()))
    tiny_model(id2label=names, num_labels=len(names)).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    file = tmp_path / "scores.json"
    argv = [
        tmp_path / "model",
        "--dataset_name",
        data,
        "--task",
        "panoptic",
        "--rounds",
        "1",
        "2",
        "--output_file",
        file,
    ]
    prompt_scores.main([str(part) for part in [*argv, "--eval_split", "validation"]])
    content = json.loads(file.read_text())
    assert content["iou"].keys() == KINDS.keys()
    assert content["iou"]["clean"]["given"]["all"] == 1.0
    for methods in content["iou"].values():
        assert methods.keys() == {"given", "1 round", "2 rounds"}
        assert len({row["objects"] for row in methods.values()}) == 1
    assert 0 < content["iou"]["shifted"]["given"]["all"] < content["iou"]["box"]["given"]["all"] < 1
    assert sum(row["results"] for row in content["by_score"]) == sum(
        methods["1 round"]["objects"] for methods in content["iou"].values()
    )
    assert content["refine_time_of_full_forward"] > 0
