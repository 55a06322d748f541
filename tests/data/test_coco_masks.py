"""Tests of `coco_masks`."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mpformer_hf.data.coco_masks import decode_part, decode_segmentation
from mpformer_hf.data.segments import Segments
from mpformer_hf.model.label_maps import encode_rle

HUGE = [[1.0, 1.0, 1e9, 1.0, 1e9, 1e9]]


def random_mask(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, 2)
    return rng.random((height, width)) < rng.random()


@pytest.mark.parametrize("seed", range(20))
def test_rle_equals_pycocotools(seed):
    mask = random_mask(seed)
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    for rle in (compressed, {**compressed, "counts": compressed["counts"].decode()}, encode_rle(mask)):
        assert np.array_equal(decode_segmentation(rle, *mask.shape), mask)


@pytest.mark.parametrize("decimals", [0, 1, 2, 9])
def test_polygons_equal_pycocotools(decimals):
    rng = np.random.default_rng(decimals)
    for _ in range(150):
        scale, offset = rng.choice([5, 20, 80]), rng.choice([-20, 0, 15])
        polygons = [(rng.random(2 * rng.integers(3, 8)) * scale + offset).round(decimals).tolist() for _ in range(2)]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 60))).astype(bool)
        assert np.array_equal(decode_segmentation(polygons, 40, 60), expected)


def test_the_cost_of_an_object_does_not_grow_with_the_image():
    small = np.zeros((4000, 3000), np.uint8)
    small[3000:3010, 2000:2020] = 1
    square = [2000, 3000, 2020, 3000, 2020, 3010, 2000, 3010]
    for segmentation in ([square], coco_mask.encode(np.asfortranarray(small))):
        part, top, left = decode_part(segmentation, *small.shape)
        assert part.all() and part.shape == (10, 20) and (top, left) == (3000, 2000)
    assert decode_part([[-9, -9, -5, -9, -5, -5]], 40, 60)[0].size == 0


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ({"size": [40, 60], "counts": [10, 20]}, "an RLE of 30 pixels, the image has 2400"),
        ({"size": [40, 60], "counts": [10, -20, 2410]}, "not integers of at least 0"),
        ({"size": [40, 60], "counts": [10.5, 2389.5]}, "not integers of at least 0"),
        ({"size": [40, 60], "counts": "0"}, "an RLE of 0 pixels"),
        ({"size": [40, 60], "counts": "o"}, "truncated"),
        ({"size": [40, 60], "counts": "\n"}, "not COCO's compressed format"),
        ({"size": [40, 60], "counts": 7}, "neither a list nor a string"),
        ({"size": [60, 40], "counts": [2400]}, "an RLE of 60x40, the image is 40x60"),
        ({"counts": [2400]}, "without size and counts"),
        (HUGE, "far outside of the image"),
        ([[1.0, 1.0, float("inf"), 1.0, 5.0, 5.0]], "far outside of the image"),
        ([[1.0, 1.0, float("nan"), 1.0, 5.0, 5.0]], "far outside of the image"),
        ([[1.0, 1.0, 5.0, 5.0]], "a polygon of 4 coordinates"),
        ([[1.0, 1.0, 5.0, 5.0, 7.0, 7.0, 9.0]], "a polygon of 7 coordinates"),
        ([["a"] * 6], "neither polygons nor RLE"),
        ([], "neither polygons nor RLE"),
        ("polygon", "neither polygons nor RLE"),
        (None, "neither polygons nor RLE"),
    ],
)
def test_invalid_segmentations_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_segmentation(segmentation, 40, 60)


@pytest.mark.parametrize(
    "form",
    [lambda mask: mask.astype(int).tolist(), lambda mask: mask, lambda mask: mask * 1.0, lambda mask: mask * 255],
)
def test_a_bitmap_is_not_read_as_polygons(form):
    mask = random_mask(3)
    assert np.array_equal(decode_segmentation(form(mask), *mask.shape), mask)
    with pytest.raises(ValueError, match=f"a bitmap of {mask.shape[0]}x{mask.shape[1]}, the image is 40x60"):
        decode_segmentation(form(mask), 40, 60)


@pytest.mark.parametrize("seed", range(6))
def test_rle_of_segments_equals_that_of_their_masks(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(3, 40, 2))
    layers = rng.choice(np.array([-2, 0, 7, 300, 2**24, 2**30], np.int32), (2, *size))
    layers[1][layers[0] == 300] = 0
    layers[0][rng.random(size) < 0.7], layers[1][:] = 0, np.where(layers[1] == 300, 0, layers[1])
    layers[1][np.isin(layers[1], np.unique(layers[0]))] = 0  # each segment is in one layer
    segments = Segments(torch.from_numpy(layers), {})
    ids = [2**30, 7, 300, 2**24, 99]
    for segment, rle in zip(ids, segments.rles(ids), strict=True):
        mask = (layers == segment).any(0)
        assert np.array_equal(decode_segmentation(rle, *size), mask)
        assert rle == encode_rle(mask)


def test_outlines_without_end_are_refused():
    zigzag = [value for i in range(3000) for value in (4000 * (i % 2), i)]
    with pytest.raises(ValueError, match=r"whose outline is 1[12],\d{3},\d{3} pixels long, at most 4,194,304"):
        decode_segmentation([zigzag], 4000, 4000)
