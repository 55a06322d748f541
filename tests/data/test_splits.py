"""Tests of `splits`."""

import json

import numpy as np
import pytest
import yaml
from datasets import Image as ImageColumn
from datasets import Value

from mpformer_hf.cli import evaluate
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.census import take_census
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.data.splits import check_splits, warn_of_common_images
from mpformer_hf.training import finetune
from tests import datasets_on_disk as make
from tests import official_folders
from tests.runs import flags


def single_json(folder, images=10):
    """A COCO folder with one JSON for all images, as annotation tools export it."""
    make.coco_instances(folder)
    names = [f"{index}.png" for index in range(images)]
    for name in names:
        make.photo().save(folder / "train2017" / name)
    square = [[1, 1, 20, 1, 20, 20, 1, 20]]
    content = {
        "images": [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(names)],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": i, "category_id": 3, "segmentation": square} for i in range(images)],
    }
    for file in (folder / "annotations").iterdir():
        file.unlink()
    (folder / "annotations" / "annotations.json").write_text(json.dumps(content))
    return folder


def test_one_json_is_not_used_for_training_and_evaluation(tmp_path):
    folder = single_json(tmp_path / "coco")
    argv = flags(folder, tmp_path / "out", task="instance")
    with pytest.raises(ValueError, match=r"annotations\.json is of no split, .* give --validation_share 0\.1"):
        finetune.main(argv)
    results = finetune.main([*argv, "--validation_share", "0.2", "--max_train_steps", "1"])
    assert results["last"]["images"] == 2
    assert "`validation` split (0.2 of `train`)" in (tmp_path / "out" / "README.md").read_text()


def test_the_validation_share_is_drawn_by_a_fixed_seed(tmp_path):
    args = {"dataset_name": str(single_json(tmp_path / "coco")), "task": "instance", "validation_share": 0.3}
    data = DataArguments(**args)

    def files(split):
        return [row["image"]["path"] for row in open_dataset(data, split).rows]

    train, validation = files("train"), files("validation")
    assert len(train) == 7 and len(validation) == 3 and not set(train) & set(validation)
    assert files("validation") == validation and len(open_dataset(data, "test").rows) == 10
    with pytest.raises(ValueError, match="leaves 0 to evaluate on"):
        open_dataset(DataArguments(**{**args, "validation_share": 0.01}), "train")
    with pytest.raises(ValueError, match="eval_split must have another name"):
        DataArguments(**args, eval_split="train")
    with pytest.raises(ValueError, match="validation_share needs the whole dataset: leave out streaming"):
        DataArguments(**args, streaming=True)


def test_a_training_image_in_the_evaluation_split_is_noticed(tmp_path, caplog):
    folder = official_folders.yolo(tmp_path / "yolo")
    content = yaml.safe_load((folder / "data.yaml").read_text())
    (folder / "data.yaml").write_text(yaml.safe_dump({**content, "train": ["train/images", "valid/images"]}))
    data = DataArguments(dataset_name=str(folder), task="instance")
    check_splits(data)
    warn_of_common_images(open_dataset(data, "train"), open_dataset(data, "validation"))
    assert "3 of 3 evaluation images are also training images" in caplog.text


def test_masks_of_0_and_255_are_refused_by_every_command(tmp_path):
    folder = official_folders.mask_images(tmp_path / "d")
    for file in (folder / "masks").rglob("*.png"):
        official_folders.save(255 * official_folders.scene(0, 0, (1, 1)), file)
    (folder / "id2label.json").write_text('{"0": "background", "1": "object"}')
    argv = [
        "--dataset_name",
        str(folder),
        "--task",
        "semantic",
        "--eval_split",
        "val",
        "--model",
        "most_frequent_class",
    ]
    with pytest.raises(ValueError, match="divide masks of 0 and 255 by 255"):
        evaluate.main(argv)
    with pytest.raises(SystemExit, match="divide masks of 0 and 255 by 255"):
        mpformer(["prepare", str(folder), str(tmp_path / "out"), "--task", "semantic"])


def test_masks_of_0_and_255_are_refused_with_the_reason(tmp_path):
    map_ = np.zeros((40, 60), dtype=np.uint8)
    map_[10:30] = 255
    folder = make.semantic(tmp_path / "d", [map_, map_], names=("background", "foreground"))
    argv = flags(folder, tmp_path / "out", task="semantic", eval_split="train")
    with pytest.raises(ValueError, match="All 2 images have only 'background' and void; 255 is void"):
        finetune.main(argv)


def test_a_split_without_objects_and_flags_without_effect_are_refused(tmp_path):
    names = {"id2label.json": {"0": "a"}}
    rows = [{"image": make.photo(), "objects": "[]"}]
    folder = str(make.write(tmp_path / "d", rows, {"image": ImageColumn(), "objects": Value("string")}, names))
    with pytest.raises(ValueError, match="has no image with an object"):
        open_dataset(DataArguments(dataset_name=folder, task="instance"), "train", drop_empty=True)
    with pytest.raises(ValueError, match="do_reduce_labels is for label maps"):
        open_dataset(DataArguments(dataset_name=folder, task="instance", do_reduce_labels=True), "train")
    folder = str(make.semantic(tmp_path / "s", [np.zeros((40, 60), dtype=np.uint8)]))
    with pytest.raises(ValueError, match="void_label 1 is the id of a class"):
        open_dataset(DataArguments(dataset_name=folder, task="semantic", void_label=1), "train")


def test_images_without_the_second_class_come_first(tmp_path):
    """As in folders that are sorted by class; void is the border."""
    first, second = np.zeros((40, 60), dtype=np.uint8), np.ones((40, 60), dtype=np.uint8)
    first[:2] = second[:2] = 255
    folder = make.semantic(tmp_path / "sorted", [*[first] * 25, second], names=("cat", "dog"))
    take_census(open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "train"), "semantic")
    empty = np.full((40, 60), 255, dtype=np.uint8)
    folder = make.semantic(tmp_path / "empty", [*[empty] * 25, second], names=("cat", "dog"))
    take_census(open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "train"), "semantic")
    folder = make.semantic(tmp_path / "void", [empty] * 25, names=("cat", "dog"))
    with pytest.raises(ValueError, match="All 25 images have no class; 255 is void"):
        take_census(open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "train"), "semantic")


def test_one_class_is_no_task_for_semantic_segmentation(tmp_path):
    folder = str(make.semantic(tmp_path, [np.array([[0, 1], [1, 1]], dtype=np.uint8)], names=("object",)))
    with pytest.raises(ValueError, match=r"one class, 'object', so every pixel .*leave out --do_reduce_labels"):
        open_dataset(DataArguments(dataset_name=folder, task="semantic", do_reduce_labels=True), "train")


def test_no_class_of_things_is_refused(tmp_path):
    ids, segments = np.ones((40, 60), dtype=np.int32), [{"id": 1, "category_id": 0, "isthing": 0, "iscrowd": 0}]
    folder = str(make.panoptic(tmp_path, ids, segments, names=("road",)))
    with pytest.raises(ValueError, match="has no class of things, which the task instance needs"):
        open_dataset(DataArguments(dataset_name=folder, task="instance"), "train")


def test_a_void_label_without_effect_is_refused(tmp_path):
    folder = str(official_folders.mask_images(tmp_path / "masks"))
    with pytest.raises(ValueError, match="cannot be read with void_label: leave it out"):
        open_dataset(DataArguments(dataset_name=folder, task="semantic", void_label=4), "train")
    folder = str(make.overlapping_objects(tmp_path / "objects"))
    with pytest.raises(ValueError, match="void_label is for semantic label maps"):
        open_dataset(DataArguments(dataset_name=folder, task="instance", void_label=4), "train")
