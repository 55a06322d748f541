"""Augmentation keeps image and map together."""

import pytest
import torch
from transformers.image_utils import SizeDict

from mpformer_hf.data.segments import PADDING, VOID
from mpformer_hf.training.arguments import TransformArguments
from mpformer_hf.training.transforms import augment, build_transform, choose_augmentation, largest_share

TABLE = {1: 0, 2: 1}


def scene(height=60, width=90):
    """The image's red channel tells the segment: 40 x id."""
    segments = torch.ones(height, width, dtype=torch.int32)
    segments[:, width // 3 :] = 2
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0] = 40 * segments
    return image, segments


@pytest.mark.parametrize("augmentation", ["lsj", "crop"])
@pytest.mark.parametrize("size", [[64, 64], [32, 80]])
def test_image_and_map_stay_together(augmentation, size):
    args = TransformArguments(augmentation=augmentation, crop_size=size, shortest_edges=[30, 60, 90])
    transform = build_transform(args)
    seen = set()
    for _ in range(20):
        image, segments = augment(transform, *scene(), TABLE)
        assert image.shape == (3, *size) and segments.shape == tuple(size) and segments.dtype == torch.int32
        seen |= set(segments.unique().tolist())
        for segment, red in ((1, 40), (2, 80), (PADDING, 128)):
            values = image[0][segments == segment].float()
            if len(values) > 200:
                assert values.median() == red
    assert seen == {1, 2, PADDING} if augmentation == "lsj" else {1, 2} <= seen


def test_scale_range_acts():
    def covered(low, high):
        args = TransformArguments(crop_size=[64, 64], scale_range=[low, high])
        return (augment(build_transform(args), *scene(64, 64), TABLE)[1] != PADDING).float().mean().item()

    assert covered(0.25, 0.25) == pytest.approx(1 / 16, abs=0.02) and covered(1.5, 1.5) == 1.0


def test_flip_and_colour_jitter_can_be_switched():
    plain = TransformArguments(augmentation="none", horizontal_flip=False)
    image, segments = augment(build_transform(plain), *scene(), TABLE)
    assert torch.equal(image, scene()[0]) and torch.equal(segments, scene()[1])
    flip = build_transform(TransformArguments(augmentation="none"))
    left = {augment(flip, *scene(), TABLE)[1][0, 0].item() for _ in range(20)}
    assert left == {1, 2}
    jitter = build_transform(TransformArguments(augmentation="none", horizontal_flip=False, color_jitter=True))
    assert any(not torch.equal(augment(jitter, *scene(), TABLE)[0], scene()[0]) for _ in range(10))


def test_longest_edge_limits_the_scale():
    args = TransformArguments(augmentation="crop", crop_size=[200, 200], shortest_edges=[120], longest_edge=90)
    segments = augment(build_transform(args), *scene(), TABLE)[1]
    assert (segments != PADDING).sum() == 60 * 90


def test_category_cap_rejects_uniform_crops():
    shares = {}
    for cap in (1.0, 0.75):
        args = TransformArguments(
            augmentation="crop", crop_size=[20, 20], shortest_edges=[60], max_category_share=cap, horizontal_flip=False
        )
        transform = build_transform(args)
        shares[cap] = [largest_share(augment(transform, *scene(), TABLE)[1], TABLE) for _ in range(40)]
    assert sum(share > 0.75 for share in shares[0.75]) < sum(share > 0.75 for share in shares[1.0]) - 5


def test_largest_share_ignores_void():
    assert largest_share(torch.tensor([[1, 1, 2, VOID, 9]]), TABLE) == pytest.approx(2 / 3)
    assert largest_share(torch.tensor([[VOID]]), TABLE) == 0.0


def test_bad_arguments():
    with pytest.raises(ValueError, match="crop_size must be height and width"):
        build_transform(TransformArguments(crop_size=[64]))


def test_automatic_augmentation_is_light_for_short_runs():
    args = TransformArguments(augmentation="auto", crop_size=[64, 64], color_jitter=True)
    size = SizeDict(shortest_edge=72, longest_edge=96)
    short, long = choose_augmentation(args, 7, size), choose_augmentation(args, 50, size)
    assert (short.augmentation, short.shortest_edges, short.longest_edge, short.color_jitter) == (
        "crop",
        [72],
        96,
        False,
    )
    assert (long.augmentation, long.color_jitter) == ("lsj", True) and args.augmentation == "auto"
    image, segments = augment(
        build_transform(short), torch.zeros(3, 40, 80, dtype=torch.uint8), torch.ones(40, 80).int(), {}
    )
    assert image.shape == (3, 64, 64) and segments.shape == (64, 64)
    plain = TransformArguments(augmentation="none")
    assert choose_augmentation(plain, 1, size) is plain
    fixed = choose_augmentation(args, 7, SizeDict(height=96, width=64))
    assert (fixed.shortest_edges, fixed.longest_edge) == ([64], 96)
    assert choose_augmentation(args, 7, SizeDict(shortest_edge=72)).longest_edge == args.longest_edge
    assert choose_augmentation(args, 7, SizeDict(max_height=96, max_width=64)).shortest_edges == [64]
    with pytest.raises(ValueError, match="image size has no shortest edge; give --eval_shortest_edge"):
        choose_augmentation(args, 7, SizeDict(longest_edge=64))


@pytest.mark.parametrize("shape", [(3000, 12), (12, 3000)])
@pytest.mark.parametrize("augmentation", ["lsj", "crop"])
def test_no_side_of_a_long_image_disappears(shape, augmentation):
    """At a tenth of its size, the short side of such an image is less than a pixel."""
    args = TransformArguments(augmentation, [32, 32], [0.1, 0.1], shortest_edges=[1], longest_edge=64)
    image, segments = torch.zeros(3, *shape, dtype=torch.uint8), torch.ones(shape, dtype=torch.int32)
    found, map_ = augment(build_transform(args), image, segments, {1: 0})
    assert found.shape == (3, 32, 32) and map_.shape == (32, 32)
