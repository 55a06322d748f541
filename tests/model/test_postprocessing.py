"""Post-processing against the official inference's recorded results, and its rules one by one."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.model import postprocessing
from mpformer_hf.model.postprocessing import (
    ResizeGeometry,
    argmax_queries,
    instance_inference,
    panoptic_inference,
    resize_masks,
    semantic_classes,
    semantic_inference,
)
from tests.tiny import FIXTURES

GOLDEN = load_file(FIXTURES / "postprocess.safetensors")


FACTS = json.loads((FIXTURES / "postprocess.json").read_text())


SAME = ResizeGeometry((24, 32), (24, 32), (24, 32))


THINGS, STUFF = {0, 1, 2, 3}, {4, 5}


@pytest.fixture(params=[128, 7], ids=["usual", "small tiles"], autouse=True)
def tiles(request, monkeypatch):
    monkeypatch.setattr(postprocessing, "TILE", request.param)


def test_semantic_equals_official():
    scores = semantic_inference(GOLDEN["pred_logits"], GOLDEN["pred_masks"], SAME)
    torch.testing.assert_close(scores, GOLDEN["semantic"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold, overlap", [(0.8, 0.8), (0.5, 0.3)])
def test_panoptic_equals_official(threshold, overlap):
    name = f"omt{threshold}_ovt{overlap}"
    segmentation, segments = panoptic_inference(
        GOLDEN["pred_logits"], GOLDEN["pred_masks"], SAME, threshold, 0.5, overlap, STUFF
    )
    assert torch.equal(segmentation, GOLDEN[f"panoptic_{name}"])
    expected = FACTS["panoptic"][name]
    assert [(s["id"], s["label_id"]) for s in segments] == [(s["id"], s["category_id"]) for s in expected]


@pytest.mark.parametrize("top", [10, 30])
@pytest.mark.parametrize("things_only", [False, True])
def test_instances_equal_official(top, things_only):
    prefix = f"instance_top{top}_panoptic_on_{things_only}"
    found = instance_inference(
        GOLDEN["pred_logits"],
        GOLDEN["pred_masks"],
        SAME,
        max_detections=top,
        exclude_labels=STUFF if things_only else frozenset(),
    )
    torch.testing.assert_close(found.scores, GOLDEN[f"{prefix}.scores"], atol=1e-5, rtol=0)
    assert torch.equal(found.labels, GOLDEN[f"{prefix}.classes"])
    assert torch.equal(found.masks, GOLDEN[f"{prefix}.masks"].bool())


def test_resizing_equals_official():
    sizes = FACTS["resize"]
    frame = ResizeGeometry(*(tuple(sizes[k]) for k in ("padded_input", "image_size_before_padding", "output_size")))
    resized = resize_masks(GOLDEN["pred_masks"][:4], frame)
    torch.testing.assert_close(resized, GOLDEN["upsampled_masks_final"], atol=1e-4, rtol=1e-4)


def outputs_of(masks, classes, num_classes=3, confidence=8.0, pixel_mask=None):
    """Outputs of one image: query i has class `classes[i]` and mask logits +-6 from the bool `masks[i]`."""
    logits = torch.zeros(1, len(classes), num_classes + 1)
    logits[0, torch.arange(len(classes)), torch.tensor(classes)] = confidence
    return SimpleNamespace(
        class_queries_logits=logits,
        masks_queries_logits=(12.0 * torch.stack(masks).float() - 6.0)[None],
        pixel_mask=pixel_mask,
    )


def box(y0, y1, x0, x1, size=(16, 24)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_stuff_is_fused_into_one_segment_with_one_row():
    outputs = outputs_of([box(0, 8, 0, 24), box(8, 16, 0, 12), box(8, 16, 12, 24)], [0, 0, 1])
    result = MPFormerImageProcessor(label_ids_to_fuse=[0]).post_process_panoptic_segmentation(outputs)[0]
    assert [(s["id"], s["label_id"], s["was_fused"]) for s in result["segments_info"]] == [(1, 0, True), (2, 1, False)]
    assert set(result["segmentation"].unique().tolist()) - {0} == {1, 2}
    apart = MPFormerImageProcessor().post_process_panoptic_segmentation(outputs)[0]
    assert [s["id"] for s in apart["segments_info"]] == [1, 2, 3]
    fused = MPFormerImageProcessor().post_process_panoptic_segmentation(outputs, label_ids_to_fuse={0})[0]
    assert torch.equal(fused["segmentation"], result["segmentation"])


def test_a_confident_mask_of_moderate_probability_survives():
    outputs = outputs_of([box(4, 12, 4, 20)], [1], confidence=2.0)
    outputs.masks_queries_logits = torch.where(outputs.masks_queries_logits > 0, 1.4, -6.0)
    result = MPFormerImageProcessor(threshold=0.5).post_process_panoptic_segmentation(outputs)[0]
    assert len(result["segments_info"]) == 1


@pytest.mark.parametrize("call", ["panoptic", "instance"])
def test_threshold_acts_and_has_the_processors_default(call):
    outputs = outputs_of([box(0, 8, 0, 24)], [1], confidence=2.0)  # probability 0.71
    for threshold, count in ((0.5, 1), (0.9, 0)):
        processor = MPFormerImageProcessor(threshold=threshold)
        post = getattr(processor, f"post_process_{call}_segmentation")
        assert len(post(outputs)[0]["segments_info"]) == count
        other = getattr(MPFormerImageProcessor(), f"post_process_{call}_segmentation")
        assert len(other(outputs, threshold=threshold)[0]["segments_info"]) == count


@pytest.mark.parametrize("call", ["panoptic", "instance"])
def test_mask_threshold_acts(call):
    outputs = outputs_of([box(0, 8, 0, 24)], [1])
    ramp = torch.linspace(-3, 3, 24).expand(1, 1, 16, 24)
    outputs.masks_queries_logits = ramp
    post = getattr(MPFormerImageProcessor(threshold=0.1), f"post_process_{call}_segmentation")
    nothing = {"panoptic": 0, "instance": -1}[call]
    areas = [(post(outputs, mask_threshold=t)[0]["segmentation"] != nothing).float().mean().item() for t in (0.3, 0.7)]
    assert areas[0] > 0.6 and areas[1] < 0.4


@pytest.mark.parametrize("call", ["panoptic", "instance"])
def test_overlap_threshold_acts(call):
    masks = [box(0, 16, 0, 16), box(0, 16, 8, 20)]  # the second keeps a third
    outputs = outputs_of(masks, [1, 2])
    outputs.class_queries_logits[0, 1, 2] = 4.0
    post = getattr(MPFormerImageProcessor(threshold=0.1), f"post_process_{call}_segmentation")
    counts = [len(post(outputs, overlap_mask_area_threshold=t)[0]["segments_info"]) for t in (0.2, 0.6)]
    assert counts == [2, 1]


def test_instances_may_overlap_and_carry_boxes():
    masks = [box(0, 16, 0, 16), box(0, 16, 8, 20)]
    result = MPFormerImageProcessor(threshold=0.5).post_process_instance_segmentation(
        outputs_of(masks, [1, 1]), return_binary_maps=True
    )[0]
    assert result["segmentation"].dtype == torch.bool and result["segmentation"].shape == (2, 64, 96)
    assert (result["segmentation"].sum(0) == 2).any()
    assert sorted(s["bbox"] for s in result["segments_info"]) == [[0, 0, 64, 64], [32, 0, 48, 64]]
    assert all(0.9 < s["score"] <= 1 for s in result["segments_info"])


def test_stuff_is_no_instance():
    outputs = outputs_of([box(0, 8, 0, 12), box(8, 16, 0, 12), box(0, 8, 12, 24)], [0, 1, 2])
    found = MPFormerImageProcessor(label_ids_to_fuse=[0, 2]).post_process_instance_segmentation(outputs)[0]
    assert [segment["label_id"] for segment in found["segments_info"]] == [1]


def test_max_detections_acts():
    outputs = outputs_of([box(0, 8, 0, 12), box(8, 16, 0, 12), box(0, 8, 12, 24)], [0, 1, 2])
    post = MPFormerImageProcessor(threshold=0.1).post_process_instance_segmentation
    assert [len(post(outputs, max_detections=n)[0]["segments_info"]) for n in (1, 2, 50)] == [1, 2, 3]


def test_rle_decodes_to_the_mask():
    outputs = outputs_of([box(0, 8, 0, 12), box(3, 9, 5, 24), torch.rand(16, 24) > 0.5], [0, 1, 2])
    processor = MPFormerImageProcessor(threshold=0.1)
    runs = processor.post_process_instance_segmentation(outputs, return_coco_annotation=True)[0]["segmentation"]
    maps = processor.post_process_instance_segmentation(outputs, return_binary_maps=True)[0]["segmentation"]
    assert len(runs) == 3
    for run, mask in zip(runs, maps, strict=True):
        height, width = run["size"]
        decoded = coco_mask.decode(coco_mask.frPyObjects(run, height, width))
        assert np.array_equal(decoded.astype(bool), mask.numpy())


def test_return_options_exclude_each_other():
    with pytest.raises(ValueError, match="mutually exclusive"):
        MPFormerImageProcessor().post_process_instance_segmentation(
            outputs_of([box(0, 8, 0, 8)], [0]), return_coco_annotation=True, return_binary_maps=True
        )


def test_padding_is_cropped_and_the_size_is_the_callers():
    pixel_mask = torch.zeros(1, 64, 96, dtype=torch.int64)
    pixel_mask[:, :40, :60] = 1
    logits = torch.randn(1, 3, 16, 24)
    outputs = outputs_of([box(0, 8, 0, 8)] * 3, [0, 1, 2], pixel_mask=pixel_mask)
    outputs.masks_queries_logits = logits
    processor = MPFormerImageProcessor()
    assert processor.post_process_semantic_segmentation(outputs)[0].shape == (40, 60)
    full = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False)[..., :40, :60]
    wanted = F.interpolate(full, size=(100, 150), mode="bilinear", align_corners=False)[0]
    classes = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    expected = torch.einsum("qk,qhw->khw", classes, wanted.sigmoid())
    result = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[(100, 150)], return_segmentation_scores=True
    )[0]
    assert isinstance(result, SemanticSegmentationPostProcessorOutput)
    torch.testing.assert_close(result.segmentation_scores, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(result.segmentation, expected.argmax(0))


def test_semantic_models_sum_scores_before_they_are_resized():
    pixel_mask = torch.zeros(1, 64, 96, dtype=torch.int64)
    pixel_mask[:, :40, :60] = 1
    outputs = outputs_of([box(0, 8, 0, 8)] * 3, [0, 1, 2], pixel_mask=pixel_mask)
    outputs.masks_queries_logits = 4 * torch.randn(1, 3, 16, 24)
    full = F.interpolate(outputs.masks_queries_logits, size=(64, 96), mode="bilinear", align_corners=False)
    classes = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    summed = torch.einsum("qk,qhw->khw", classes, full[0].sigmoid())[..., :40, :60]
    expected = F.interpolate(summed[None], size=(100, 150), mode="bilinear", align_corners=False)[0]
    results = {}
    for task in ("semantic", "panoptic"):
        processor = MPFormerImageProcessor(task=task)
        results[task] = processor.post_process_semantic_segmentation(outputs, [(100, 150)], True)[0].segmentation_scores
    torch.testing.assert_close(results["semantic"], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(results["panoptic"], expected, atol=1e-3)
    same = MPFormerImageProcessor(task="semantic").post_process_semantic_segmentation(outputs, None, True)[0]
    torch.testing.assert_close(same.segmentation_scores, summed, atol=1e-5, rtol=1e-5)


def test_instances_cover_the_pixels_of_positive_logits():
    logits = torch.tensor([[[1e-9, -1e-9], [3.0, -3.0]]])
    assert (logits.sigmoid() > 0.5).sum() == 1, "the tiny positive logit should round to 0.5"
    geometry = ResizeGeometry((2, 2), (2, 2), (2, 2))
    found = instance_inference(torch.tensor([[9.0, -9.0]]), logits, geometry)
    assert found.masks[0].tolist() == [[True, False], [True, False]]
    areas = [
        int(instance_inference(torch.tensor([[9.0, -9.0]]), logits, geometry, 0.0, t).masks.sum()) for t in (0, 0.9, 1)
    ]
    assert areas == [4, 1, 0]


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_numpy_logits_give_the_same_results(task):
    outputs = SimpleNamespace(
        class_queries_logits=5 * torch.randn(2, 6, 4), masks_queries_logits=5 * torch.randn(2, 6, 16, 24)
    )
    arrays = SimpleNamespace(**{name: tensor.numpy() for name, tensor in vars(outputs).items()})
    process = getattr(MPFormerImageProcessor(threshold=0.1), f"post_process_{task}_segmentation")
    sizes = [(40, 60), (64, 96)]
    for a, b in zip(process(outputs, target_sizes=sizes), process(arrays, target_sizes=np.array(sizes)), strict=True):
        if task == "semantic":
            assert torch.equal(a, b)
        else:
            assert torch.equal(a["segmentation"], b["segmentation"]) and a["segments_info"] == b["segments_info"]


def test_wrong_number_of_target_sizes():
    with pytest.raises(ValueError, match="2 entries for 1 images"):
        MPFormerImageProcessor().post_process_semantic_segmentation(
            outputs_of([box(0, 8, 0, 8)], [0]), target_sizes=[(8, 8), (8, 8)]
        )


def test_nothing_found():
    outputs = outputs_of([box(0, 8, 0, 24)], [3])  # no object
    processor = MPFormerImageProcessor()
    panoptic = processor.post_process_panoptic_segmentation(outputs)[0]
    instance = processor.post_process_instance_segmentation(outputs)[0]
    assert panoptic["segments_info"] == [] and (panoptic["segmentation"] == 0).all()
    assert instance["segments_info"] == [] and (instance["segmentation"] == -1).all()


@pytest.mark.parametrize("target", [(40, 56), (37, 61), (80, 24)])
@pytest.mark.parametrize("sharpness", [0.3, 3.0, 30.0])
def test_competing_in_tiles_equals_competing_everywhere(target, sharpness, monkeypatch):
    monkeypatch.setattr(postprocessing, "TILE", 9)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(7, 4, 5, generator=generator)
    logits = sharpness * F.interpolate(coarse[None], size=(12, 16), mode="bicubic")[0]
    scores, frame = torch.rand(7, generator=generator), ResizeGeometry((48, 64), (40, 56), target)
    winner, covered, areas = argmax_queries(logits, scores, 0.5, frame)
    probability = resize_masks(logits, frame).sigmoid()
    expected = (probability * scores[:, None, None]).argmax(0)
    close = (probability - 0.5).abs().amin(0) < 1e-5
    assert (winner == expected).float().mean() > 0.999
    inside = (probability >= 0.5).gather(0, expected[None])[0]
    assert ((covered == inside) | close).float().mean() > 0.999
    assert (areas - (probability >= 0.5).flatten(1).sum(1)).abs().max() <= close.sum()


@pytest.mark.parametrize("resize_scores", [False, True])
@pytest.mark.parametrize("target", [(40, 56), (97, 61), (20, 30)])
def test_classes_are_those_of_the_largest_scores(target, resize_scores):
    generator = torch.Generator().manual_seed(target[0])
    classes = torch.randn(7, 30, generator=generator)
    classes[:, 3] = classes[:, 5]  # of equal scores the first is taken
    masks = 4 * torch.randn(7, 12, 16, generator=generator)
    geometry = ResizeGeometry((48, 64), (40, 56), target)
    expected = semantic_inference(classes, masks, geometry, resize_scores).argmax(0)
    assert torch.equal(semantic_classes(classes, masks, geometry, resize_scores), expected)


class Largest(TorchDispatchMode):
    """Records the number of values of the largest tensor that is made."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if torch.is_tensor(result):
            self.values = max(self.values, result.numel())
        return result


@pytest.mark.parametrize("resize_scores", [False, True])
def test_memory_of_semantic_results_does_not_grow_with_classes(resize_scores):
    classes, masks = torch.randn(4, 81), torch.randn(4, 8, 8)
    with Largest() as largest:
        semantic_classes(classes, masks, ResizeGeometry((32, 32), (32, 32), (256, 1200)), resize_scores)
    assert largest.values <= max(256 * 1200, 80 * 32 * 32, 80 * 128 * 128 if not resize_scores else 0)


class Launches(TorchDispatchMode):
    """Counts the operations that are kernels on a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("tiles", [128], indirect=True)  # once
def test_few_launches_on_a_gpu(monkeypatch):
    monkeypatch.setattr(postprocessing, "TILE", postprocessing.TILE_OF_GPU)
    classes = 3 * torch.randn(100, 134)
    masks = F.interpolate(5 * torch.randn(1, 100, 20, 20), size=(256, 256), mode="bicubic")[0]
    with Launches() as launches:
        panoptic_inference(classes, masks, ResizeGeometry((800, 1344), (800, 1333), (800, 1333)), 0.2)
    assert launches.count <= 200


@pytest.mark.parametrize("tiles", [128], indirect=True)
def test_instances_need_little_more_than_their_masks():
    masks = F.interpolate(5 * torch.randn(1, 20, 5, 5), size=(32, 32), mode="bicubic")[0]
    geometry = ResizeGeometry((128, 128), (128, 128), (600, 800))
    classes = torch.randn(20, 4)
    with Largest() as largest:
        found = instance_inference(classes, masks, geometry, max_detections=20)
    assert len(found.scores) == 20 and largest.values == found.masks.numel()
    alone = [resize_masks(mask[None], geometry)[0] > 0 for mask in masks]
    assert all(any((mask != other).float().mean() < 1e-4 for other in alone) for mask in found.masks)
