"""Files that are valid and were read as something else."""

import base64
import json
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.coco_ids import ImageIds
from mpformer_hf.data.layouts.yolo import names_of
from mpformer_hf.data.names import read_names
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.data.segments import read_map
from mpformer_hf.data.splits import check_splits
from mpformer_hf.model.images import open_image
from tests import datasets_on_disk as make
from tests import official_folders
from tests.data.test_layouts_tools import HEIGHT, TRIANGLE, WIDTH, photos, read, shapes_of, via_polygon

SQUARE = [5, 5, 20, 5, 20, 20, 5, 20]


def coco(names, categories, category, **fields):
    images = [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(names)]
    row = {"category_id": category, "segmentation": [SQUARE], "iscrowd": 0, "area": 225, **fields}
    annotations = [{"id": i, "image_id": i, **row} for i in range(len(names))]
    rows = [{"id": i, "name": name} for i, name in categories.items()]
    return json.dumps({"images": images, "annotations": annotations, "categories": rows})


def test_prepared_splits_have_the_ids_of_their_names(tmp_path):
    folder = tmp_path / "data"
    for split in ("train", "val"):
        photos(folder / split, f"{split}.jpg")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "train.json").write_text(coco(["train.jpg"], {0: "bird", 1: "cat", 2: "dog"}, 2))
    (folder / "annotations" / "val.json").write_text(coco(["val.jpg"], {0: "dog", 1: "cat", 2: "bird"}, 0))
    names = {"0": "bird", "1": "cat", "2": "dog"}
    for task, more in (("instance", {}), ("semantic", {"3": "background"})):
        file = tmp_path / "names.json"
        file.write_text(json.dumps(names | more))
        mpformer(["prepare", str(folder), str(tmp_path / task), "--task", task, "--id2label", str(file)])
        for split in ("train", "validation"):
            dataset = open_dataset(DataArguments(dataset_name=str(tmp_path / task), task=task), split)
            found = {dataset.labels.names[label] for label in dataset[0][1].classes.values()}
            assert found - {"background"} == {"dog"}


def test_subsets_of_one_file_of_cvat_are_splits(tmp_path):
    shape = '<polygon label="cat" points="5,5;20,5;20,20;5,20" z_order="0"/>'
    image = '<image id="{0}" name="{0}.jpg" subset="{1}" width="60" height="40">{2}</image>'
    rows = "".join(image.format(i, ("Train", "Validation")[i % 2], shape) for i in range(4))
    photos(tmp_path, *(f"{i}.jpg" for i in range(4)))
    (tmp_path / "annotations.xml").write_text(f"<annotations>{rows}</annotations>")
    check_splits(DataArguments(dataset_name=str(tmp_path), task="instance"))
    assert [row["file_name"] for row in read(tmp_path, split="validation").rows] == ["1.jpg", "3.jpg"]
    photos(tmp_path / "more", *(f"{i}.jpg" for i in range(4, 8)))
    rows = "".join(image.format(i, ("Train", "Validation")[i % 2], shape) for i in range(4, 8))
    (tmp_path / "more" / "annotations.xml").write_text(f"<annotations>{rows}</annotations>")
    check_splits(DataArguments(dataset_name=str(tmp_path), task="instance"))
    assert [row["file_name"] for row in read(tmp_path).rows] == ["0.jpg", "2.jpg", "4.jpg", "6.jpg"]


def test_a_stated_size_of_cvat_is_compared_before_masks_are_made(tmp_path):
    shape = '<mask label="cat" rle="1073741824" left="0" top="0" width="32768" height="32768" z_order="0"/>'
    row = f'<image id="0" name="0.jpg" width="32768" height="32768">{shape}</image>'
    photos(tmp_path, "0.jpg")
    (tmp_path / "annotations.xml").write_text(f"<annotations>{row}</annotations>")
    with pytest.raises(ValueError, match="the image is 40x60, but 32768x32768 in the annotations"):
        read(tmp_path)


def test_inverted_label_images_are_refused(tmp_path):
    ids = np.zeros((40, 60), np.uint8)
    ids[:9] = 3
    Image.fromarray(ids).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with pytest.raises(ValueError, match="a TIFF in which 0 is white, so its ids may be inverted"):
        read_map(open_image(tmp_path / "a.tif"))


def test_palettes_of_greys_are_not_indices(tmp_path):
    ids = np.zeros((40, 60), np.uint8)
    ids[:9], ids[9:12] = 1, 2
    image = Image.fromarray(ids, mode="P")
    for palette, right in (((0, 2, 3), False), ((0, 1, 2), True), ((0, 255, 255), True)):
        image.putpalette([value for value in palette for _ in range(3)])
        image.save(tmp_path / "a.png")
        if right:
            assert (read_map(open_image(tmp_path / "a.png")) == ids).all()
        else:
            with pytest.raises(ValueError, match="a palette of greys that are not its indices; save it as a grey"):
                read_map(open_image(tmp_path / "a.png"))
    image.putpalette([0, 0, 0, 128, 128, 128, 9, 9, 200])  # as of Pascal VOC
    image.save(tmp_path / "a.png")
    assert (read_map(open_image(tmp_path / "a.png")) == ids).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_label_images_of_few_bits_have_their_values(bits, tmp_path):
    ids = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60) % (1 << bits)
    image = Image.fromarray(ids, mode="P")
    image.putpalette(bytes(range(1 << bits)) * 3)
    image.save(tmp_path / "p.png", bits=bits)
    content = (tmp_path / "p.png").read_bytes()
    grey = as_grey_png(content)
    (tmp_path / "g.png").write_bytes(grey)
    assert open_image(tmp_path / "g.png").mode == "L"
    assert (read_map(open_image(tmp_path / "g.png")) == ids).all()
    rows = np.packbits(np.unpackbits(ids.reshape(-1, 1), axis=1)[:, 8 - bits :].ravel()).tobytes()
    tags = {256: 60, 257: 40, 258: bits, 259: 1, 262: 1, 273: 200, 277: 1, 278: 40, 279: len(rows)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    (tmp_path / "g.tif").write_bytes(header.ljust(200, b"\0") + rows)
    assert (read_map(open_image(tmp_path / "g.tif")) == ids).all()


def as_grey_png(content: bytes) -> bytes:
    """A PNG with a palette as the same PNG of greys: another colour type, and no palette."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            data = data[:9] + b"\0" + data[10:]
        if kind != b"PLTE":
            chunks.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
        at += 12 + length
    return content[:8] + b"".join(chunks)


def test_photos_of_one_name_in_two_folders_keep_their_names(tmp_path):
    photos(tmp_path, "a.jpg")
    photos(tmp_path / "sub", "a.jpg")
    (tmp_path / "a.json").write_text(shapes_of("a.jpg"))
    (tmp_path / "sub_a.json").write_text(shapes_of("sub/a.jpg"))
    assert [row["file_name"] for row in read(tmp_path).rows] == ["a.jpg", "sub/a.jpg"]


def test_the_upper_one_of_two_files_of_a_name_is_meant(tmp_path):
    photos(tmp_path / "images", "a.jpg")
    photos(tmp_path / "images" / "sub", "a.jpg")
    (tmp_path / "instances.json").write_text(coco(["a.jpg", "sub/a.jpg"], {1: "cat"}, 1))
    paths = [row["image"]["path"] for row in read(tmp_path).rows]
    assert paths == [str(tmp_path / "images" / name) for name in ("a.jpg", "sub/a.jpg")]


def test_white_masks_without_a_table_name_white(tmp_path):
    folder = official_folders.mask_images(tmp_path)
    for file in (folder / "masks").rglob("*.png"):
        mask = np.array(Image.open(file)) > 0
        Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)).save(file)
    with pytest.raises(ValueError, match=r"colours such as \(255, 255, 255\)"):
        read(folder, "semantic")[0]


def test_joined_semantic_sets_need_no_things(tmp_path):
    for name in ("a", "b"):
        photos(tmp_path / name, "0.jpg")
    (tmp_path / "a" / "0.json").write_text(shapes_of("0.jpg"))
    (tmp_path / "b" / "0.json").write_text(coco(["0.jpg"], {1: "cat"}, 1))
    dataset = read(tmp_path / "a", "semantic", join=[str(tmp_path / "b")])
    assert dataset.labels.names == ["_background_", "cat", "background"]
    with_names = tmp_path / "s.json"
    with_names.write_text('{"_background_": "background"}')
    dataset = read(tmp_path / "a", "semantic", join=[str(tmp_path / "b")], synonyms=str(with_names))
    assert dataset.labels.names == ["background", "cat"]


def test_crowds_are_painted_in_semantic_maps(tmp_path):
    photos(tmp_path, "0.jpg")
    rle = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 30, HEIGHT * 30]}
    content = coco(["0.jpg"], {1: "cat"}, 1, iscrowd=1, segmentation=rle)
    (tmp_path / "instances.json").write_text(content)
    labels = read(tmp_path, "semantic")[0][1].map
    assert torch.equal(labels[:, :30] == labels[0, 0], torch.ones(HEIGHT, 30, dtype=torch.bool))
    assert labels[0, 0] != labels[0, 40]


def test_masks_in_place_of_maps_of_ids_are_mentioned(tmp_path, caplog):
    photos(tmp_path / "images", "a.png")
    (tmp_path / "instances").mkdir()
    Image.fromarray(np.where(np.eye(HEIGHT, WIDTH) > 0, 255, 0).astype(np.uint8)).save(tmp_path / "instances" / "a.png")
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path)[0][1].classes) == 1
    assert "has 0 and 255 only: as a mask, all its objects would be one" in caplog.text


def test_values_of_attributes_and_names_of_classes(tmp_path):
    photos(tmp_path, "a.jpg")
    rows = {"a": {"filename": "a.jpg", "regions": [via_polygon(TRIANGLE, label=0)]}}
    (tmp_path / "via.json").write_text(json.dumps(rows))
    assert read(tmp_path).labels.names == ["0"]
    with pytest.raises(ValueError, match=r"a class that YAML reads as True: put quotes around yes, no, on or off"):
        names_of({"names": [True, "a"]}, tmp_path / "data.yaml")


def test_prepare_leaves_out_bad_images(tmp_path):
    folder = make.semantic(tmp_path / "d", [np.ones((40, 60), np.uint8), np.full((40, 60), 9, np.uint8)])
    argv = ["prepare", str(folder), str(tmp_path / "out"), "--task", "semantic", "--splits", "train"]
    with pytest.raises(SystemExit, match="has ids"):
        mpformer(argv)
    mpformer([*argv, "--skip_bad_images"])
    assert len(open_dataset(DataArguments(dataset_name=str(tmp_path / "out"), task="semantic"), "train")) == 1


@pytest.mark.parametrize("root", ["/content/ya", "C:\\sets\\ya"])
def test_absolute_paths_of_another_machine_in_data_yaml(root, tmp_path):
    for split in ("train", "valid"):
        photos(tmp_path / split / "images", "a.jpg")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    separator = "\\" if "\\" in root else "/"
    lines = [f"{key}: {separator.join((root, name, 'images'))}" for key, name in (("train", "train"), ("val", "valid"))]
    (tmp_path / "data.yaml").write_text("\n".join([*lines, "names: [cat]"]))
    for split, name in (("train", "train"), ("validation", "valid")):
        (row,) = read(tmp_path, split=split).rows
        assert row["image"]["path"] == str(tmp_path / name / "images" / "a.jpg")


def test_fields_of_coco_that_are_null_are_absent(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg")
    content = json.loads(coco(["a.jpg", "b.jpg"], {1: "cat"}, 1))
    content["images"][0] |= {"width": None, "height": None}
    content["annotations"][1]["segmentation"] = None
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotations\[1\] has no segmentation; --skip_bad_images"):
        read(tmp_path)
    assert len(read(tmp_path, skip_bad_images=True)) == 1


def test_other_names_of_files_of_cvat_and_label_studio(tmp_path):
    shape = '<polygon label="cat" points="5,5;20,5;20,20;5,20" z_order="0"/>'
    photos(tmp_path / "cvat", "0.jpg")
    text = f'<annotations><image id="0" name="0.jpg" width="60" height="40">{shape}</image></annotations>'
    (tmp_path / "cvat" / "1_task.xml").write_text(text)
    assert len(read(tmp_path / "cvat")[0][1].classes) == 1
    photos(tmp_path / "ls", "a b.jpg")
    value = {"points": [[10, 10], [50, 10], [50, 50]], "polygonlabels": ["cat"], "closed": True}
    result = {"id": "r", "type": "polygonlabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}
    address = base64.urlsafe_b64encode(b"s3://bucket/a b.jpg").decode().rstrip("=")
    data = {"image": f"/tasks/1/resolve/?fileuri={address}", "categories": ["x"], "images": ["y"]}
    task = {"id": 1, "data": data, "annotations": [{"completed_by": 1, "result": [result | {"from_name": "l"}]}]}
    (tmp_path / "ls" / "project.json").write_text(json.dumps([task]))
    assert [row["file_name"] for row in read(tmp_path / "ls").rows] == ["bucket/a b.jpg"]
    assert len(read(tmp_path / "ls")[0][1].classes) == 1


def test_names_and_ids_that_are_there_twice_or_are_none(tmp_path):
    (tmp_path / "names.json").write_text('{"0": "a", "0": "b", "1": "c"}')
    for given in (str(tmp_path / "names.json"), '{"0": "a", "0": "b", "1": "c"}'):
        with pytest.raises(ValueError, match="the key '0' is there twice"):
            read_names(given)
    photos(tmp_path / "d", "a.jpg")
    content = json.loads(coco(["a.jpg"], {1: "cat"}, 1))
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = 10**30
    (tmp_path / "d" / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has the id 10{30}, which has more than 64 bits"):
        read(tmp_path / "d")
    for wrong in (1.5, {"a": 1}):
        (tmp_path / "ids.json").write_text(json.dumps({"images": [{"file_name": "a.jpg", "id": wrong}]}))
        with pytest.raises(ValueError, match="of an image, expected an integer or a text"):
            ImageIds(tmp_path / "ids.json")


def test_synonyms_of_no_class_are_named(tmp_path):
    for name in ("a", "b"):
        photos(tmp_path / name, "0.jpg")
        (tmp_path / name / "0.json").write_text(shapes_of("0.jpg"))
    (tmp_path / "s.json").write_text('{"cats": "cat"}')
    with pytest.raises(ValueError, match="synonyms has the name 'cats', which no dataset has"):
        read(tmp_path / "a", join=[str(tmp_path / "b")], synonyms=str(tmp_path / "s.json"))


def test_regions_of_label_studio_with_several_labels_are_counted(tmp_path, caplog):
    photos(tmp_path, "a.jpg")
    value = {"points": [[10, 10], [50, 10], [50, 50]], "polygonlabels": ["cat", "dog"], "closed": True}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "from_name": "l"}
    other = {"points": value["points"], "labels": ["occluded"]}
    results = [{"id": "r", "value": value, **size}, {"id": "r", "value": other, **size}]
    task = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"completed_by": 1, "result": results}]}
    (tmp_path / "project.json").write_text(json.dumps([task]))
    split = read(tmp_path)
    assert split.labels.names == ["cat"] and len(split[0][1].classes) == 1
    assert "regions have several labels, of which the first one is used: 1." in caplog.text


def test_label_images_in_folders_of_the_same_names(tmp_path):
    for name in ("field", "lab"):
        photos(tmp_path / "images" / name, "0.jpg")
        (tmp_path / "masks" / name).mkdir(parents=True)
        Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(tmp_path / "masks" / name / "0.png")
    (tmp_path / "id2label.json").write_text('{"0": "ground", "1": "leaf"}')
    rows = read(tmp_path, "semantic").rows
    assert [row["file_name"] for row in rows] == ["field/0.jpg", "lab/0.jpg"]
    assert [row["label"]["path"] for row in rows] == [
        str(tmp_path / "masks" / name / "0.png") for name in ("field", "lab")
    ]


def test_the_image_beside_a_json_of_labelme_is_taken_before_others_of_its_name(tmp_path):
    for name in ("a", "b"):
        photos(tmp_path / name / "img", "0.jpg")
    (tmp_path / "a" / "ann").mkdir()
    (tmp_path / "a" / "ann" / "0.json").write_text(shapes_of("../img/0.jpg"))
    assert read(tmp_path).rows[0]["image"]["path"] == str(tmp_path / "a" / "ann" / ".." / "img" / "0.jpg")
    for name in ("s1", "s2"):
        photos(tmp_path / "c" / name, "0.jpg")
        (tmp_path / "c" / name / f"{name}.json").write_text(shapes_of("C:\\x\\0.jpg"))
    paths = [row["image"]["path"] for row in read(tmp_path / "c").rows]
    assert paths == [str(tmp_path / "c" / name / "0.jpg") for name in ("s1", "s2")]
