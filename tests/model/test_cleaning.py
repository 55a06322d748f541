"""Duplicates, crumbs and holes, against brute force."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from mpformer_hf.data.coco_masks import decode_segmentation
from mpformer_hf.inference.arguments import InferenceOptions
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.inference.result import Result
from mpformer_hf.model.cleaning import clean_mask, find_duplicates, remove_small_regions, without_duplicates
from mpformer_hf.model.image_processing_mpformer import MPFormerImageProcessor
from mpformer_hf.model.pipeline_mpformer import MPFormerImageSegmentationPipeline
from tests.tiny import tiny_model


def iou_of(one, other):
    union = (one | other).sum()
    return (one & other).sum() / union if union else 0.0


@pytest.mark.parametrize("iou", [0.2, 0.5, 0.9, 1.0])
def test_duplicates_are_those_of_greedy_suppression(iou):
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = np.zeros((12, 24, 24), dtype=bool)
        for mask in masks:
            y, x = rng.integers(0, 12, 2)
            mask[y : y + rng.integers(1, 12), x : x + rng.integers(1, 12)] = rng.random() < 0.95
        masks[7] = masks[2]
        labels, scores = rng.integers(0, 2, 12).tolist(), rng.choice([0.2, 0.5, 0.9], 12).tolist()
        expected, kept = [False] * 12, []
        for index in np.argsort(-np.array(scores), kind="stable").tolist():
            expected[index] = any(labels[k] == labels[index] and iou_of(masks[k], masks[index]) >= iou for k in kept)
            kept += [] if expected[index] else [index]
        assert find_duplicates(torch.from_numpy(masks), labels, scores, iou) == expected


def test_crumbs_are_removed_and_holes_are_filled():
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:12, 2:12] = True
    mask[4:6, 4:6] = mask[8, 5:10] = False  # holes of 4 and 5 pixels
    mask[15, 15] = mask[17:19, 2:4] = True  # crumbs of 1 and 4
    mask[2, 6] = False  # a notch at the border is no hole
    smoothed = clean_mask(mask, 5)
    expected = np.zeros_like(mask)
    expected[2:12, 2:12] = True
    expected[8, 5:10] = expected[2, 6] = False
    assert (smoothed == expected).all()
    assert (clean_mask(mask, 1) == mask).all() and (
        clean_mask(mask, 10**6) == (expected | ndimage.binary_fill_holes(expected))
    ).all()
    empty = np.zeros_like(mask)
    assert not clean_mask(empty, 5).any()


def test_panoptic_crumbs_become_no_segment_and_other_segments_are_no_holes():
    ids = torch.zeros(20, 20, dtype=torch.int64)
    ids[2:12, 2:12], ids[5, 5], ids[8, 8], ids[15, 15] = 1, 2, 0, 1
    ids[14:19, 2:9] = 2
    result = {"segmentation": ids, "segments_info": [{"id": 1}, {"id": 2}]}
    found = remove_small_regions(result, 4)["segmentation"]
    assert found[8, 8] == 1 and found[15, 15] == 0 and found[5, 5] == 1 and (found[14:19, 2:9] == 2).all()
    assert ids[8, 8] == 0, "the given result stays"


def test_results_of_the_predictor():
    torch.manual_seed(0)
    model, image = tiny_model(), torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    processor = MPFormerImageProcessor(task="instance", size={"shortest_edge": 64, "longest_edge": 96})
    plain = Predictor(model, processor, options=InferenceOptions(threshold=0.0))(image)
    clean = Predictor(model, processor, options=InferenceOptions(threshold=0.0, nms=0.5, min_pixels=9))(image)
    assert 0 < len(clean) < len(plain)
    pipeline = MPFormerImageSegmentationPipeline(model, image_processor=processor)
    photo = to_pil_image(image)
    rows = pipeline(photo, threshold=0.0, nms=0.5, min_pixels=9)
    assert [row["score"] for row in rows] == [segment.score for segment in clean]
    for row, segment in zip(rows, clean, strict=True):
        assert torch.equal(pil_to_tensor(row["mask"])[0] > 0, segment.mask)
    with pytest.raises(ValueError, match="nms has no effect on semantic segmentation"):
        pipeline(photo, subtask="semantic", nms=0.5)
    for options, message in (
        ({"nms": 0.0}, "nms must be greater than 0"),
        ({"min_pixels": "9"}, "min_pixels must be a number"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(photo, subtask="semantic", **options)
    assert not any(
        find_duplicates(plain.without_duplicates(0.5).raw["segmentation"], *columns(plain.without_duplicates(0.5)), 0.5)
    )
    assert len(plain.to_labelme("x")["shapes"]) == len(plain.without_duplicates()) < len(plain.to_coco())
    for task, options in (("semantic", {"nms": 0.5}), ("semantic", {"min_pixels": 3}), ("panoptic", {"nms": 0.5})):
        with pytest.raises(ValueError, match=f"has no effect on {task} segmentation"):
            Predictor(model, processor, task, InferenceOptions(**options))


def test_post_processing_cleans_in_each_form():
    torch.manual_seed(0)
    processor = MPFormerImageProcessor()
    outputs = tiny_model()(torch.randn(1, 3, 64, 96))
    options = {"threshold": 0.0, "nms": 0.5, "min_pixels": 9}
    instances = processor.post_process_instance_segmentation
    (plain,) = instances(outputs, threshold=0.0, return_binary_maps=True)
    (masks,), (rle,), (single,) = (
        instances(outputs, **options, **form)
        for form in ({"return_binary_maps": True}, {"return_coco_annotation": True}, {})
    )
    expected = remove_small_regions(without_duplicates(plain, 0.5), 9)
    assert torch.equal(masks["segmentation"], expected["segmentation"]) and len(masks["segments_info"]) > 1
    assert [row["score"] for row in masks["segments_info"]] == [row["score"] for row in expected["segments_info"]]
    decoded = [decode_segmentation(row, 64, 96) for row in rle["segmentation"]]
    np.testing.assert_array_equal(decoded, masks["segmentation"])
    best = masks["segmentation"][0]
    assert (single["segmentation"][best] == 0).all() and masks["segments_info"][0]["bbox"] == mask_box(best)
    (before,), (after,) = (
        processor.post_process_panoptic_segmentation(outputs, threshold=0.0, overlap_mask_area_threshold=0.0, **more)
        for more in ({}, {"min_pixels": 9})
    )
    assert torch.equal(after["segmentation"], remove_small_regions(before, 9)["segmentation"])
    assert not torch.equal(after["segmentation"], before["segmentation"])
    with pytest.raises(ValueError, match="nms must be greater than 0"):
        instances(outputs, nms=0.0)


def mask_box(mask: torch.Tensor) -> list[int]:
    """x, y, width, height."""
    rows, columns = mask.nonzero().unbind(1)
    corner = [columns.min().item(), rows.min().item()]
    return [*corner, columns.max().item() + 1 - corner[0], rows.max().item() + 1 - corner[1]]


def columns(result: Result):
    rows = result.raw["segments_info"]
    return [row["label_id"] for row in rows], [row["score"] for row in rows]


def test_a_result_without_instances():
    empty = {"segmentation": torch.zeros(0, 4, 4, dtype=torch.bool), "segments_info": []}
    assert (
        without_duplicates(empty, 0.5)["segments_info"] == []
        and len(remove_small_regions(empty, 5)["segmentation"]) == 0
    )
