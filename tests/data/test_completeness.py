"""Ignored classes, annotated classes and incomplete images, in every layout, from the file to the model's inputs."""

import json

import numpy as np
import pytest
import torch
from datasets import Image as ImageColumn
from datasets import Value

from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.census import take_census
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.data.segments import Segments
from mpformer_hf.evaluation.drawing import drawn_reference, mark_errors
from mpformer_hf.evaluation.inputs import model_inputs
from mpformer_hf.model.image_processing_mpformer import MPFormerImageProcessor
from mpformer_hf.model.targets import CROWD
from mpformer_hf.prompts.audit import annotations_of
from mpformer_hf.training.arguments import TransformArguments
from mpformer_hf.training.batches import TrainingDataset
from mpformer_hf.training.packing import Unpacker
from tests import datasets_on_disk as make
from tests import official_folders
from tests.datasets_on_disk import opened


def box(x, y, width, height, category=0, **more):
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {"category_id": category, "segmentation": [polygon], **more}


def objects(folder, rows, names=("cat", "dog", "dontcare"), **columns):
    """A dataset of objects, with further columns."""
    table = [{"image": make.photo(), "objects": json.dumps(row)} for row in rows]
    features = {"image": ImageColumn(), "objects": Value("string")}
    for name, (feature, values) in columns.items():
        features[name] = feature
        table = [{**row, name: value} for row, value in zip(table, values, strict=True)]
    return make.write(folder, table, features, {"id2label.json": dict(enumerate(names))})


def both_inputs(dataset, task):
    """Inputs of the model for training without augmentation, and for the loss of an evaluation."""
    processor = MPFormerImageProcessor(task=task, do_resize=False, size_divisor=32)
    plain = TransformArguments(augmentation="none", horizontal_flip=False, color_jitter=False)
    batches = TrainingDataset(dataset, plain, processor)
    rows = range(len(dataset))
    yield Unpacker(processor, torch.device("cpu"))(batches.collate([batches[row, 1] for row in rows]))
    yield model_inputs(processor, *zip(*(dataset[row] for row in rows), strict=True))


def test_objects_of_an_ignored_class_are_void(tmp_path):
    rows = [[box(0, 0, 10, 5), box(20, 0, 10, 10, 2)], [box(5, 5, 6, 5, 1)]]
    dataset = opened(objects(tmp_path / "d", rows), ignore_labels=["dontcare"])
    assert dataset.labels.names == ["cat", "dog"] and dataset.labels.category_ids == [0, 1]
    expected = torch.zeros(2, 64, 64, dtype=torch.bool)
    expected[0, :10, 20:30] = True
    for inputs in both_inputs(dataset, "instance"):
        assert torch.equal(inputs["void_mask"].bool(), expected)
        assert [labels.tolist() for labels in inputs["class_labels"]] == [[0], [1]]
        assert inputs["mask_labels"][0].sum() == 50
    with pytest.raises(
        ValueError, match="ignore_labels has 'cow', which is not a class; the classes are cat, dog, dontcare"
    ):
        opened(tmp_path / "d", ignore_labels=["cow"])
    with pytest.raises(ValueError, match="ignore_labels has all classes"):
        opened(tmp_path / "d", ignore_labels=["cat", "dog", "dontcare"])


@pytest.mark.parametrize(
    ("layout", "task"),
    [
        ("cityscapes", "semantic"),
        ("cityscapes", "panoptic"),
        ("coco_panoptic", "semantic"),
        ("coco_panoptic", "panoptic"),
        ("ade20k", "semantic"),
        ("mapillary", "panoptic"),
        ("coco_stuff", "semantic"),
        ("pascal_voc", "semantic"),
    ],
)
def test_classes_are_ignored_in_every_layout(tmp_path, layout, task):
    folder = getattr(official_folders, layout)(tmp_path)
    plain = opened(folder, task)
    before = plain[0][1]
    label = sorted(before.classes.values())[0]
    dataset = opened(folder, task, ignore_labels=[plain.labels.names[label]])
    after = dataset[0][1]
    assert dataset.labels.names == plain.labels.names[:label] + plain.labels.names[label + 1 :]
    left = {i for i, own in before.classes.items() if own == label}
    assert left and set(before.classes) - set(after.classes) == left
    names = {i: dataset.labels.names[own] for i, own in after.classes.items()}
    assert names == {i: plain.labels.names[own] for i, own in before.classes.items() if i not in left}
    assert after.void(task)[torch.isin(after.map, torch.tensor(sorted(left)))].all()


def test_void_of_maps_and_of_crowds(tmp_path):
    map_ = np.full((40, 60), 255, np.uint8)
    map_[:10], map_[30:] = 0, 1
    for inputs in both_inputs(opened(make.semantic(tmp_path / "s", [map_]), "semantic"), "semantic"):
        void = inputs["void_mask"][0].bool()
        assert void[10:30, :60].all() and void.sum() == 20 * 60, "padding is background"
    rows = [[box(0, 0, 10, 5), box(20, 0, 10, 10, 1, iscrowd=1)]]
    for inputs in both_inputs(opened(objects(tmp_path / "o", rows)), "instance"):
        assert inputs["void_mask"].sum() == 100 * CROWD and inputs["void_mask"].max() == CROWD
        assert inputs["class_labels"][0].tolist() == [0]


def test_void_goes_before_crowds():
    map_ = torch.tensor([[[1, 1, 0, 0, 0]], [[2, 2, 2, 3, 0]]])
    fields = {"classes": {1: 0}, "crowds": {2: 0}, "ignored": frozenset({3})}
    assert Segments(map_, **fields).void("instance").tolist() == [[0, 0, CROWD, 1, 0]]
    assert Segments(map_, **{**fields, "ignored": None}).void("panoptic").tolist() == [[0, 0, CROWD, 1, 1]]
    map_[0, 0, 2] = 3
    assert Segments(map_, **fields).void("instance").tolist() == [[0, 0, 1, 1, 0]]


def test_where_all_is_labelled_nothing_is_said(tmp_path):
    for inputs in both_inputs(opened(objects(tmp_path / "d", [[box(0, 0, 10, 5)]])), "instance"):
        assert not {"void_mask", "annotated_classes", "complete"} & set(inputs)


def test_columns_and_flags_of_annotated_classes(tmp_path):
    rows = [[box(0, 0, 10, 5)], [box(0, 0, 10, 5, 1)], [box(1, 1, 4, 4)]]
    columns = {
        "annotated_classes": ([Value("string")], [["cat"], None, ["cat", "dog", "dontcare"]]),
        "complete": (Value("bool"), [None, False, True]),
    }
    folder = objects(tmp_path / "d", rows, **columns)
    for inputs in both_inputs(opened(folder), "instance"):
        assert inputs["annotated_classes"].tolist() == [[True, False, False], [True] * 3, [True] * 3]
        assert inputs["complete"].tolist() == [True, False, True]
    flags = {"annotated_classes": ["dog", "cat"], "incomplete": True, "ignore_labels": ["dontcare"]}
    for inputs in both_inputs(opened(folder, **flags), "instance"):
        assert inputs["annotated_classes"].tolist() == [[True, False], [True, True], [True, True]]
        assert inputs["complete"].tolist() == [False, False, True]
    lines = list(take_census(opened(folder), "instance").table())
    assert "incomplete 2 images may have unlabelled objects (of 2 to 3 classes)" in lines
    with pytest.raises(ValueError, match="annotated_classes has 'cow', which is not a class"):
        opened(folder, annotated_classes=["cow"])


def test_a_row_with_an_unknown_class_is_named(tmp_path):
    columns = {"annotated_classes": ([Value("string")], [["cow"]])}
    dataset = opened(objects(tmp_path / "d", [[box(0, 0, 10, 5)]], **columns))
    with pytest.raises(ValueError, match="Row 0: annotated_classes has 'cow', which is not a class"):
        dataset[0]


def lvis_content(folder):
    file = folder / "lvis_v1_train.json"
    return file, json.loads(file.read_text())


def test_lvis_is_complete_for_the_classes_that_were_checked(tmp_path):
    folder = official_folders.lvis(tmp_path)
    file, content = lvis_content(folder)
    content["categories"] += [{"id": i, "name": f"class {i}"} for i in (7, 8, 9)]
    first, *others = content["images"]
    first |= {"neg_category_ids": [7], "not_exhaustive_category_ids": []}
    for image in others:
        image |= {"neg_category_ids": [7, 8], "not_exhaustive_category_ids": [2]}
    file.write_text(json.dumps(content))
    dataset = opened(folder)
    names = dataset.labels.names
    for index in range(len(dataset)):
        _, segments = dataset[index]
        known = {name for name, done in zip(names, segments.annotated, strict=True) if done}
        assert known == ({"car", "class 7"} if index == 0 else {"class 7", "class 8"})


def test_prepared_files_say_the_same(tmp_path):
    folder = official_folders.lvis(tmp_path / "lvis")
    for split in ("train", "val"):
        file = folder / f"lvis_v1_{split}.json"
        content = json.loads(file.read_text())
        content["images"][0] |= {"annotated_classes": ["car"], "complete": False} if split == "train" else {}
        file.write_text(json.dumps(content))
    mpformer(["prepare", str(folder), str(tmp_path / "p"), "--task", "instance", "--workers", "1"])
    before, after = opened(folder), opened(tmp_path / "p")
    for index in range(len(before)):
        (_, ours), (_, theirs) = before[index], after[index]
        assert (ours.annotated, ours.complete) == (theirs.annotated, theirs.complete)
    assert after[0][1].annotated == (False, True) and not after[0][1].complete and after[1][1].annotated is None
    other = open_dataset(
        DataArguments(dataset_name=str(tmp_path / "p"), task="instance", incomplete=True), "validation"
    )
    assert not other[0][1].complete, "what a row does not state, the flag says"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"annotated_classes": ["cow"]}, "annotated_classes has 'cow', which is no category"),
        ({"annotated_classes": [99]}, "annotated_classes has 99, which is no category"),
        ({"annotated_classes": "car"}, "annotated_classes is 'car', expected a list of names or category ids"),
        ({"annotated_classes": [True]}, "expected a list of names or category ids"),
        ({"annotated_classes": [["car"]]}, "expected a list of names or category ids"),
        ({"complete": "no"}, "complete is 'no', expected true or false"),
        ({"neg_category_ids": 3}, "annotated_classes is given beside neg_category_ids"),
        ({"neg_category_ids": ["car"], "annotated_classes": None}, "image 397133"),
        ({"neg_category_ids": [99], "annotated_classes": None}, "has 99, which is no category"),
    ],
)
def test_fields_of_a_coco_json(tmp_path, fields, text):
    folder = official_folders.lvis(tmp_path)
    file, content = lvis_content(folder)
    content["images"][0] |= {"annotated_classes": [2], "complete": False}
    file.write_text(json.dumps(content))
    _, segments = opened(folder)[0]
    assert segments.annotated == (False, True) and not segments.complete
    content["images"][0] |= fields
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=text):
        opened(folder)


def test_audit_of_incomplete_labels(tmp_path):
    """An incomplete image has nothing missing; elsewhere it is not missing if its class was not annotated."""
    rows = [[box(0, 0, 10, 5), box(20, 0, 10, 10, 2)]]
    plain = opened(objects(tmp_path / "d", rows), ignore_labels=["dontcare"])[0][1]
    annotations, covered = annotations_of(plain, {0, 1})
    assert [(a.label_id, a.mask.sum()) for a in annotations] == [(0, 50)] and covered.sum() == 150
    plain.complete = False
    annotations, covered = annotations_of(plain, {0, 1})
    assert len(annotations) == 1 and covered.all()
    drawn = drawn_reference(plain, "instance", {0, 1})
    assert len(drawn["segments_info"]) == 1 and drawn["void"].sum() == 100


def test_values_of_other_kinds_are_refused(tmp_path):
    columns = {"complete": (Value("string"), ["false"])}
    dataset = opened(objects(tmp_path / "d", [[box(0, 0, 10, 5)]], **columns))
    with pytest.raises(ValueError, match="Row 0: complete is 'false', expected true or false"):
        dataset[0]
    for fields, text in (
        ({"ignore_labels": "dog"}, "ignore_labels must be a list"),
        ({"incomplete": "false"}, "incomplete must be true or false"),
    ):
        with pytest.raises(ValueError, match=text):
            opened(tmp_path / "d", **fields)
    for fields in ({"incomplete": True}, {"annotated_classes": ["cat"]}):
        with pytest.raises(ValueError, match="is for objects: in semantic maps, unknown pixels are void"):
            opened(tmp_path / "d", "semantic", **fields)


def test_ids_of_several_files_and_names_of_the_user(tmp_path):
    """Ids in a file mean the categories of that file; they hold whatever the classes are called."""
    folder = tmp_path / "coco"
    for number, names in enumerate((["zebra", "ant"], ["zebra", "moth"])):
        official_folders.save_photo(folder / "train" / f"{number}.jpg")
        content = {
            "images": [{"id": 1, "file_name": f"{number}.jpg", "annotated_classes": [0]}],
            "annotations": [
                {"id": 1, "image_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0, **box(0, 0, 9, 9, 1)}
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        }
        official_folders.write_json(content, folder / "annotations" / f"part{number}_train.json")
    dataset = opened(folder)
    assert dataset.labels.names == ["ant", "moth", "zebra"]
    assert [dataset[i][1].annotated for i in (0, 1)] == [(False, False, True)] * 2
    lvis = official_folders.lvis(tmp_path / "lvis")
    file, content = lvis_content(lvis)
    ids = [row["id"] for row in content["categories"]]
    for image in content["images"]:
        image["annotated_classes"] = [2]
    file.write_text(json.dumps(content))
    renamed = opened(lvis, id2label=json.dumps({i: f"Klasse {i}" for i in ids}))
    assert renamed[0][1].annotated == (False, True) and "Klasse 2" in renamed.labels.names


def test_background_is_void_where_objects_may_be_missing(tmp_path):
    folder = official_folders.lvis(tmp_path)
    file, content = lvis_content(folder)
    content["images"][0]["complete"] = False
    file.write_text(json.dumps(content))
    dataset = opened(folder, "semantic")
    shares = [dataset[i][1].void("semantic").float().mean() for i in (0, 1)]
    assert shares[0] > 0.3 and shares[1] == 0


def test_ignoring_may_not_leave_one_semantic_class(tmp_path):
    map_ = np.zeros((40, 60), np.uint8)
    map_[:10] = 1
    folder = make.semantic(tmp_path / "s", [map_])
    names = opened(folder, "semantic").labels.names
    with pytest.raises(ValueError, match="ignore_labels leaves one class"):
        opened(folder, "semantic", ignore_labels=names[1:])


def test_pictures_mark_nothing_as_false_that_may_be_right():
    mask = np.zeros((2, 40, 40), dtype=bool)
    mask[0, :10, :10] = mask[1, 20:30, :10] = True
    rows = [{"id": i, "label_id": 0, "score": 0.9} for i in (0, 1)]
    result = {"segmentation": torch.from_numpy(mask), "segments_info": rows}
    for complete, marks in ((True, [None, "false"]), (False, [None, None])):
        segments = Segments(torch.from_numpy(mask[0]).int(), {1: 0}, complete=complete)
        _, found = mark_errors(drawn_reference(segments, "instance", {0}), result, {0: "a"})
        assert [row.get("mark") for row in found["segments_info"]] == marks
