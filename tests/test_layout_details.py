"""Real exports are untidy: hidden files, equal names, other cases and encodings, missing parts."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli import convert, evaluate
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.data.formats.ade20k import Ade20k
from mpformer_hf.data.formats.cityscapes import Cityscapes
from mpformer_hf.data.formats.format import Category, ImageRecord
from mpformer_hf.data.formats.yolo import Yolo
from mpformer_hf.data.splits import check_splits, check_training_images
from tests import official_folders as make
from tests.tiny import tiny_model
from training.arguments import TransformArguments
from training.building import build_processor


def opened(folder, task, split="train", **fields):
    return open_dataset(DataArguments(dataset_name=str(folder), task=task, **fields), split)


def areas(dataset, index=0):
    """Pixels of each segment of an image."""
    segments = dataset[index][1]
    return sorted(int((segments.map == i).sum()) for i in segments.classes)


def saved_model(folder: Path, names: list[str], **fields) -> Path:
    tiny_model(num_labels=len(names), id2label=dict(enumerate(names))).save_pretrained(folder)
    MPFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, **fields).save_pretrained(folder)
    return folder


# --- Files ---


@pytest.mark.parametrize("build", [make.mask_images, make.yolo, make.labelme, make.instance_files, make.cityscapes])
def test_hidden_files_are_no_data(build, tmp_path):
    task = "semantic" if build is make.mask_images else "instance"
    folder = build(tmp_path)
    count = len(opened(folder, task))
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\26\7")
    (folder / ".vscode").mkdir()
    (folder / ".vscode" / "settings.json").write_text("{}")
    (folder / ".DS_Store").touch()
    dataset = opened(folder, task)
    assert len(dataset) == count and dataset[0][1].classes


def test_known_layouts_with_metadata_beside_them(tmp_path):
    folder = make.mask_images(tmp_path / "m")
    (folder / "metadata.csv").write_text("file_name,author\n")
    assert len(opened(folder, "semantic")) == 2
    (make.cityscapes(tmp_path / "c") / "metadata.json").write_text("{}")
    assert len(opened(tmp_path / "c", "instance")) == 2


def test_equal_names_get_different_ids(tmp_path):
    for name, where in (("one", "x"), ("two", "y")):
        make.save_photo(tmp_path / name / "images" / "image.png")
        make.save(np.full((make.HEIGHT, make.WIDTH), 255, np.uint8), tmp_path / name / "masks" / f"{where}.png")
    dataset = opened(tmp_path, "instance")
    assert [dataset.identity(i) for i in range(2)] == [
        ("one/images/image.png", "one/images/image.png", "one_images_image"),
        ("two/images/image.png", "two/images/image.png", "two_images_image"),
    ]
    folder, content = tmp_path / "coco", make.coco_content()
    for image, name in zip(content["images"], ("a/b_c.jpg", "a_b/c.jpg"), strict=True):
        image["file_name"] = name
        make.save_photo(folder / name)
    make.write_json(content, folder / "instances_train.json")
    coco = opened(folder, "instance")
    assert len({coco.identity(i)[2] for i in range(2)}) == 2


def test_a_label_that_is_there_twice_is_refused(tmp_path):
    folder = make.mask_images(tmp_path)
    shutil.copy(folder / "masks" / "train" / "a_mask.png", folder / "masks" / "train" / "a_mask.tif")
    with pytest.raises(ValueError, match=r"a_mask\.tif and a_mask\.png are labels of one name"):
        opened(folder, "semantic")


def test_images_that_are_left_out_are_named(tmp_path, caplog):
    for build, file in (
        (make.mapillary, "training/panoptic/panoptic_2018.json"),
        (make.ade20k_prepared, "ade20k_panoptic_train.json"),
    ):
        folder = build(tmp_path / build.__name__)
        content = json.loads((folder / file).read_text())
        content["annotations"].pop()
        (folder / file).write_text(json.dumps(content))
        caplog.clear()
        assert len(opened(folder, "panoptic")) == 1 and "1 images have no annotation and are left out" in caplog.text
    folder = make.labelme(tmp_path / "labelme")
    make.save_photo(folder / "unlabelled.jpg")
    caplog.clear()
    opened(folder, "instance")
    assert "1 images have no annotation and are left out" in caplog.text
    folder = make.instance_files(tmp_path / "files")
    shutil.rmtree(folder / "0a1b" / "masks")
    dataset = opened(folder, "instance")
    assert "has no masks/: an image without objects" in caplog.text
    assert [len(dataset[i][1].classes) for i in range(2)] == [0, 2]


def test_a_training_image_in_the_evaluation_split_is_noticed(tmp_path, caplog):
    folder = make.yolo(tmp_path / "yolo")
    content = yaml.safe_load((folder / "data.yaml").read_text())
    (folder / "data.yaml").write_text(yaml.safe_dump({**content, "train": ["train/images", "valid/images"]}))
    data = DataArguments(dataset_name=str(folder), task="instance")
    check_splits(data)
    check_training_images(open_dataset(data, "train"), open_dataset(data, "validation"))
    assert "3 of 3 evaluation images are also training images" in caplog.text


def test_masks_of_0_and_255_are_refused_by_every_command(tmp_path):
    folder = make.mask_images(tmp_path / "d")
    for file in (folder / "masks").rglob("*.png"):
        make.save(255 * make.scene(0, 0, (1, 1)), file)
    (folder / "id2label.json").write_text('{"0": "background", "1": "object"}')
    argv = ["--dataset_name", str(folder), "--task", "semantic", "--eval_split", "val", "--most_frequent_class", "true"]
    with pytest.raises(ValueError, match="divide masks of 0 and 255 by 255"):
        evaluate.main(argv)
    with pytest.raises(SystemExit, match="divide masks of 0 and 255 by 255"):
        mpformer(["prepare", str(folder), str(tmp_path / "out"), "--task", "semantic"])


# --- Annotation tools ---


def test_yolo_paths_and_names(tmp_path, caplog):
    source = make.yolo(tmp_path / "source")
    root = tmp_path / "elsewhere"
    for split in ("train", "valid"):
        (root / "images" / split).mkdir(parents=True)
        shutil.copytree(source / split / "images", root / "images" / split / "sub")
        shutil.copytree(source / split / "labels", root / "labels" / split / "sub")
    (root / "images" / "train" / "sub" / "a.jpg").rename(root / "images" / "train" / "sub" / "A B.JPG")
    label = root / "labels" / "train" / "sub" / "a.txt"
    (label.with_name("A B.txt")).write_text("\ufeff" + label.read_text(), encoding="utf-8")
    label.unlink()
    (label.with_name("classes.txt")).write_text("truck\ncar\n")
    (label.with_name("stray.txt")).write_text("")
    folder = tmp_path / "yaml"
    folder.mkdir()
    content = {"path": str(root), "train": "images/train", "val": "images/valid", "names": {0: "truck", 1: "car"}}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    dataset = opened(folder, "instance", allow_outside_files=True)
    assert len(dataset) == 3 and dataset.labels.names == ["truck", "car"] and areas(dataset) == [400, 572]
    assert "stray.txt has no image; there are 1 of these" in caplog.text
    images = [str(path) for path in sorted((root / "images" / "train").rglob("*.jpg"))]
    (root / "list.txt").write_text("\n".join(images))
    (folder / "data.yaml").write_text(yaml.safe_dump({**content, "train": "list.txt"}))
    assert len(opened(folder, "instance", allow_outside_files=True)) == len(images)
    (folder / "data.yaml").write_text(yaml.safe_dump({**content, "names": {"a": "b"}}))
    with pytest.raises(ValueError, match=r"data\.yaml must have names by numbers of at least 0, it has 'a'"):
        opened(folder, "instance", allow_outside_files=True)


def test_the_parents_of_roboflow(tmp_path):
    folder = make.roboflow(tmp_path)
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
    content = make.coco_content()
    for row in content["images"]:
        file = row["file_name"]
        make.save_photo(tmp_path / images / file)
        make.save_photo(tmp_path / images.replace("val", "train").replace("idation", "") / file)
        make.save_photo(tmp_path / "masks" / file)
        row["file_name"] = name.format(file)
    make.write_json(content, tmp_path / "annotations" / json_name)
    dataset = opened(tmp_path, "instance", "validation")
    folder = "valid" if images == "valid" else "val"
    assert all(f"/{folder}" in row["path"] for row in dataset.rows["image"])


def test_boxes_in_coco_files_are_refused_before_training(tmp_path):
    folder = make.coco_instances(tmp_path)
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = []
    file.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"train2017\.json has 1 problem: annotations\[0\] has an empty segmentation"):
        opened(folder, "instance")


def test_lvis_is_scored_by_cocos_rules_with_a_warning(tmp_path, caplog):
    folder = make.lvis(tmp_path)
    file = folder / "lvis_v1_train.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["neg_category_ids"] = []
    file.write_text(json.dumps(content))
    opened(folder, "instance")
    assert "is of LVIS, but is scored by COCO's rules" in caplog.text


def test_composed_and_decomposed_names_of_labelme(tmp_path):
    folder = make.labelme(tmp_path)
    name = unicodedata.normalize("NFD", "é.jpg")
    (folder / "a.jpg").rename(folder / name)
    content = json.loads((folder / "a.json").read_text())
    for written in (name, unicodedata.normalize("NFC", name), f"..\\photos\\{name}"):
        (folder / "a.json").write_text(json.dumps({**content, "imagePath": written}))
        assert opened(folder, "instance")[0][1].classes
    (folder / "categories.json").write_text("[]")
    assert len(opened(folder, "instance")) == 2


def test_names_and_classes_of_voc(tmp_path):
    folder = make.pascal_voc(tmp_path)
    for part, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationObject", "png")):
        old = folder / part / f"2007_000000_train.{suffix}"
        old.rename(folder / part / f"my image [1].{suffix}")
    (folder / "JPEGImages" / "my image [1].json").write_text("{}")
    (folder / "JPEGImages" / "my image [1].2.jpg").write_bytes(b"another")
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("\ufeffmy image [1]\n", encoding="utf-8")
    assert areas(opened(folder, "instance")) == [400, 572]
    names = ["__ignore__", "_background_", *(f"c{i}" for i in range(1, 9))]
    (folder / "labels.txt").write_text("\n".join(names))
    labels = opened(folder, "semantic").labels
    assert labels.names[0] == "_background_" and labels.names[7] == "c7"
    assert labels.palette[7] == (128, 128, 128), "Pascal VOC's palette"
    colors = {0: (0, 0, 0), 7: (255, 0, 0), 255: (0, 0, 0), 1: (0, 128, 0), 2: (0, 0, 128)}
    for part in ("SegmentationClass", "SegmentationObject"):
        for file in (folder / part).glob("*.png"):
            values = np.array(Image.open(file))
            make.save(np.array([[colors[i] for i in row] for row in values.tolist()], np.uint8), file)
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:255,0,0::\n")
    semantic = opened(folder, "semantic")
    assert semantic.labels.names == ["background", "car"] and areas(semantic)[0] == 400 + 572
    assert semantic.labels.palette == [(0, 0, 0), (255, 0, 0)]
    assert areas(opened(folder, "instance")) == [400, 572]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "1", "P"])
def test_masks_of_any_mode(mode, tmp_path):
    folder = make.instance_files(tmp_path)
    for file in folder.rglob("masks/*.png"):
        with Image.open(file) as image:
            converted = image.convert(mode)
        if mode == "P":  # white first
            converted = image.point(lambda value: 0 if value else 1)
            converted.putpalette([255, 255, 255, 0, 0, 0])
        converted.save(file)
    assert areas(opened(folder, "instance")) == [400, 572]


def test_grey_label_images_of_three_channels(tmp_path):
    folder = make.mask_images(tmp_path)
    expected = areas(opened(folder, "semantic"))
    for file in (folder / "masks").rglob("*.png"):
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        rgb.save(file)
    assert areas(opened(folder, "semantic")) == expected


def test_a_rotated_image_without_objects(tmp_path):
    folder = make.instance_files(tmp_path)
    image = next((folder / "0a1b" / "images").iterdir())
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(image) as opened_image:
        pixels = opened_image.copy()
    pixels.save(image, exif=exif)
    for mask in (folder / "0a1b" / "masks").iterdir():
        mask.unlink()
    pixels, segments = opened(folder, "instance")[0]
    assert pixels.shape[1:] == segments.map.shape == (make.WIDTH, make.HEIGHT)


# --- prepare, predict, formats ---


def test_prepare_does_not_write_one_split_twice(tmp_path):
    folder = make.cvat(tmp_path / "cvat")
    with pytest.raises(SystemExit, match="is of no split"):
        mpformer(["prepare", str(folder), str(tmp_path / "out"), "--task", "instance"])
    argv = ["prepare", str(folder), str(tmp_path / "out"), "--task", "instance", "--validation_share", "0.5"]
    mpformer(argv)
    ids = [{opened(tmp_path / "out", "instance", split).identity(0)[0]} for split in ("train", "validation")]
    assert not ids[0] & ids[1] and len(opened(tmp_path / "out", "instance")) == 1
    with pytest.raises(SystemExit, match="must be different names of letters"):
        mpformer([*argv[:2], str(tmp_path / "new"), *argv[3:], "--splits", "train-a", "val"])
    masks = make.mask_images(tmp_path / "masks")
    names = (masks / "id2label.json").rename(tmp_path / "names.json")
    mpformer(["prepare", str(masks), str(tmp_path / "named"), "--task", "semantic", "--id2label", str(names)])
    assert opened(tmp_path / "named", "semantic").labels.names == ["sky", "road", "car"]


def test_ids_of_a_resumed_prediction_are_those_of_its_own_run(tmp_path, capsys):
    saved = saved_model(tmp_path / "model", ["a", "b"], task="instance", threshold=0.0)
    photos = tmp_path / "photos"
    for name in ("b.jpg", "c.jpg"):
        make.save_photo(photos / name)
    argv = ["predict", str(saved), str(photos), str(tmp_path / "out"), "--write", "overlays"]

    def ids():
        return {
            row["file_name"]: row["id"] for row in json.loads((tmp_path / "out" / "images.json").read_text())["images"]
        }

    mpformer(argv)
    assert ids() == {"b.jpg": 0, "c.jpg": 1}
    make.save_photo(photos / "a.jpg")
    mpformer(argv)
    assert ids() == {"a.jpg": 0, "b.jpg": 1, "c.jpg": 2}
    make.write_json(
        {"images": [{"id": 0, "file_name": "b.jpg"}, {"id": 7, "coco_url": "http://x/train/c.jpg"}]},
        tmp_path / "i.json",
    )
    mpformer([*argv, "--image_ids", str(tmp_path / "i.json")])
    assert ids() == {"b.jpg": 0, "c.jpg": 7} and "skipped a: " in capsys.readouterr().err


def test_files_for_cityscapes_have_its_names_and_ids(tmp_path):
    folder = make.cityscapes(tmp_path / "data")
    names = opened(folder, "semantic").labels.names
    plain = saved_model(tmp_path / "plain", names, task="semantic")
    argv = [str(folder / "leftImg8bit" / "val"), str(tmp_path / "out"), "--formats", "cityscapes"]
    with pytest.raises(SystemExit, match="needs label ids of Cityscapes; 'road' has 0"):
        mpformer(["predict", str(plain), *argv])
    ids = convert.category_ids("cityscapes", names, "semantic")
    saved = saved_model(tmp_path / "saved", names, task="semantic", category_ids=ids)
    mpformer(["predict", str(saved), *argv])
    files = sorted(path.name for path in (tmp_path / "out" / "cityscapes").iterdir())
    assert files == [f"berlin_{i:06d}_000019_pred.png" for i in range(2)]
    writer = Cityscapes(tmp_path / "x", "semantic", [Category(7, "road", False)], 0.0)
    for name in ("a", "b"):
        record = ImageRecord(name, f"{name}/same.png", name, 2, 2)
        if name == "b":
            with pytest.raises(ValueError, match="b and a have one file name"):
                writer.write(record, torch.zeros(2, 2, dtype=torch.int64))
        else:
            writer.write(record, torch.zeros(2, 2, dtype=torch.int64))


def test_the_palette_of_a_dataset_is_that_of_its_pictures(tmp_path):
    folder = make.cityscapes(tmp_path / "data")
    labels = opened(folder, "semantic").labels
    assert dict(zip(labels.names, labels.palette, strict=True))["person"] == (220, 20, 60)
    assert opened(folder, "instance").labels.palette[-1] == (119, 11, 32)
    processor = build_processor(DataArguments(dataset_name=str(folder), task="semantic"), TransformArguments(), labels)
    saved = saved_model(tmp_path / "saved", labels.names, task="semantic", palette=processor.palette)
    mpformer(["predict", str(saved), str(folder / "leftImg8bit" / "val"), str(tmp_path / "out")])
    for file in (tmp_path / "out" / "maps").glob("*.png"):
        drawn = np.asarray(Image.open(tmp_path / "out" / "overlays" / file.name)).reshape(-1, 3)
        largest = np.bincount(np.asarray(Image.open(file)).ravel()).argmax()
        in_legend = (drawn == np.array(labels.palette[largest])).all(1).sum()
        assert in_legend > 50
    with pytest.raises(ValueError, match="palette must be a list of RGB colours, 0 to 255"):
        MPFormerImageProcessor(palette=[[0, 0, 256]])
    short = saved_model(tmp_path / "short", labels.names, task="semantic", palette=[[0, 0, 1]])
    with pytest.raises(SystemExit, match="palette has 1 colours for 19 classes"):
        mpformer(["predict", str(short), str(folder / "leftImg8bit" / "val"), str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "color, expected", [([1, 2, 3], (1, 2, 3)), ("#0a0B0c", (10, 11, 12)), ("red", None), ([1, 2], None)]
)
def test_colors_of_categories(color, expected, tmp_path):
    folder = make.coco_panoptic(tmp_path / "data")
    for file in folder.rglob("panoptic_*.json"):
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["color"] = color
        file.write_text(json.dumps(content))
    palette = opened(folder, "panoptic").labels.palette
    assert palette == ([expected] * len(palette) if expected else None) if palette else expected is None


def test_category_ids_of_converted_checkpoints():
    names = opened_names("coco-panoptic")
    assert convert.category_ids("coco-panoptic", names, "panoptic")[-1] == 200
    assert convert.category_ids("coco-instance", names[:80], "instance")[-1] == 90
    assert convert.category_ids("ade20k", opened_names("ade20k"), "semantic") == list(range(1, 151))
    assert convert.category_ids("ade20k", opened_names("ade20k"), "panoptic") is None
    assert convert.category_ids(None, ["a"], "semantic") is None


def opened_names(dataset):
    return convert.RELEASES[dataset]["names"]


def test_formats_refuse_or_fill_what_they_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="has 8 bits, for 255 classes; there are 300"):
        Ade20k(tmp_path, "semantic", [Category(i, str(i), False) for i in range(300)], 0.0)
    mask = np.zeros((60, 60), bool)
    mask[5:55, 5:55] = True
    mask[15:45, 15:45] = False
    mask[25:35, 25:35] = True  # an island in a hole
    names = ["5\" x 3'", "a\\nb"]
    writer = Yolo(tmp_path, "instance", [Category(i, name, True) for i, name in enumerate(names)], 0.0)
    result = {"segmentation": torch.from_numpy(mask)[None], "segments_info": [{"label_id": 1, "score": 0.9}]}
    writer.write(ImageRecord(0, "one.jpg", "one", 60, 60), result)
    writer.finish([])
    with pytest.raises(ValueError, match="train is images, which does not exist"):
        opened(tmp_path, "instance")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "images" / "one.jpg")
    dataset = opened(tmp_path, "instance")
    assert dataset.labels.names == names and areas(dataset) == [2500]
