"""Image processors: both backends, maps to masks, bad input."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF
from transformers import AutoImageProcessor, Mask2FormerImageProcessor

from mpformer_hf import MPFormerImageProcessor, MPFormerImageProcessorPil
from mpformer_hf.label_maps import resize_map, split_segments

BACKENDS = [MPFormerImageProcessor, MPFormerImageProcessorPil]


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pads_to_the_batch_and_the_divisor(backend):
    batch = backend(size={"shortest_edge": 40, "longest_edge": 100})([picture(50, 100), picture(80, 60)])
    assert batch["pixel_values"].shape == (2, 3, 64, 96) and batch["pixel_values"].dtype == torch.float32
    heights, widths = batch["pixel_mask"].amax(2).sum(1), batch["pixel_mask"].amax(1).sum(1)
    assert (heights.tolist(), widths.tolist()) == ([40, 53], [80, 40])
    assert (batch["pixel_values"][0, :, 40:] == 0).all() and (batch["pixel_values"][0, :, :, 80:] == 0).all()


def test_backends_agree():
    images = [picture(50, 100), picture(80, 60)]
    fast, pil = (backend(size={"shortest_edge": 40, "longest_edge": 100})(images) for backend in BACKENDS)
    torch.testing.assert_close(fast["pixel_values"], pil["pixel_values"], atol=0.06, rtol=0)
    assert torch.equal(fast["pixel_mask"], pil["pixel_mask"])


def test_equals_mask2former_where_nothing_is_stretched():
    image = picture(64, 96)
    ours = MPFormerImageProcessor(do_resize=False)(image)["pixel_values"]
    theirs = Mask2FormerImageProcessor(do_resize=False)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_semantic_maps(backend):
    maps = np.full((40, 60), 255, dtype=np.uint8)
    maps[:20, :30], maps[20:, 30:] = 3, 1
    batch = backend(do_resize=False)([picture(40, 60)], [maps])
    masks, classes = batch["mask_labels"][0], batch["class_labels"][0]
    assert masks.dtype == torch.bool and masks.shape == (2, 64, 64) and classes.tolist() == [1, 3]
    assert masks.flatten(1).sum(1).tolist() == [600, 600] and masks[1, :20, :30].all()


def test_mixed_sizes_pad_masks_with_background():
    maps = [np.zeros((40, 60), dtype=np.uint8), np.zeros((64, 30), dtype=np.uint8)]
    batch = MPFormerImageProcessor(do_resize=False)([picture(40, 60), picture(64, 30)], maps)
    for masks, pixel_mask in zip(batch["mask_labels"], batch["pixel_mask"], strict=True):
        assert torch.equal(masks[0], pixel_mask.bool())


@pytest.mark.parametrize("backend", BACKENDS)
def test_segment_ids(backend):
    maps = np.zeros((40, 60), dtype=np.int32)
    maps[:10], maps[10:20], maps[20:30] = 70000, 255, 8
    batch = backend(do_resize=False)(picture(40, 60), Image.fromarray(maps), {70000: 2, 255: 5, 8: 2})
    assert batch["class_labels"][0].tolist() == [2, 5, 2], "by ascending id; 255 is an id like any other; 0 is void"
    assert batch["mask_labels"][0].flatten(1).sum(1).tolist() == [600, 600, 600]
    assert batch["mask_labels"][0][2, :10, :60].all()


def test_reduce_labels_keeps_void():
    maps = torch.tensor([[0, 1, 2, 255]], dtype=torch.int32)
    _, classes = split_segments(maps, None, True, 255)
    assert classes.tolist() == [0, 1]
    _, classes = split_segments(maps, {0: 0, 1: 3, 255: 1}, True, 255)
    assert classes.tolist() == [2, 0]
    _, classes = split_segments(maps, None, False, None)
    assert classes.tolist() == [0, 1, 2, 255]


def test_class_255_in_a_table_and_large_ids():
    maps = torch.tensor([[1, 2, 2**24 + 1, 2**40]]).repeat(32, 8)
    table = {1: 255, 2: 0, 2**24 + 1: 1, 2**40: 2}
    batch = MPFormerImageProcessor(size={"height": 64, "width": 64})([picture(32, 32)], [maps], table)
    assert batch["class_labels"][0].tolist() == [255, 0, 1, 2], "a class like any other"
    assert batch["mask_labels"][0].flatten(1).sum(1).tolist() == [1024] * 4


@pytest.mark.parametrize("size", [(32, 64), (45, 31), (7, 200), (60, 90)])
def test_resizing_maps_equals_torchvision(size):
    maps = torch.randint(0, 200, (60, 90), dtype=torch.uint8)
    expected = tvF.resize(maps[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT)[0]
    assert torch.equal(resize_map(maps, size), expected)


def test_what_the_processor_does_not_do_is_refused():
    with pytest.raises(ValueError, match="are not supported"):
        MPFormerImageProcessor(do_pad=False)(picture(40, 60))
    with pytest.raises(ValueError, match="images is empty"):
        MPFormerImageProcessor()([])
    assert MPFormerImageProcessor(label_ids_to_fuse=None).label_ids_to_fuse == []


def test_maps_follow_the_resize():
    maps = np.zeros((60, 90), dtype=np.uint8)
    maps[:, 45:] = 1
    batch = MPFormerImageProcessor(size={"height": 32, "width": 64})([picture(60, 90)], [maps])
    assert batch["mask_labels"][0][1].sum().item() == 32 * 32
    assert batch["mask_labels"][0][1, :, 32:].all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "LA"])
def test_other_modes_become_rgb(backend, mode):
    image = picture(40, 60).convert(mode)
    assert backend(do_resize=False)(image)["pixel_values"].shape == (1, 3, 64, 64)


def test_round_trip_keeps_task_and_thresholds(tmp_path):
    own = {
        "task": "instance",
        "threshold": 0.7,
        "mask_threshold": 0.4,
        "overlap_mask_area_threshold": 0.6,
        "label_ids_to_fuse": [3, 5],
        "size": {"height": 48, "width": 64},
    }
    MPFormerImageProcessor(**own).save_pretrained(tmp_path)
    for kwargs, backend in (({}, MPFormerImageProcessor), ({"backend": "pil"}, MPFormerImageProcessorPil)):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, **kwargs)
        assert type(loaded) is backend
        for name, value in own.items():
            assert (dict(getattr(loaded, name)) if name == "size" else getattr(loaded, name)) == value


def test_loads_mask2formers_processor(tmp_path):
    Mask2FormerImageProcessor(size={"shortest_edge": 480, "longest_edge": 640}).save_pretrained(tmp_path)
    loaded = MPFormerImageProcessor.from_pretrained(tmp_path)
    assert loaded.size["shortest_edge"] == 480 and loaded.task == "panoptic"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "images, maps, ids, message",
    [
        ([picture(40, 60)], [np.zeros((40, 59), np.uint8)], None, "Segmentation map 0 is 40x59, its image 40x60"),
        ([picture(40, 60)] * 2, [np.zeros((40, 60), np.uint8)], None, "2 images, but 1 segmentation maps"),
        (
            [picture(40, 60)],
            [np.zeros((40, 60, 3), np.uint8)],
            None,
            "(expected integers of shape|is 60x3, its image 40x60)",
        ),
        (
            [picture(40, 60)],
            [np.zeros((40, 60), np.float32)],
            None,
            "(expected integers of shape|is 60x3, its image 40x60)",
        ),
        ([picture(40, 60)], [np.zeros((40, 60), np.uint8)], [{}, {}], "2 entries for 1 images"),
    ],
)
def test_bad_input_is_one_sentence(backend, images, maps, ids, message):
    with pytest.raises(ValueError, match=message) as error:
        backend(do_resize=False)(images, maps, ids)
    assert "\n" not in str(error.value)


def test_an_image_without_three_channels():
    with pytest.raises(ValueError, match="Image 0 has 5 channels, image_mean has 3"):
        MPFormerImageProcessor(do_convert_rgb=False)(torch.zeros(5, 32, 32), input_data_format="channels_first")


def test_unknown_task():
    with pytest.raises(ValueError, match="task must be one of semantic, instance, panoptic"):
        MPFormerImageProcessor(task="depth")
