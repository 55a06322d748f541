"""Datasets as distributed: every layout gives the same scene, and what does not fit is named."""

import json
import shutil

import numpy as np
import pytest
import torch

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.layouts.registry import find_layout
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.training import finetune
from tests import official_folders
from tests.datasets_on_disk import opened
from tests.runs import flags

CARS = [np.zeros((official_folders.HEIGHT, official_folders.WIDTH), bool) for _ in official_folders.CARS]


for mask, where in zip(CARS, official_folders.CARS, strict=True):
    mask[where] = True


# layout, task, split, names of the classes of the first image, ids of these in the dataset, id of the first image
CASES = {
    "cityscapes semantic": (official_folders.cityscapes, "semantic", {"sky": 23, "road": 7, "car": 26, "person": 24}),
    "cityscapes instance": (official_folders.cityscapes, "instance", {"car": 26}),
    "cityscapes panoptic": (official_folders.cityscapes, "panoptic", {"sky": 23, "road": 7, "car": 26}),
    "ade20k semantic": (official_folders.ade20k, "semantic", {"sky": 3, "road": 7, "car": 21}),
    "ade20k instance": (official_folders.ade20k, "instance", {"car": 20}),
    "ade20k panoptic": (official_folders.ade20k, "panoptic", {"sky": 2, "road": 6, "car": 20}),
    "ade20k prepared": (official_folders.ade20k_prepared, "panoptic", {"sky": 2, "road": 6, "car": 20}),
    "mapillary semantic": (official_folders.mapillary, "semantic", {"Sky": 0, "Road": 1, "Car": 2}),
    "mapillary instance": (official_folders.mapillary, "instance", {"Car": 2}),
    "mapillary panoptic": (official_folders.mapillary, "panoptic", {"Sky": 1, "Road": 2, "Car": 3}),
    "voc semantic": (official_folders.pascal_voc, "semantic", {"background": 0, "car": 7}),
    "voc instance": (official_folders.pascal_voc, "instance", {"car": 7}),
    "coco-stuff": (official_folders.coco_stuff, "semantic", {"sky-other": 156, "road": 148, "car": 2}),
    "yolo": (official_folders.yolo, "instance", {"car": 1}),
    "coco instance": (official_folders.coco_instances, "instance", {"car": 3}),
    "coco panoptic": (official_folders.coco_panoptic, "panoptic", {"sky": 187, "road": 149, "car": 3}),
    "lvis": (official_folders.lvis, "instance", {"car": 2}),
    "roboflow": (official_folders.roboflow, "instance", {"car": 3}),
    "cvat": (official_folders.cvat, "instance", {"car": 3}),
    "labelme instance": (official_folders.labelme, "instance", {"car": 0, "sky": 1}),
    "labelme semantic": (official_folders.labelme_without_background, "semantic", {"car": 0, "sky": 1}),
    "label images": (official_folders.mask_images, "semantic", {"sky": 0, "road": 1, "car": 2}),
    "instance files": (official_folders.instance_files, "instance", {"object": 0}),
    "nuinsseg panoptic": (official_folders.nuinsseg, "panoptic", {"nucleus": 0, "tissue": 1}),
    "nuinsseg instance": (official_folders.nuinsseg, "instance", {"nucleus": 0}),
}


ONE_SPLIT = ("cvat", "labelme", "instance files", "nuinsseg")


def arguments(folder, task, **fields):
    return DataArguments(dataset_name=str(folder), task=task, **fields)


@pytest.mark.parametrize("name", CASES)
def test_every_layout_gives_the_same_scene(name, tmp_path):
    build, task, categories = CASES[name]
    for split in ("train", "validation"):
        dataset = opened(build(tmp_path / split), task, split)
        assert len(dataset) == 3 if name == "yolo" else len(dataset) == 2
        for index in range(2):
            image, segments = dataset[index]
            assert image.shape == (3, official_folders.HEIGHT, official_folders.WIDTH)
            layers = segments.map.view(-1, official_folders.HEIGHT, official_folders.WIDTH)
            ids = dataset.labels.category_ids
            things = [name for name in categories if name in ("car", "Car", "object", "nucleus")]
            found = {}
            for segment, label in segments.classes.items():
                found.setdefault(dataset.labels.names[label], []).append((layers == segment).any(0).numpy())
                assert ids[label] == categories.get(dataset.labels.names[label], 1)  # 1: the row without pixels
            assert {name for name in found if any(mask.any() for mask in found[name])} == set(categories)
            cars = sorted((mask for thing in things for mask in found[thing]), key=lambda mask: mask.sum())
            expected = CARS if task != "semantic" else [CARS[0] | CARS[1]]
            for mask, car in zip(cars, expected, strict=True):
                free = np.ones_like(car)
                free[:, -2:] = False  # void in some layouts
                free[44:] = False
                assert (mask == car)[free].all()


@pytest.mark.parametrize("version", ["v1.2", "v2.0"])
def test_versions_of_mapillary(version, tmp_path):
    folder = official_folders.mapillary(tmp_path, version)
    for task in ("semantic", "instance", "panoptic"):
        assert len(open_dataset(arguments(folder, task, dataset_config_name=version), "train")) == 2
    with pytest.raises(ValueError, match="cannot be read with dataset_config_name"):
        open_dataset(arguments(folder, "semantic", dataset_config_name="v3"), "train")


def test_void_crowds_and_areas(tmp_path):
    dataset = open_dataset(arguments(official_folders.cityscapes(tmp_path / "c"), "instance"), "val")
    segments = dataset[0][1]
    assert {dataset.labels.names[label] for label in segments.crowds.values()} == {"person"}  # the group
    assert segments.ignored >= {0, 1, 29} and not segments.ignored & {7, 23, 24, 29000}
    semantic = open_dataset(arguments(tmp_path / "c", "semantic"), "val")[0][1]
    assert 29 not in semantic.classes and 1 not in semantic.classes
    coco = open_dataset(arguments(official_folders.coco_instances(tmp_path / "coco"), "instance"), "val")[0][1]
    assert sorted(coco.areas.values()) == [100.0, 572.0, 1500.5] and len(coco.crowds) == 1
    other = open_dataset(arguments(official_folders.nuinsseg(tmp_path / "n"), "panoptic"), "train")[0][1]
    assert (other.map[:20, :10] == 0).all() and (other.map[20:22, 4:10] == 1).all()  # vague, but for the nucleus


def test_ids_and_names_of_images(tmp_path):
    cases = {
        official_folders.coco_instances: ("instance", (397133, "000000397133.jpg", "000000397133")),
        official_folders.cityscapes: (
            "semantic",
            ("berlin_000000_000019", "berlin_000000_000019_leftImg8bit.png", "berlin_000000_000019_leftImg8bit"),
        ),
        official_folders.ade20k: ("panoptic", ("ADE_val_00000001", "ADE_val_00000001.jpg", "ADE_val_00000001")),
        official_folders.coco_stuff: ("semantic", (9, "000000000009.jpg", "000000000009")),
    }
    for build, (task, identity) in cases.items():
        assert open_dataset(arguments(build(tmp_path / build.__name__), task), "val").identity(0) == identity


def test_layouts_without_splits_are_not_used_for_training_and_evaluation(tmp_path):
    for name in ONE_SPLIT:
        build, task, _ = next(case for key, case in CASES.items() if key.startswith(name))
        with pytest.raises(ValueError, match=r"is of no split, .* give --validation_share"):
            finetune.main(flags(build(tmp_path / name.replace(" ", "_")), tmp_path / "out", task=task))


def broken_cityscapes(folder):
    official_folders.cityscapes(folder)
    next((folder / "gtFine" / "val" / "berlin").glob("*000000*labelIds.png")).unlink()


def cityscapes_without_an_image(folder):
    official_folders.cityscapes(folder)
    next((folder / "leftImg8bit" / "val" / "berlin").glob("*000000*")).unlink()


def ade_without_instances(folder):
    official_folders.ade20k(folder)
    shutil.rmtree(folder / "annotations_instance")


def yolo_of(line):
    def build(folder):
        official_folders.yolo(folder)
        (folder / "valid" / "labels" / "a.txt").write_text(line)

    return build


def yolo_without_labels(folder):
    official_folders.yolo(folder)
    shutil.rmtree(folder / "valid" / "labels")


def voc_without_a_map(folder):
    official_folders.pascal_voc(folder)
    next((folder / "SegmentationObject").glob("*0_val.png")).unlink()


def labelme_without_image(folder):
    official_folders.labelme(folder)
    (folder / "a.jpg").unlink()


def coco_stuff_without_images(folder):
    official_folders.coco_stuff(folder)
    shutil.rmtree(folder / "val2017")


def one_of_two_folders(folder):
    official_folders.cityscapes(folder)
    shutil.rmtree(folder / "gtFine")


@pytest.mark.parametrize(
    ("build", "task", "split", "message"),
    [
        (broken_cityscapes, "semantic", "val", r"000000_000019_leftImg8bit\.png has no label .*_gtFine_labelIds\.png"),
        (cityscapes_without_an_image, "instance", "val", "has no image in .*leftImg8bit/val; there are 1 of these"),
        (official_folders.cityscapes, "semantic", "test", "must have one folder for split 'test', it has train, val"),
        (ade_without_instances, "panoptic", "val", "has no annotations_instance/validation/, the second download"),
        (yolo_of("0 0.5 0.5 0.2 0.2"), "instance", "val", r"line 1 of .*a\.txt is a box, expected a polygon"),
        (yolo_of("0 0.5 0.5 0.2 0.2 3 3"), "instance", "val", "has coordinates outside of 0 to 1"),
        (yolo_of("7 0.5 0.5 0.2 0.2 0 0"), "instance", "val", r"has class 7, which is not in data\.yaml"),
        (yolo_of("0 0.5 x"), "instance", "val", r"line 1 of .*a\.txt is not numbers"),
        (yolo_without_labels, "instance", "val", "has 3 images, but none has labels such as"),
        (official_folders.yolo, "instance", "test", r"data\.yaml has no split 'test', it has train, val"),
        (
            official_folders.yolo,
            "semantic",
            "val",
            "is YOLO segmentation .*, which is for task instance, not for task semantic",
        ),
        (voc_without_a_map, "instance", "val", "names 2007_000000_val, but .*SegmentationObject.* is missing"),
        (labelme_without_image, "instance", "train", r"a\.json refers to 'a\.jpg', which does not exist"),
        (coco_stuff_without_images, "semantic", "val", "has no images val2017/"),
        (one_of_two_folders, "semantic", "val", "The nearest is Cityscapes .*, for which gtFine/ is missing"),
        (lambda folder: folder.mkdir(), "semantic", "val", "fits no layout of Cityscapes .*, ADE20K .*, YOLO"),
    ],
)
def test_bad_layouts_are_one_sentence(build, task, split, message, tmp_path):
    build(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        dataset = open_dataset(arguments(tmp_path / "data", task), split)
        [dataset[index] for index in range(len(dataset))]


def test_the_layout_is_logged_and_chosen_for_the_task(tmp_path, caplog):
    folder = official_folders.coco_stuff(official_folders.coco_panoptic(tmp_path / "d"))
    with caplog.at_level("INFO"):
        open_dataset(arguments(folder, "semantic"), "val")
        assert "COCO-Stuff" in caplog.text
        open_dataset(arguments(folder, "panoptic"), "val")
        assert "segments_info, panoptic_val2017.json" in caplog.text
    assert find_layout("facebook/some-dataset", "semantic") is None


def test_the_prepared_panoptic_json_of_ade20k_equals_the_maps(tmp_path):
    raw = open_dataset(arguments(official_folders.ade20k(tmp_path / "raw"), "panoptic"), "val")
    prepared = open_dataset(arguments(official_folders.ade20k_prepared(tmp_path / "prepared"), "panoptic"), "val")
    for index in range(2):
        one, other = raw[index][1], prepared[index][1]
        names = [dataset.labels.names for dataset in (raw, prepared)]
        classes = [
            torch.tensor([s.classes.get(int(i), -1) for i in s.map.flatten()]).view(s.map.shape) for s in (one, other)
        ]
        assert torch.equal(*classes) and len(one.classes) == len(other.classes)
        assert names[0][20] == names[1][20] == "car"


def test_images_without_an_object_are_found_in_any_layout(tmp_path):
    folder = official_folders.yolo(tmp_path)
    data = arguments(folder, "instance")
    assert len(open_dataset(data, "train")) == 3 and len(open_dataset(data, "train", drop_empty=True)) == 2


def test_a_parent_category_of_roboflow_is_left_out_and_others_are_not(tmp_path):
    folder = official_folders.roboflow(tmp_path)
    assert open_dataset(arguments(folder, "instance"), "train").labels.names == ["person", "car"]
    file = folder / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    assert open_dataset(arguments(folder, "instance"), "train").labels.names == ["vehicles", "person", "car"]


@pytest.mark.parametrize(
    "images, masks", [("img_dir", "ann_dir"), ("imgs", "masks"), ("images", "labels"), ("Images", "Masks")]
)
@pytest.mark.parametrize("splits_above", [False, True])
def test_other_names_of_the_folders_of_label_images(images, masks, splits_above, tmp_path):
    expected = open_dataset(
        DataArguments(dataset_name=str(official_folders.mask_images(tmp_path / "a")), task="semantic"), "val"
    )
    folder = official_folders.mask_images(tmp_path / "b")
    (folder / "images").rename(folder / images)
    (folder / "masks").rename(folder / masks)
    if splits_above:
        for kind in (images, masks):
            for part in list((folder / kind).iterdir()):
                (folder / part.name).mkdir(exist_ok=True)
                part.rename(folder / part.name / kind)
            (folder / kind).rmdir()
    found = open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "val")
    assert len(found) == len(expected) > 0
    assert all(torch.equal(found[i][1].map, expected[i][1].map) for i in range(len(found)))


@pytest.mark.parametrize("beside, ending", [("_labels", "_L"), ("annot", ""), ("_Masks", "_mask")])
def test_folders_of_label_images_beside_those_of_splits(beside, ending, tmp_path):
    folder = official_folders.mask_images(tmp_path / "a")
    expected = open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "val")
    other = tmp_path / "b"
    for kind, end in (("images", ""), ("masks", beside)):
        for part in (folder / kind).iterdir():
            shutil.copytree(part, other / f"{part.name}{end}")
            for file in (other / f"{part.name}{end}").iterdir() if end else ():
                file.rename(file.with_stem(file.stem.removesuffix("_mask") + ending))
    shutil.copy(folder / "id2label.json", other)
    found = open_dataset(DataArguments(dataset_name=str(other), task="semantic"), "val")
    assert len(found) == len(expected) > 0
    assert all(torch.equal(found[i][1].map, expected[i][1].map) for i in range(len(found)))


@pytest.mark.parametrize(
    "name, content, tool",
    [
        ("a.jpg___objects.json", {"metadata": {"isClosed": True}, "instances": []}, "SuperAnnotate"),
        ("a.json", {"version": "2.0", "schema_ref": "https://darwin-public/darwin-json"}, "Darwin V7"),
        ("a.json", {"info": {"description": "ISAT", "folder": "x"}, "objects": []}, "ISAT"),
        ("task-1-annotation-2-by-3-tag-cat-0.npy", "", "Label Studio"),
        ("a_seg.npy", "", "Cellpose"),
        ("a.json", {"dm_format_version": "1.0", "infos": {}, "items": []}, "Datumaro"),
        ("a.json", {"project": {"vid_list": ["1"]}, "attribute": {}}, "VIA 3"),
        ("a.json", {"type": "FeatureCollection", "features": [{"geometry": {"coordinates": [[]]}}]}, "GeoJSON"),
    ],
)
def test_files_of_other_tools_are_named(name, content, tool, tmp_path):
    official_folders.save_photo(tmp_path / "a.jpg")
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"by {tool}, whose files of this kind are not read: export COCO JSON"):
        open_dataset(DataArguments(dataset_name=str(tmp_path), task="instance"), "train")


def test_a_label_without_an_image_and_a_lost_map_of_voc(tmp_path, caplog):
    folder = official_folders.mask_images(tmp_path / "masks")
    (folder / "images" / "val" / "a.jpg").unlink()
    assert len(open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "val")) == 1
    assert "a_mask.png has no image in" in caplog.text
    voc = official_folders.pascal_voc(tmp_path / "voc")
    (voc / "SegmentationClass" / "2007_000000_val.png").unlink()
    with pytest.raises(ValueError, match=r"2007_000000_val.*is missing"):
        open_dataset(DataArguments(dataset_name=str(voc), task="semantic"), "val")
