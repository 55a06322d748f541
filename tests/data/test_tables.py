"""Instances in every layout, overlapping ones too, from files to masks."""

import json

import numpy as np
import pytest
import torch
from datasets import Image as ImageColumn
from datasets import Value
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.coco_masks import decode_all
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation.task_metrics import TaskMetrics, instance_reference, semantic_reference
from mpformer_hf.metrics.mean_iou import MeanIoU
from mpformer_hf.training.arguments import TransformArguments
from mpformer_hf.training.batches import TrainingDataset
from mpformer_hf.training.packing import Unpacker
from tests import datasets_on_disk as make
from tests.datasets_on_disk import opened


def masks_of(segments):
    result = instance_reference(segments, set(range(10)))
    masks = list(decode_all(result["masks"], *segments.map.shape[-2:]))
    return masks, result["label_ids"], result["iscrowd"]


def test_overlapping_objects_keep_all_their_pixels(tmp_path, caplog):
    with caplog.at_level("INFO"):
        data = opened(make.overlapping_objects(tmp_path / "d"))
    assert "COCO objects" in caplog.text and data.labels.names == ["cat", "dog"] and data.labels.stuff == []
    masks, labels, crowd = masks_of(data[0][1])
    assert labels == [0, 1, 1] and crowd == [False, False, True]
    assert masks[0].sum() == 400 and masks[1].sum() == 16 * 30 and (masks[0] & masks[1]).sum() == 100
    assert data[1][1].map.shape == (40, 60) and not data[1][1].classes


def test_masks_of_overlapping_objects_reach_the_model(tmp_path):
    data = opened(make.overlapping_objects(tmp_path / "d"))
    arguments = TransformArguments(augmentation="none", horizontal_flip=False)
    batches = TrainingDataset(data, arguments, MPFormerImageProcessor())
    unpack = Unpacker(MPFormerImageProcessor(), torch.device("cpu"))
    batch = unpack(batches.collate([batches[0, 1], batches[1, 1]]))
    expected, labels, _ = masks_of(data[0][1])
    assert batch["class_labels"][0].tolist() == labels[:2] and len(batch["class_labels"][1]) == 0
    np.testing.assert_array_equal(batch["mask_labels"][0][:, :40, :60].numpy(), np.stack(expected[:2]))
    batches = TrainingDataset(
        data, TransformArguments(augmentation="lsj", crop_size=[64, 64]), MPFormerImageProcessor()
    )
    for draw in range(8):  # cropped together, and what is cropped away is dropped
        batch = unpack(batches.collate([batches[0, draw]]))
        assert batch["mask_labels"][0].flatten(1).any(1).all() and batch["mask_labels"][0].shape[1:] == (64, 64)


def test_objects_as_structures_with_names_in_the_features(tmp_path):
    data = opened(make.polygons(tmp_path / "d"))
    masks, labels, _ = masks_of(data[0][1])
    assert data.labels.names == ["cat", "dog"] and labels == [1, 0] and masks[0].sum() == masks[1].sum() == 361


@pytest.mark.parametrize("reduce", [False, True])
def test_instance_maps(tmp_path, reduce):
    data = opened(make.instance_maps(tmp_path / "d"), do_reduce_labels=reduce)
    masks, labels, _ = masks_of(data[0][1])
    assert [data.labels.names[label] for label in labels] == ["cat", "cat", "dog"]
    assert len(data.labels.names) == (2 if reduce else 3)
    assert [mask.sum() for mask in masks] == [600, 600, 400]


def test_the_things_of_a_panoptic_dataset(tmp_path):
    folder = make.shapes(tmp_path / "shapes")
    data, panoptic = opened(folder), opened(folder, "panoptic")
    assert data.labels.names == ["disc", "square", "triangle", "star"] and len(panoptic.labels.names) == 8
    for index in range(len(data)):
        whole, things = panoptic[index][1], data[index][1]
        expected = {i: label for i, label in whole.classes.items() if label in panoptic.labels.things}
        assert things.classes == expected and torch.equal(things.map, whole.map)


def test_coco_folders(tmp_path):
    folder = make.coco_instances(tmp_path / "coco")
    train, val = opened(folder), opened(folder, split="val")
    assert train.labels.names == ["cat", "dog"] and train.labels.category_to_class == {3: 0, 18: 1}
    masks, labels, _ = masks_of(val[0][1])
    assert labels == [1] and masks[0].sum() == 361 and val[0][0].shape == (3, 40, 60)
    data = opened(make.coco_panoptic(tmp_path / "panoptic"), "panoptic")
    assert data.labels.names == ["cat", "sky"] and data.labels.things == {0}
    assert data[0][1].classes == {256: 0, 5: 1} and (data[0][1].map[:20] == 256).all()
    things = opened(tmp_path / "panoptic")
    assert things.labels.names == ["cat"] and things[0][1].classes == {256: 0}


def test_coco_folders_that_do_not_fit(tmp_path):
    folder = make.coco_instances(tmp_path / "coco")
    with pytest.raises(
        ValueError, match="a JSON of panoptic annotations for split 'train'; it has annotations/captions"
    ):
        opened(folder, "panoptic")
    with pytest.raises(ValueError, match=r"for split 'test'; it has annotations/captions"):
        opened(folder, split="test")
    (folder / "again").mkdir()
    (folder / "train2017" / "train.jpg").rename(folder / "again" / "train.jpg")
    assert len(opened(folder)) == 1
    (folder / "twice").mkdir()
    make.photo().save(folder / "twice" / "train.jpg")
    with pytest.raises(ValueError, match=r"train.jpg, which was found 2 times in"):
        opened(folder)
    (folder / "twice" / "train.jpg").unlink()
    (folder / "again" / "train.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 images or labels do not exist: .*train.jpg"):
        opened(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"category": 5}, "Row 0: object 0 has category 5, which is not in id2label"),
        ({"segmentation": [[2.0]]}, "Row 0: object 0 has a polygon of 1 coordinates"),
        ({"segmentation": {"size": [4, 4], "counts": [16]}}, "Row 0: object 0 has an RLE of 4x4, the image is 40x60"),
        ({"segmentation": None}, "Row 0: object 0 has a segmentation that is neither"),
    ],
)
def test_bad_objects_are_one_sentence(tmp_path, change, message):
    item = {"category": 0, "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]], **change}
    names = {"id2label.json": {"0": "cat"}}
    features = {"image": make.Image(), "objects": make.Value("string")}
    folder = make.write(tmp_path / "d", [{"image": make.photo(), "objects": json.dumps([item])}], features, names)
    with pytest.raises(ValueError, match=message):
        opened(folder)[0]


def test_images_without_objects_can_be_left_out(tmp_path):
    item = {"category": 0, "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]], "iscrowd": 0}
    objects = [[], [{**item, "iscrowd": 1}], [{**item, "iscrowd": 1}, item], [item]]
    rows = [{"image": make.photo(), "objects": json.dumps(row)} for row in objects]
    features = {"image": make.Image(), "objects": make.Value("string")}
    folder = make.write(tmp_path / "d", rows, features, {"id2label.json": {"0": "cat"}})
    for streaming in (False, True):
        arguments = DataArguments(dataset_name=str(folder), task="instance", streaming=streaming)
        kept = [row["objects"] for row in open_dataset(arguments, "train", drop_empty=True).rows]
        assert kept == [json.dumps(row) for row in objects[2:]]
    panoptic = DataArguments(dataset_name=str(make.coco_panoptic(tmp_path / "panoptic")), task="instance")
    assert len(open_dataset(panoptic, "train", drop_empty=True)) == 1
    maps = DataArguments(dataset_name=str(make.instance_maps(tmp_path / "maps")), task="instance")
    assert len(open_dataset(maps, "train", drop_empty=True)) == 1
    maps.streaming = True
    with pytest.raises(ValueError, match="drop_empty needs a column objects or segments_info in a streamed dataset"):
        open_dataset(maps, "train", drop_empty=True)


def test_another_void_label(tmp_path):
    values = np.zeros((40, 60), np.uint8)
    values[:10], values[10:12] = 65, 255
    data = opened(make.semantic(tmp_path / "d", [values]), "semantic", void_label=65)
    assert data[0][1].classes == {0: 0}
    with pytest.raises(ValueError, match=r"has ids \[65\] that are not in id2label"):
        opened(make.semantic(tmp_path / "e", [values]), "semantic")[0]


def test_named_classes_of_the_releases(tmp_path):
    folder = make.write(
        tmp_path / "d",
        [{"image": make.photo(), "annotation": make.PILImage.fromarray(np.full((40, 60), 150, np.uint8))}],
        {"image": make.Image(), "annotation": make.Image()},
        {},
    )
    data = opened(folder, "semantic", id2label="ade20k", do_reduce_labels=True)
    assert len(data.labels.names) == 150 and data.labels.names[0] == "wall"
    assert set(data[0][1].classes.values()) == {149}


def test_classes_are_those_of_the_training_split(tmp_path):
    folder = make.shapes(tmp_path / "shapes")
    train = opened(folder, "panoptic")
    args = DataArguments(dataset_name=str(folder), task="panoptic")
    assert open_dataset(args, "validation", 1, train.labels).labels is train.labels


def test_lossy_and_fractional_label_images_are_refused(tmp_path):
    photo, column = make.photo(), {"image": ImageColumn(), "label": ImageColumn()}
    names = {"id2label.json": {"0": "a", "1": "b"}}
    lossy = tmp_path / "lossy.jpg"
    make.photo(mode="L").save(lossy)
    make.write(tmp_path / "jpeg", [{"image": photo, "label": {"path": str(lossy)}}], column, names)
    fractional = Image.fromarray(np.full((40, 60), 0.7, dtype=np.float32))
    fractional.save(tmp_path / "float.tiff")
    make.write(tmp_path / "float", [{"image": photo, "label": {"path": str(tmp_path / "float.tiff")}}], column, names)
    for name, message in (
        ("jpeg", "Row 0: the label is a JPEG"),
        ("float", "Row 0: the label has values of type float"),
    ):
        data = DataArguments(dataset_name=str(tmp_path / name), task="semantic", allow_outside_files=True)
        with pytest.raises(ValueError, match=message):
            open_dataset(data, "train")[0]


def test_class_255_is_a_class_where_there_are_more(tmp_path):
    map_ = np.full((40, 60), 254, dtype=np.uint16)
    map_[:10], map_[10:20] = 255, 299
    names = [f"class {i}" for i in range(300)]
    data = DataArguments(dataset_name=str(make.semantic(tmp_path / "d", [map_], names=names)), task="semantic")
    split = open_dataset(data, "train")
    _, segments = split[0]
    assert sorted(segments.classes.values()) == [254, 255, 299]
    assert semantic_reference(segments)[0, 0] == 255
    scores = TaskMetrics("semantic", split.labels)
    wrong = torch.from_numpy(map_.astype(np.int64))
    wrong[:10] = 299
    scores.add({"semantic": wrong}, segments)
    assert scores.compute()["per_class_iou"]["class 255"] == 0.0
    with pytest.raises(ValueError, match="ignore_index 255 is one of the 300 classes"):
        MeanIoU(num_labels=300)


def test_objects_of_class_255_are_targets(tmp_path):
    square = [[1.0, 1.0, 20.0, 1.0, 20.0, 20.0, 1.0, 20.0]]
    objects = json.dumps([{"category": c, "segmentation": square, "iscrowd": 0} for c in (254, 255, 256)])
    names = {"id2label.json": {str(i): f"class {i}" for i in range(300)}}
    features = {"image": ImageColumn(), "objects": Value("string")}
    folder = make.write(tmp_path / "d", [{"image": make.photo(), "objects": objects}], features, names)
    _, segments = open_dataset(DataArguments(dataset_name=str(folder), task="instance"), "train")[0]
    assert sorted(segments.classes.values()) == [254, 255, 256]


@pytest.mark.parametrize(
    "segments, message",
    [
        ([{"id": 1, "category_id": 0}, {"id": 1, "category_id": 2}], "has the id 1, which must be positive"),
        ([{"id": 0, "category_id": 0}], "has the id 0, which must be positive"),
        ([{"id": 1, "category_id": 0, "isthing": 5}], "has isthing 5 of category 0"),
        ([{"id": 1, "category_id": 0, "isthing": 1}, {"id": 2, "category_id": 0, "isthing": 0}], "thing and as stuff"),
    ],
)
def test_segments_of_tables_are_checked(segments, message, tmp_path):
    ids = np.ones((40, 60), dtype=np.int32)
    ids[:10] = 2
    segments = [{"isthing": 0, "iscrowd": 0, **segment} for segment in segments]
    data = DataArguments(dataset_name=str(make.panoptic(tmp_path / "d", ids, segments)), task="panoptic")
    with pytest.raises(ValueError, match=message):
        open_dataset(data, "train")[0]


@pytest.mark.parametrize("objects", ["null", "5", "[5]", '[{"category": [0], "segmentation": []}]', "{", None])
def test_objects_of_any_form_are_named_by_row(objects, tmp_path):
    names = {"id2label.json": {"0": "a"}}
    rows = [{"image": make.photo(), "objects": objects}]
    folder = make.write(tmp_path / "d", rows, {"image": ImageColumn(), "objects": Value("string")}, names)
    data = DataArguments(dataset_name=str(folder), task="instance")
    with pytest.raises(ValueError, match=r"^Row 0: ") as error:
        open_dataset(data, "train")[0]
    assert "\n" not in str(error.value)


def test_a_label_image_of_pure_red_is_no_map_of_void(tmp_path):
    label = np.zeros((40, 60, 3), np.uint8)
    label[:10, :10, 0] = 255
    rows = [{"image": make.photo(), "label": Image.fromarray(label)}]
    columns = {"image": ImageColumn(), "label": ImageColumn()}
    make.write(tmp_path, rows, columns, {"id2label.json": {"0": "ground", "1": "leaf", "2": "tree"}})
    with pytest.raises(ValueError, match=r"colours such as \(255, 0, 0\).*class_dict.csv"):
        open_dataset(DataArguments(dataset_name=str(tmp_path), task="semantic"), "train")[0]


def test_ignored_ids_of_signed_maps_are_void(tmp_path):
    label = np.zeros((40, 60), np.int32)
    label[:10], label[10:20], label[20:30] = -1, -100, 1
    columns = {"image": ImageColumn(), "label": ImageColumn()}
    for name in ("a", "b"):
        Image.fromarray(label).save(tmp_path / f"{name}.tif")
        label[0, 0] = -3
    for name in ("a", "b"):
        rows = [{"image": make.photo(), "label": {"bytes": (tmp_path / f"{name}.tif").read_bytes(), "path": None}}]
        make.write(tmp_path / name, rows, columns, {"id2label.json": {"0": "ground", "1": "leaf"}})
    _, segments = open_dataset(DataArguments(dataset_name=str(tmp_path / "a"), task="semantic"), "train")[0]
    assert segments.classes == {0: 0, 1: 1}
    assert torch.equal(segments.void("semantic").bool(), torch.from_numpy(label < 0))
    with pytest.raises(ValueError, match=r"has ids \[-3\] that are not in id2label"):
        open_dataset(DataArguments(dataset_name=str(tmp_path / "b"), task="semantic"), "train")[0]


def test_names_that_begin_with_void_are_not_those_after_reducing(tmp_path):
    folder = make.semantic(tmp_path / "data", [np.ones((40, 60), np.uint8)])
    (folder / "id2label.json").write_text('{"0": "unlabelled", "1": "road", "2": "car"}')
    data = DataArguments(dataset_name=str(folder), task="semantic", do_reduce_labels=True)
    with pytest.raises(
        ValueError, match=r"with do_reduce_labels the first name is that of id 1.*--ignore_labels unlabelled"
    ):
        open_dataset(data, "train")
