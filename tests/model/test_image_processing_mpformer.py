"""Image processors: both backends, maps to masks, bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF
from transformers import AutoImageProcessor, Mask2FormerImageProcessor, pipeline

from mpformer_hf import MPFormerImageProcessor, MPFormerImageProcessorPil
from mpformer_hf.model.label_maps import resize_map, split_segments
from tests.tiny import tiny_model

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(task="panoptic", size=SIZE, threshold=0.0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("processor", [MPFormerImageProcessor, MPFormerImageProcessorPil])
@pytest.mark.parametrize("width, height", [(20000, 1), (1, 20000)])
def test_images_that_are_too_narrow_are_refused_by_processor_and_pipeline(processor, width, height, saved):
    image, message = Image.new("RGB", (width, height)), f"the image is {width}x{height} pixels, too narrow"
    with pytest.raises(ValueError, match=message):
        processor(size=SIZE)([image])
    with pytest.raises(ValueError, match=message):
        pipeline("image-segmentation", model=str(saved))(image)


def test_empty_images_are_refused():
    with pytest.raises(ValueError, match="the image is empty"):
        MPFormerImageProcessor(size=SIZE)([np.zeros((0, 5, 3), dtype=np.uint8)])


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


@pytest.mark.parametrize("size", [{"shortest_edge": 70, "longest_edge": 100}, {"height": 50, "width": 70}])
@pytest.mark.parametrize("shapes", [[(50, 100)], [(80, 60), (50, 100), (33, 77)], [(64, 64)]])
def test_stretching_equals_mask2former(size, shapes):
    images = [picture(*shape, seed) for seed, shape in enumerate(shapes)]
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 3, (h // 10 + 1, w // 10 + 1)).repeat(10, 0).repeat(10, 1)[:h, :w] for h, w in shapes]
    ours = MPFormerImageProcessor(size=size, stretch_to_divisor=True)(images, maps)
    theirs = Mask2FormerImageProcessor(size=size)(images, maps, return_tensors="pt")
    for name in ("pixel_values", "pixel_mask"):
        assert torch.equal(ours[name], theirs[name]), name
    for a, b, mask in zip(ours["mask_labels"], theirs["mask_labels"], ours["pixel_mask"].bool(), strict=True):
        assert torch.equal(a[:, mask], b[:, mask].bool())
    for a, b in zip(ours["class_labels"], theirs["class_labels"], strict=True):
        assert torch.equal(a, b)
    ours = MPFormerImageProcessor(do_resize=False, stretch_to_divisor=True)(images)
    theirs = Mask2FormerImageProcessor(do_resize=False)(images, return_tensors="pt")
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    if shapes == [(50, 100)] and "height" not in size:
        assert not (MPFormerImageProcessor(size=size)(images)["pixel_mask"] == 1).all(), "nothing was padded"


def test_stretching_with_pil():
    images = [picture(50, 100), picture(80, 60)]
    fields = {"size": {"shortest_edge": 70, "longest_edge": 100}, "stretch_to_divisor": True}
    fast, pil = (backend(**fields)(images) for backend in BACKENDS)
    torch.testing.assert_close(fast["pixel_values"], pil["pixel_values"], atol=0.06, rtol=0)
    assert torch.equal(fast["pixel_mask"], pil["pixel_mask"])
    with pytest.raises(ValueError, match="stretch_to_divisor needs a size of shortest_edge and longest_edge, or of"):
        MPFormerImageProcessor(size={"longest_edge": 64}, stretch_to_divisor=True)(images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_of_older_versions(backend, tmp_path):
    expected = {"shortest_edge": 800, "longest_edge": 1333}

    def size_of(**fields):
        return {name: side for name, side in dict(backend(**fields).size).items() if side is not None}

    assert size_of(size=800, max_size=1333) == expected == size_of(max_size=1333)
    assert size_of(size={"shortest_edge": 800}, max_size=1333) == expected
    assert size_of(size=expected, _max_size=1000) == expected, "_max_size is of files, which have the size too"
    assert size_of(size=640) == {"shortest_edge": 640}
    assert size_of(size=expected, max_size=1333) == expected
    assert size_of(size={"height": 64, "width": 96}, max_size=1333) == {"height": 64, "width": 96}
    with pytest.raises(ValueError, match="max_size is the longest_edge of size; give one of them"):
        backend(size=expected, max_size=1000)
    old = {"size": 256, "max_size": 320, "reduce_labels": True, "num_labels": 150, "feature_extractor_type": "Any"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    loaded = backend.from_pretrained(tmp_path)
    assert loaded(picture(100, 600))["pixel_values"].shape == (1, 3, 64, 320) and loaded.do_reduce_labels
    loaded.save_pretrained(tmp_path)
    again = backend.from_pretrained(tmp_path)
    assert dict(again.size) == dict(loaded.size) and again.do_reduce_labels
    changed = backend.from_pretrained(tmp_path, size=640, max_size=960, reduce_labels=False, task="instance")
    assert (changed.size.shortest_edge, changed.size.longest_edge, changed.task) == (640, 960, "instance")
    assert not changed.do_reduce_labels
    assert backend.from_pretrained(tmp_path, max_size=400).size.longest_edge == 400


def test_fields_that_do_not_exist_are_named(caplog, tmp_path):
    MPFormerImageProcessor(treshold=0.3, num_labels=3)
    assert "MPFormerImageProcessor has no fields treshold; they have no effect." in caplog.text
    MPFormerImageProcessor().save_pretrained(tmp_path)
    caplog.clear()
    AutoImageProcessor.from_pretrained(tmp_path, backend="pil", trust_remote_code=False)
    assert not caplog.text
    MPFormerImageProcessor.from_pretrained(tmp_path, taks="instance")
    assert "MPFormerImageProcessor has no fields taks; they have no effect." in caplog.text
    with pytest.raises(ValueError, match="data_format must be channels_first"):
        MPFormerImageProcessor()(picture(40, 60), data_format="channels_last")


def test_one_channel_and_one_mean():
    grey = picture(40, 60).convert("L")
    with pytest.raises(
        ValueError, match=r"3 channels, image_mean has 1; .* converted to RGB unless do_convert_rgb=False"
    ):
        MPFormerImageProcessor(image_mean=[0.5], image_std=[0.5])(grey)
    with pytest.raises(
        ValueError, match=r"1 channels, image_mean has 3; .* not converted to RGB, do_convert_rgb is False"
    ):
        MPFormerImageProcessor(do_convert_rgb=False)(np.zeros((40, 60, 1), dtype=np.uint8))
    processor = MPFormerImageProcessor(image_mean=[0.5], image_std=[0.5], do_convert_rgb=False, do_resize=False)
    assert processor(np.zeros((40, 60, 1), dtype=np.uint8))["pixel_values"].shape == (1, 1, 64, 64)


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
        MPFormerImageProcessor()(do_pad=False, images=picture(40, 60))
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


@pytest.mark.parametrize(
    "fields",
    [
        {"do_resize": "false"},
        {"label_ids_to_fuse": "12"},
        {"label_ids_to_fuse": [1.7]},
        {"ignore_index": "255"},
        {"size_divisor": -32},
        {"resample": 99},
        {"rescale_factor": float("nan")},
    ],
)
def test_fields_of_the_processor_are_checked(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} must be"):
        MPFormerImageProcessor(**fields)


def test_sizes_without_end_are_refused():
    with pytest.raises(ValueError, match="size: height must be at least 1 and at most 65536"):
        MPFormerImageProcessor(size={"height": 10**6, "width": 64})
    assert MPFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 10**6}).size["longest_edge"] == 10**6
