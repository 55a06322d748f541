"""Results: segments, drawing, files, and what other tools read of them."""

import base64
import io
import json

import numpy as np
import pytest
import supervision
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.data.layouts.label_studio import decode_brush
from mpformer_hf.inference.drawing import draw_segmentation
from mpformer_hf.inference.result import Result
from mpformer_hf.model.images import to_image_tensor
from mpformer_hf.model.outputs import MPFormerForUniversalSegmentationOutput

ID2LABEL = {0: "cell", 1: "dot", 2: "ground"}


def make_result(task: str) -> Result:
    """Two overlapping instances, the worse one first; or the same as panoptic or semantic segments."""
    image = torch.arange(3 * 12 * 16).reshape(3, 12, 16).to(torch.uint8)
    masks = torch.zeros(2, 12, 16, dtype=torch.bool)
    masks[0, 2:8, 2:10] = True
    masks[1, 5:11, 6:15] = True
    rows = [{"id": 1, "label_id": 1, "score": 0.6}, {"id": 2, "label_id": 0, "score": 0.9}]
    if task == "instance":
        return Result(image, task, {"segmentation": masks, "segments_info": rows}, ID2LABEL, [7, 8, 9])
    ids = masks[0].int()
    ids[masks[1]] = 2
    if task == "panoptic":
        return Result(image, task, {"segmentation": ids, "segments_info": rows}, ID2LABEL)
    return Result(image, task, torch.tensor([2, 1, 0])[ids.long()], ID2LABEL)


def test_segments_of_an_instance_result():
    result = make_result("instance")
    best, other = result
    assert len(result) == 2 and result[0] is best
    assert (best.label, best.label_id, best.score, best.box, best.area) == ("cell", 0, 0.9, (6, 5, 15, 11), 54)
    assert (other.label, other.box, other.area) == ("dot", (2, 2, 10, 8), 48)
    assert result.label_map.unique().tolist() == [-1, 0, 1] and result.label_map[6, 8] == 0
    assert repr(result) == "Result(instance, 12x16: 1 cell, 1 dot)"


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_drawing_and_files(task, tmp_path):
    result = make_result(task)
    drawn = result.draw()
    assert np.array_equal(np.array(Image.open(io.BytesIO(result._repr_png_()))), np.array(drawn))
    for name in ("a.png", "a.json", "a.tif"):
        result.save(tmp_path / name)
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), np.array(drawn))
    stored = json.loads((tmp_path / "a.json").read_text())
    assert (stored["height"], stored["width"], stored["task"]) == (12, 16, task)
    for row, segment in zip(stored["segments"], result, strict=True):
        assert np.array_equal(coco_mask.decode(row["segmentation"]) > 0, segment.mask.numpy())
    assert np.array_equal(np.array(Image.open(tmp_path / "a.tif")), result.label_map.numpy().astype(np.uint8))
    with pytest.raises(ValueError, match=r"a\.txt must be \.json"):
        result.save(tmp_path / "a.txt")


def test_coco_and_supervision():
    result = make_result("instance")
    rows = result.to_coco(image_id=5)
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        (5, 7, [6, 5, 9, 6]),
        (5, 8, [2, 2, 8, 6]),
    ]
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections) and detections.area.tolist() == [54, 48]
    assert detections["class_name"].tolist() == ["cell", "dot"]
    empty = Result(result.image, "instance", {"segmentation": torch.zeros(0, 12, 16), "segments_info": []}, ID2LABEL)
    assert len(empty.to_supervision()) == 0 and empty.to_coco() == [] and len(empty) == 0
    assert empty.draw().size[0] >= 16 and repr(empty).endswith("no segment)")


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_supervision_reads_results_of_the_processor(task):
    """Also of an image in which nothing was found."""
    processor = MPFormerImageProcessor()
    masks = -torch.ones(1, 3, 16, 24)
    masks[0, 0, :8], masks[0, 1, 8:] = 4, 4
    for classes, count in (
        (torch.tensor([[[5.0, 0, 0], [0, 5, 0], [0, 0, 5]]]), 2),
        (torch.tensor([[[0, 0, 9.0]] * 3]), 0),
    ):
        outputs = MPFormerForUniversalSegmentationOutput(class_queries_logits=classes, masks_queries_logits=masks)
        (found,) = getattr(processor, f"post_process_{task}_segmentation")(outputs, threshold=0.5)
        detections = supervision.Detections.from_transformers(found, id2label={0: "cell", 1: "dot"})
        assert len(detections) == len(found["segments_info"]) and detections.mask.shape[1:] == (64, 96)
        assert (len(detections) > 0) == (count > 0)


def test_labelme_json():
    """A shape of type mask is the PNG of the box whose corners, both inclusive, are its points."""
    result = make_result("instance")
    content = result.to_labelme("photo.jpg")
    for shape, segment in zip(content["shapes"], result, strict=True):
        (x0, y0), (x1, y1) = shape["points"]
        mask = np.zeros((12, 16), dtype=bool)
        mask[y0 : y1 + 1, x0 : x1 + 1] = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
        assert np.array_equal(mask, segment.mask.numpy()) and shape["label"] == segment.label
    assert (content["imageHeight"], content["imageWidth"], content["imagePath"]) == (12, 16, "photo.jpg")


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_some_classes_only_and_label_studio(task):
    result = make_result(task)
    [kept] = {segment.label_id for segment in result if segment.label == "dot"}
    only = result.only([kept])
    assert [s.as_dict() for s in only] == [s.as_dict() for s in result if s.label_id == kept] != []
    assert set(only.label_map.unique().tolist()) == {-1, kept}
    assert [s.as_dict() for s in result.only({"dot"})] == [s.as_dict() for s in only]
    with pytest.raises(ValueError, match="The model has no class 'cow'"):
        result.only(["cow"])
    assert len(only.only([])) == 0 and (only.only([]).label_map == -1).all()
    added = torch.zeros(1, 12, 16, dtype=torch.bool)
    added[:, 0, 0] = True
    more = result.only([kept]).with_masks(added, [2])
    areas = {label: 0 for label in ("dot", "ground")} | {s.label: s.area for s in more if s.score in (None, 1.0)}
    assert areas["ground"] == 1, "what was left out does not come back"
    task_of_tool = result.to_label_studio("/data/photo.jpg")
    regions = task_of_tool["predictions"][0]["result"]
    assert task_of_tool["data"] == {"image": "/data/photo.jpg"} and len(regions) == len(result.without_duplicates())
    for region, segment in zip(regions, result.without_duplicates(), strict=True):
        mask = decode_brush(region["value"]["rle"], 12, 16)
        assert np.array_equal(mask, segment.mask.numpy()) and region["value"]["brushlabels"] == [segment.label]


def test_the_result_of_the_pipeline_is_drawn_alike():
    result = make_result("panoptic")
    listed = [
        {"label": segment.label, "score": segment.score, "mask": Image.fromarray(segment.mask.numpy())}
        for segment in result
    ]
    drawn = draw_segmentation(result.as_image(), listed, ID2LABEL)
    assert np.array_equal(np.array(drawn), np.array(result.draw()))
    with pytest.raises(ValueError, match="has no class 'cat'"):
        draw_segmentation(result.as_image(), [{**listed[0], "label": "cat"}], ID2LABEL)


def test_arrays_that_can_be_read_in_two_ways_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 5, 3\) fits \[3, H, W\] and \[H, W, 3\]; give a PIL image"):
        to_image_tensor(np.zeros((3, 5, 3), dtype=np.uint8))
    photo = Image.new("RGB", (3, 3))
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    assert to_image_tensor(photo).shape == to_image_tensor(buffer.getvalue()).shape == (3, 3, 3)
