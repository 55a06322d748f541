"""Tests of `layouts/coco.py`."""

import json

import numpy as np
import pytest
from PIL import Image

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.model.images import ORIENTATION
from mpformer_hf.training import finetune
from tests import datasets_on_disk as make
from tests import official_folders
from tests.datasets_on_disk import opened
from tests.runs import flags


def coco_folder(folder, **changes):
    """The folder of `make.coco_instances` with changes to the content of its train file."""
    make.coco_instances(folder)
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for key, change in changes.items():
        change(content[key])
    file.write_text(json.dumps(content))
    return DataArguments(dataset_name=str(folder), task="instance")


def set_first(**values):
    return lambda rows: rows[0].update(values)


def drop_first(key):
    return lambda rows: rows[0].pop(key)


def repeat_first(rows):
    rows.append(dict(rows[0]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"annotations": drop_first("category_id")}, r"annotations\[0\] has category_id None"),
        ({"annotations": set_first(category_id=99)}, r"annotations\[0\] has category_id 99"),
        ({"annotations": set_first(category_id=18.7)}, r"annotations\[0\] has category_id 18.7"),
        ({"annotations": set_first(iscrowd="0")}, r"annotations\[0\] has iscrowd '0', expected 0 or 1"),
        ({"annotations": set_first(image_id=8)}, r"annotations\[0\] has image_id 8, which is not in images"),
        ({"annotations": drop_first("segmentation")}, r"annotations\[0\] has no segmentation"),
        ({"categories": set_first(id=18)}, "categories have the id 18 2 times"),
        ({"categories": set_first(name="dog")}, "categories have the name 'dog' 2 times"),
        ({"categories": set_first(isthing=None)}, r"categories\[0\] has isthing None"),
        ({"images": repeat_first}, "images have the id 7 2 times"),
        ({"images": drop_first("file_name")}, r"images\[0\] has no file_name"),
        ({"images": set_first(height=-1)}, r"images\[0\] has height -1"),
    ],
)
def test_invalid_coco_files_are_refused_before_training(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_dataset(coco_folder(tmp_path / "coco", **changes), "train")


def test_all_problems_of_a_coco_file_are_counted_and_ten_are_named(tmp_path):
    def break_all(rows):
        rows[:] = [{**rows[0], "category_id": -index} for index in range(25)]

    with pytest.raises(ValueError, match=r"has 25 problems: .*; and 15 more") as error:
        open_dataset(coco_folder(tmp_path / "coco", annotations=break_all), "train")
    assert str(error.value).count("category_id") == 10


@pytest.mark.parametrize(
    "text, message", [("{", "cannot be read as JSON"), ("[]", "not a mapping"), ("{}", "no list of")]
)
def test_files_that_are_not_coco_are_refused(text, message, tmp_path):
    data = coco_folder(tmp_path / "coco")
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset(data, "train")


def test_sizes_in_coco_files_are_compared_with_the_images(tmp_path):
    data = coco_folder(tmp_path / "coco", images=set_first(height=80, width=120))
    with pytest.raises(ValueError, match=r"Row 0 \(train\.jpg\): the image is 40x60, but 80x120 in the annotations"):
        open_dataset(data, "train")[0]


@pytest.mark.parametrize("segment", [{"id": 0}, {"id": 5}, {"category_id": 7}, {"iscrowd": "0"}])
def test_invalid_segments_of_panoptic_files_are_refused(segment, tmp_path):
    folder = make.coco_panoptic(tmp_path / "coco")
    content = json.loads((folder / "panoptic.json").read_text())
    content["annotations"][0]["segments_info"][0].update(segment)
    (folder / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"panoptic\.json has 1 problem: annotations"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")


def test_categories_that_contradict_the_names_are_refused(tmp_path):
    ids, segments = np.ones((40, 60), dtype=np.int32), [{"id": 1, "category_id": 0, "isthing": 0, "iscrowd": 0}]
    categories = [{"id": 0, "name": "road", "isthing": 0}, {"id": 1, "name": "car", "isthing": 1}]
    folder = make.panoptic(tmp_path / "data", ids, segments, categories=categories)
    (folder / "id2label.json").write_text(json.dumps({"0": "car", "1": "road"}))
    with pytest.raises(ValueError, match=r"two names for class 0: 'car' in id2label\.json and 'road'"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")
    categories[1]["isthing"] = None
    (folder / "panoptic_categories.json").write_text(json.dumps(categories))
    with pytest.raises(ValueError, match="isthing None"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")


def test_a_linked_folder_of_images_is_found(tmp_path):
    folder = make.coco_panoptic(tmp_path / "coco")
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    (folder / "images" / "above").symlink_to(folder)  # a cycle
    data = DataArguments(dataset_name=str(folder), task="panoptic", allow_outside_files=True)
    assert open_dataset(data, "train")[0][0].shape == (3, 40, 60)


def test_archives_beside_the_folders_are_ignored(tmp_path):
    data = coco_folder(tmp_path / "coco")
    (tmp_path / "coco" / "train2017.zip").write_bytes(b"PK")
    assert len(open_dataset(data, "train")) == 1


def test_coco_folders_cannot_be_streamed(tmp_path):
    data = coco_folder(tmp_path / "coco")
    data.streaming = True
    with pytest.raises(ValueError, match=r"is COCO .*, which cannot be read with streaming: leave it out"):
        open_dataset(data, "train")


def test_the_parents_of_roboflow(tmp_path):
    folder = official_folders.roboflow(tmp_path)
    for split in ("train", "valid"):
        file = folder / split / "_annotations.coco.json"
        content = json.loads(file.read_text())
        content["categories"] = [
            {"id": 0, "name": "car", "supercategory": "none"},
            {"id": 3, "name": "car", "supercategory": "car"},
            {"id": 5, "name": "van", "supercategory": "van"},
        ]
        for row in content["annotations"]:
            row["category_id"] = 3
        file.write_text(json.dumps(content))
    for split in ("train", "validation"):
        labels = opened(folder, "instance", split).labels
        assert labels.names == ["car", "van"] and labels.category_ids == [3, 5]


@pytest.mark.parametrize(
    ("json_name", "images", "name"),
    [
        ("instances_val2017.json", "valid", "{}"),
        ("instances_Validation.json", "images/val", "{}"),
        ("instances_val.json", "val", "C:\\data\\val2017\\{}"),
        ("instances_val.json", "val/images", "images/{}"),
    ],
)
def test_words_and_paths_of_coco(json_name, images, name, tmp_path):
    content = official_folders.coco_content()
    for row in content["images"]:
        file = row["file_name"]
        official_folders.save_photo(tmp_path / images / file)
        official_folders.save_photo(tmp_path / images.replace("val", "train").replace("idation", "") / file)
        official_folders.save_photo(tmp_path / "masks" / file)
        row["file_name"] = name.format(file)
    official_folders.write_json(content, tmp_path / "annotations" / json_name)
    dataset = opened(tmp_path, "instance", "validation")
    folder = "valid" if images == "valid" else "val"
    assert all(f"/{folder}" in row["path"] for row in dataset.rows["image"])


def test_boxes_in_coco_files_are_refused_before_training(tmp_path):
    folder = official_folders.coco_instances(tmp_path)
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = []
    file.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    message = r"1 of 2 images are invalid: .*train2017\.json: annotations\[0\] has an empty segmentation.*--skip_bad_im"
    with pytest.raises(ValueError, match=message):
        opened(folder, "instance")


@pytest.mark.parametrize("change", [{"segmentation": [[1, 2]]}, {"category_id": 99}, {"iscrowd": 2}, {"area": -5}])
def test_an_image_with_an_invalid_object_can_be_left_out(tmp_path, change):
    folder = official_folders.coco_instances(tmp_path)
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    bad = content["annotations"][0]["image_id"]
    content["annotations"][0] |= change
    file.write_text(json.dumps(content))
    data = DataArguments(dataset_name=str(folder), task="instance", skip_bad_images=True)
    dataset = open_dataset(data, "train")
    assert bad not in dataset.rows["image_id"] and len(dataset) == len(content["images"]) - 1
    (error,) = dataset.skipped
    assert "annotations[0]" in error and {row["id"]: row for row in content["images"]}[bad]["file_name"] in error


def test_other_categories_in_the_evaluation_split_are_refused(tmp_path):
    folder = make.coco_instances(tmp_path / "coco")
    file = folder / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"], content["categories"][1]["name"] = "dog", "cat"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"The categories of split 'val' of .* are not those of 'train'"):
        finetune.main(flags(folder, tmp_path / "out", task="instance", eval_split="val"))


def test_an_image_of_another_split_is_not_taken_for_a_missing_one(tmp_path):
    data = coco_folder(tmp_path / "coco")
    (tmp_path / "coco" / "train2017" / "train.jpg").rename(tmp_path / "coco" / "val2017" / "train.jpg")
    with pytest.raises(ValueError, match=r"1 of 1 images or labels do not exist: .*train\.jpg; --skip_bad_images"):
        open_dataset(data, "train")


def test_a_label_map_is_not_taken_for_a_missing_photograph(tmp_path):
    folder = make.coco_panoptic(tmp_path / "coco")
    (folder / "images" / "one.jpg").unlink()
    content = json.loads((folder / "panoptic.json").read_text())
    content["images"][0]["file_name"] = "one.png"
    (folder / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"1 of 1 images or labels do not exist: .*one\.png"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")


@pytest.mark.parametrize("name", ["train2017\\train.jpg", "./train.jpg", "../train2017/train.jpg"])
def test_paths_of_other_systems_are_understood(name, tmp_path):
    assert len(open_dataset(coco_folder(tmp_path / "coco", images=set_first(file_name=name)), "train")) == 1


def test_tables_beside_a_coco_folder_and_words_in_names(tmp_path):
    data = coco_folder(tmp_path / "coco")
    (tmp_path / "coco" / "log.jsonl").write_text("{}")
    (tmp_path / "coco" / "stats.csv").write_text("a")
    assert len(open_dataset(data, "train")) == 1
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").rename(
        tmp_path / "coco" / "annotations" / "instances_trainval.json"
    )
    with pytest.raises(ValueError, match="for split 'tset'; it has annotations/captions"):
        open_dataset(data, "tset")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": lambda rows: rows.append({**rows[0], "id": 9})}, "images have the file_name 'train.jpg' 2 times"),
        ({"annotations": set_first(segmentation=[[1, 1, 5]])}, r"annotations\[0\] has a polygon of 3 coordinates"),
        (
            {"annotations": lambda rows: rows.append({"image_id": 7, "segments_info": []})},
            "no segments_info, but other",
        ),
        ({"images": lambda rows: rows.clear(), "annotations": lambda rows: rows.clear()}, "has no images"),
    ],
)
def test_more_problems_of_coco_files(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_dataset(coco_folder(tmp_path / "coco", **changes), "train")


def test_phone_photographs_have_their_masks_where_they_are_shown(tmp_path):
    data = coco_folder(tmp_path / "coco", images=set_first(height=60, width=40))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    make.photo().save(tmp_path / "coco" / "train2017" / "train.jpg", exif=exif)
    image, segments = open_dataset(data, "train")[0]
    assert image.shape == (3, 60, 40) and segments.map.shape == (60, 40)


def test_crowds_are_counted_and_a_file_of_crowds_is_refused(tmp_path, caplog):
    """CVAT writes masks of its brush with iscrowd 1."""

    def crowds(share):
        def change(rows):
            rows.append(dict(rows[0]))
            for index, row in enumerate(rows):
                row["iscrowd"] = int(index < share * len(rows))

        return change

    with pytest.raises(ValueError, match=r"(\d+) of \1 objects are crowds .* CVAT writes masks of its brush so"):
        open_dataset(coco_folder(tmp_path / "all", annotations=crowds(1)), "train")
    open_dataset(coco_folder(tmp_path / "half", annotations=crowds(0.5)), "train")
    assert "objects are crowds (iscrowd 1), which are not trained on" in caplog.text
    with pytest.raises(ValueError, match=r"train2017\.json has no annotations"):
        open_dataset(coco_folder(tmp_path / "none", annotations=lambda rows: rows.clear()), "train")
    caplog.clear()
    open_dataset(coco_folder(tmp_path / "plain"), "train")
    assert "crowds" not in caplog.text


def test_coordinates_that_are_not_pixels_of_the_image(tmp_path):
    def scaled(factor):
        def change(rows):
            for row in rows:
                row["segmentation"] = [[factor * value for value in polygon] for polygon in row["segmentation"]]

        return change

    with pytest.raises(ValueError, match="has coordinates between 0 and 1, expected pixels"):
        open_dataset(coco_folder(tmp_path / "relative", annotations=scaled(0.01)), "train")
    for name, factor, cut in (("plain", 1, False), ("large", 4, True)):
        split = open_dataset(coco_folder(tmp_path / name, annotations=scaled(factor)), "train")
        assert any(split[row][1].cut for row in range(len(split))) == cut


def test_coordinates_that_are_not_numbers(tmp_path):
    arguments = coco_folder(tmp_path, annotations=set_first(segmentation=[["1", 1, 20, 1, 20, 20]]))
    with pytest.raises(ValueError, match=r"annotations\[0\] has a polygon of other values than numbers"):
        open_dataset(arguments, "train")
