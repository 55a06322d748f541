"""Exports of annotation tools other than COCO, and label images with tables, against masks made by hand."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from datasets import Image as ImageColumn
from datasets import Value
from PIL import Image

from mpformer_hf.cli.main import main
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.layouts.label_studio import decode_brush
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.data.splits import check_splits
from tests import datasets_on_disk as make
from tests import official_folders
from tests.datasets_on_disk import opened as read

HEIGHT, WIDTH = 40, 60
TRIANGLE = [(5, 5), (25, 5), (5, 30)]
# made by label_studio_sdk 2.1.2, `converter.brush.mask2rle`
BRUSH = [0, 0, 0, 252, 57, 27, 254, 43, 0, 194, 127, 247, 192, 48, 159, 253, 240, 8, 255, 227, 0, 183, 255, 146]
BRUSH += [192, 35, 255, 196, 96, 0]


Y, X = np.mgrid[:HEIGHT, :WIDTH] + 0.5  # centres of pixels
INSIDE = (X > 5) & (Y > 5) & ((X - 5) / 20 + (Y - 5) / 25 < 1)  # of the triangle


def box_mask(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def photos(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        make.photo(HEIGHT, WIDTH).save(folder / name)


def masks_of(split, index=0):
    """Class names and masks of the objects of an image."""
    _, segments = split[index]
    layers = segments.map.view(-1, *segments.map.shape[-2:])
    return [
        (split.labels.names[label], (layers == segment).any(0).numpy()) for segment, label in segments.classes.items()
    ]


def assert_masks(found, expected, tolerance=0.0):
    """Polygons are drawn a little differently at their borders by different libraries."""
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, mask), (_, other) in zip(found, expected, strict=True):
        assert (mask & other).sum() >= (1 - tolerance) * (mask | other).sum() > 0


def via_region(shape, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes}


def via_polygon(points, **attributes):
    x, y = (list(values) for values in zip(*points, strict=True))
    return via_region({"name": "polygon", "all_points_x": x, "all_points_y": y}, **attributes)


@pytest.mark.parametrize("version", [1, 2, "project"])
def test_via(version, tmp_path, caplog):
    regions = [
        via_polygon(TRIANGLE, label="cat", note="x"),
        via_region({"name": "rect", "x": 30, "y": 10, "width": 10, "height": 20}, label={"dog": True}),
        via_region({"name": "circle", "cx": 50, "cy": 30, "r": 8}, label="cat"),
        via_region({"name": "point", "cx": 5, "cy": 3}, label="cat"),
    ]
    stored = {str(i): region for i, region in enumerate(regions)} if version == 1 else regions
    rows = {"a.jpg9": {"filename": "a.jpg", "size": 9, "regions": stored, "file_attributes": {}}}
    content = {"_via_settings": {}, "_via_img_metadata": rows} if version == "project" else rows
    for split in ("train", "val"):
        photos(tmp_path / split, "a.jpg")
        (tmp_path / split / "via_region_data.json").write_text(json.dumps(content))
    split = read(tmp_path)
    circle = (X - 50) ** 2 + (Y - 30) ** 2 < 64
    expected = [("cat", INSIDE), ("dog", box_mask(30, 10, 40, 30)), ("cat", circle)]
    assert_masks(masks_of(split), expected, 0.12)
    assert str(tmp_path / "train") in split.rows[0]["image"]["path"]
    assert "(points, lines) are ignored: 1." in caplog.text and "masks that fill them: 1." in caplog.text
    semantic = read(tmp_path, "semantic", "val")
    assert semantic.labels.names == ["cat", "dog", "background"]
    labels = semantic[0][1].map.numpy()
    assert labels[0, 0] == 2 and labels[6, 8] == 0 and labels[12, 35] == 1


def test_a_table_of_via_is_read_as_its_json(tmp_path):
    regions = [via_polygon(TRIANGLE, label="cat"), via_region({"name": "point", "cx": 5, "cy": 3}, label="dog"), {}]
    with (tmp_path / "via.csv").open("w", newline="") as opened:
        table = csv.writer(opened)
        columns = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
        table.writerow(columns.split(","))
        for number, region in enumerate(regions):
            shape, attributes = (json.dumps(region.get(key, {})) for key in ("shape_attributes", "region_attributes"))
            table.writerow([["a.jpg", "a.jpg", "b.jpg"][number], 9, "{}", 2, number, shape, attributes])
    photos(tmp_path, "a.jpg", "b.jpg")
    split = read(tmp_path)
    assert len(split) == 2 and masks_of(split, 1) == []
    assert_masks(masks_of(split), [("cat", INSIDE)], 0.12)
    (tmp_path / "via.csv").write_text(f"{columns}\na.jpg,9,{{}},1,0,{{,x\n")
    with pytest.raises(ValueError, match=r"via\.csv: a row cannot be read"):
        read(tmp_path)


def test_via_attributes_of_which_none_is_a_class(tmp_path):
    photos(tmp_path / "train", "a.jpg")
    rows = {"a": {"filename": "a.jpg", "regions": [via_polygon(TRIANGLE, colour="red", size="big")]}}
    (tmp_path / "train" / "via_region_data.json").write_text(json.dumps(rows))
    for attributes in ({"colour": "red", "size": "big"}, {"type": "polygon", "name": "cat"}):
        rows["a"]["regions"] = [via_polygon(TRIANGLE, **attributes)]
        (tmp_path / "train" / "via_region_data.json").write_text(json.dumps(rows))
        with pytest.raises(
            ValueError, match=f"has the attributes {', '.join(attributes)}; name the one of the classes"
        ):
            read(tmp_path)


def test_all_files_of_via_have_one_attribute_of_classes(tmp_path):
    regions = {"train": via_polygon(TRIANGLE, name="cat"), "val": via_polygon(TRIANGLE, name="cat", label="sick")}
    for split, region in regions.items():
        photos(tmp_path / split, "a.jpg", "b.jpg")
        good = via_polygon(TRIANGLE, label="dog")
        rows = {"a": {"filename": "a.jpg", "regions": [region]}, "b": {"filename": "b.jpg", "regions": [good]}}
        (tmp_path / split / "via_region_data.json").write_text(json.dumps(rows))
    with pytest.raises(
        ValueError, match=r"1 of 2 images are invalid: a\.jpg in .*no value of the attribute label; --skip"
    ):
        read(tmp_path)
    assert len(read(tmp_path, skip_bad_images=True)) == 1
    assert [label for label, _ in masks_of(read(tmp_path, split="val"))] == ["sick"]


def label_studio_task(name, results, **more):
    annotations = [{"completed_by": 1, "was_cancelled": True, "result": []}, {"completed_by": 1, "result": results}]
    return {"id": 7, "data": {"image": f"/data/upload/1/0123abcd-{name}"}, "annotations": annotations, **more}


def label_studio_result(kind, value, label):
    value = {**value, f"{kind}labels": [label]}
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return {"type": f"{kind}labels", "from_name": "label", "to_name": "image", "value": value, **size}


def test_label_studio(tmp_path, caplog):
    percent = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in TRIANGLE]
    box = {"x": 50, "y": 25, "width": 100 / 6, "height": 50, "rotation": 0}
    results = [
        label_studio_result("polygon", {"points": percent}, "dog"),
        label_studio_result("rectangle", box, "cat"),
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    photos(tmp_path / "images", "a.jpg")
    (tmp_path / "project-1.json").write_text(json.dumps([label_studio_task("a.jpg", results)]))
    split = read(tmp_path)
    assert_masks(masks_of(split), [("dog", INSIDE), ("cat", box_mask(30, 10, 40, 30))], 0.1)
    results[1]["value"]["rotation"] = 90
    task = label_studio_task("a.jpg", results)
    task["data"]["image"] = "https://bucket.example/a.jpg?X-Signature=1%2F2"
    task["annotations"].insert(0, {"completed_by": 2, "result": []})
    (tmp_path / "project-1.json").write_text(json.dumps([task, {"id": 8, "data": {}, "annotations": []}]))
    assert_masks(masks_of(read(tmp_path)), [("dog", INSIDE), ("cat", box_mask(10, 10, 30, 20))], 0.1)
    assert (
        "or else the first with regions: 1." in caplog.text and "have no annotation and are left out: 1." in caplog.text
    )
    del results[1]["value"]["rectanglelabels"]
    (tmp_path / "project-1.json").write_text(json.dumps([task]))
    with pytest.raises(ValueError, match="a region has no label"):
        read(tmp_path)


def test_a_brush_of_another_size_is_not_decoded(tmp_path):
    result = label_studio_result("brush", {"rle": [255, 255, 255, 0] + [0] * 40}, "cat")
    result |= {"original_width": 32000, "original_height": 33000}
    photos(tmp_path / "images", "a.jpg")
    (tmp_path / "project.json").write_text(json.dumps([label_studio_task("a.jpg", [result])]))
    with pytest.raises(ValueError, match="the image is 40x60, but 33000x32000 in the annotations"):
        read(tmp_path)


def test_label_studio_brush():
    mask = np.zeros((7, 9), dtype=bool)
    mask[1:4, 2:7] = mask[5, 8] = True
    mask[3, 3] = False
    assert np.array_equal(decode_brush(BRUSH, 7, 9), mask)
    with pytest.raises(ValueError, match="has 252 values, expected 4 x 8 x 9"):
        decode_brush(BRUSH, 8, 9)
    with pytest.raises(ValueError, match="truncated"):
        decode_brush(BRUSH[:-4], 7, 9)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>dog</name></label><label><name>cat</name></label></labels></task></meta>
{images}</annotations>"""
CVAT_IMAGE = """<image id="{id}" name="{name}" subset="{subset}" width="60" height="40">
<polygon label="cat" source="manual" occluded="0" points="5.00,5.00;25.00,5.00;5.00,30.00" z_order="1"></polygon>
<mask label="dog" occluded="0" rle="2, 3, 1, 6" left="10" top="20" width="4" height="3" z_order="0"></mask>
<box label="dog" xtl="30" ytl="10" xbr="40" ybr="30" z_order="0"/><points label="cat" points="1,1"/><tag label="cat"/>
</image>"""


def test_cvat_xml(tmp_path, caplog):
    images = "".join(
        CVAT_IMAGE.format(id=i, name=f"{s}/{i}.jpg", subset=s) for i, s in enumerate(("Train", "Validation"))
    )
    photos(tmp_path / "images" / "Train", "0.jpg")
    photos(tmp_path / "images" / "Validation", "1.jpg")
    (tmp_path / "annotations.xml").write_text(CVAT.format(images=images))
    painted = np.zeros((HEIGHT, WIDTH), dtype=bool)
    painted[20:23, 10:14] = np.array([[0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]])
    expected = [("dog", painted), ("dog", box_mask(30, 10, 40, 30)), ("cat", INSIDE)]
    for split in ("train", "validation"):
        opened = read(tmp_path, split=split)
        assert len(opened) == 1 and opened.labels.names == ["dog", "cat"]
        assert_masks(masks_of(opened), expected, 0.1)
    assert "(points, lines) are ignored: 1." in caplog.text
    turned = CVAT.format(images=images.replace('ybr="30"', 'ybr="30" rotation="90"').replace('name="Train/', 'name="'))
    (tmp_path / "annotations.xml").write_text(
        turned.replace('name="Validation/1', 'name="0')
    )  # one name in both subsets
    (tmp_path / "images" / "Validation" / "1.jpg").rename(tmp_path / "images" / "Validation" / "0.jpg")
    for split in ("train", "validation"):
        assert_masks(
            masks_of(read(tmp_path, split=split)), [expected[0], ("dog", box_mask(25, 15, 45, 25)), expected[2]], 0.1
        )
    (tmp_path / "annotations.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]>' + CVAT.format(images=images))
    with pytest.raises(ValueError, match="has a document type"):
        read(tmp_path)


def coco(name, category="cat", box=(0, 0, 10, 10)):
    x0, y0, x1, y1 = box
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [polygon], "iscrowd": 0}
    image = {"id": 1, "file_name": name, "height": HEIGHT, "width": WIDTH}
    return {"images": [image], "annotations": [annotation], "categories": [{"id": 3, "name": category}]}


def test_a_json_for_each_image(tmp_path):
    photos(tmp_path, "a.png", "b.png")
    (tmp_path / "a.json").write_text(json.dumps(coco("a.png", "dog")))
    (tmp_path / "b.json").write_text(json.dumps(coco("b.png", "cat", (20, 20, 30, 35))))
    split = read(tmp_path)
    assert split.labels.names == ["cat", "dog"] and len(split) == 2
    assert_masks(masks_of(split, 0), [("dog", box_mask(0, 0, 10, 10))])
    assert_masks(masks_of(split, 1), [("cat", box_mask(20, 20, 30, 35))])
    (tmp_path / "c.json").write_text(json.dumps(coco("a.png", "dog")))
    with pytest.raises(ValueError, match=r"a\.json and .*c\.json both have the image a\.png"):
        read(tmp_path)


def test_coco_objects_as_semantic_maps(tmp_path):
    content = coco("a.png", "dog", (0, 0, 20, 20))
    content["categories"].append({"id": 0, "name": "cat"})
    content["annotations"].append({**content["annotations"][0], "id": 2, "category_id": 0})
    content["annotations"][1]["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]
    photos(tmp_path / "train", "a.png")
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    split = read(tmp_path, "semantic")
    assert split.labels.names == ["cat", "dog", "background"]
    expected = np.full((HEIGHT, WIDTH), 2)
    expected[:20, :20] = 1
    expected[10:30, 10:30] = 0
    assert np.array_equal(split[0][1].map.numpy(), expected)


RED, GREEN, PURE = (128, 0, 0), (0, 128, 0), (255, 0, 0)


def colored(*areas):
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for color, (x0, y0, x1, y1) in areas:
        image[y0:y1, x0:x1] = color
    return Image.fromarray(image)


@pytest.mark.parametrize(
    "table, text",
    [
        ("class_dict.csv", "name,r,g,b\nroad,128,0,0\ncar, 0, 128, 0\nsky,255,0,0\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:128,0,0::\ncar:0,128,0::\nsky:255,0,0::\n"),
        ("label_colors.txt", "128 0 0 road\n0 128 0\tcar\n255 0 0 sky\n"),
    ],
)
@pytest.mark.parametrize("palette", [False, True])
def test_colours_of_a_table(table, text, palette, tmp_path):
    photos(tmp_path / "images", "a.jpg")
    (tmp_path / "masks").mkdir()
    mask = colored((RED, (0, 0, 20, 20)), (GREEN, (20, 0, 40, 20)), (PURE, (40, 0, 60, 20)))
    (mask.convert("P", palette=Image.Palette.ADAPTIVE) if palette else mask).save(tmp_path / "masks" / "a.png")
    (tmp_path / table).write_text(text)
    split = read(tmp_path, "semantic")
    boxes = {"road": (0, 0, 20, 20), "car": (20, 0, 40, 20), "sky": (40, 0, 60, 20)}
    assert sorted(split.labels.names) == ["car", "road", "sky"]
    for name, mask in masks_of(split):
        assert np.array_equal(mask, box_mask(*boxes[name]))
    main(["prepare", str(tmp_path), str(tmp_path / "p"), "--task", "semantic", "--splits", "train"])
    for name, mask in masks_of(read(tmp_path / "p", "semantic")):
        assert np.array_equal(mask, box_mask(*boxes[name]))
    shutil.rmtree(tmp_path / "p")
    colored((RED, (0, 0, 5, 5)), ((9, 8, 7), (9, 9, 12, 12))).save(tmp_path / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"label has the colour \(9, 8, 7\), which the table of colours does not have"):
        read(tmp_path, "semantic")[0]


def test_colours_without_a_table_are_explained(tmp_path):
    photos(tmp_path / "images", "a.jpg")
    (tmp_path / "masks").mkdir()
    colored((PURE, (0, 0, 5, 5)), (GREEN, (9, 9, 12, 12))).save(tmp_path / "masks" / "a.png")
    (tmp_path / "id2label.json").write_text('{"0": "a", "1": "b"}')
    with pytest.raises(ValueError, match=r"colours such as \(0, 128, 0\).*class_dict\.csv with a line name,r,g,b"):
        read(tmp_path, "semantic")[0]


def test_masks_beside_images_as_roboflow_exports_them(tmp_path):
    for split in ("train", "valid"):
        photos(tmp_path / split, "a.jpg", "b.jpg")
        for index, name in enumerate("ab"):
            Image.fromarray(box_mask(0, 0, 9 + index, 9).astype(np.uint8)).save(tmp_path / split / f"{name}_mask.png")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, leaf\n")
    split = read(tmp_path, "semantic", "validation")
    assert split.labels.names == ["background", "leaf"] and len(split) == 2
    assert np.array_equal(split[1][1].map.numpy() == 1, box_mask(0, 0, 10, 9))
    (tmp_path / "valid" / "b_mask.png").unlink()
    with pytest.raises(ValueError, match=r"b\.jpg has no label image NAME_mask or NAME_seg"):
        read(tmp_path, "semantic", "validation")


def test_maps_of_instance_ids(tmp_path):
    for split in ("train", "val"):
        photos(tmp_path / split / "images", "a.jpg")
        (tmp_path / split / "instances").mkdir()
        ids = 300 * box_mask(0, 0, 9, 9).astype(np.uint16) + 7 * box_mask(20, 20, 30, 30)
        Image.fromarray(ids.astype(np.uint16)).save(tmp_path / split / "instances" / "a.png")
    split = read(tmp_path)
    assert split.labels.names == ["object"]
    assert_masks(masks_of(split), [("object", box_mask(20, 20, 30, 30)), ("object", box_mask(0, 0, 9, 9))])
    (tmp_path / "id2label.json").write_text('{"0": "a", "1": "b"}')
    with pytest.raises(ValueError, match="masks of instances have no classes here, but there are 2 names"):
        read(tmp_path)[0]


def test_voc_names_and_lists_of_other_tools(tmp_path):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    photos(tmp_path / "JPEGImages", "a.jpg")
    Image.fromarray(box_mask(0, 0, 9, 9).astype(np.uint8)).save(tmp_path / "SegmentationClass" / "a.png")
    (tmp_path / "ImageSets" / "Segmentation" / "default.txt").write_text("a\n")
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\nleaf\n")
    split = read(tmp_path, "semantic")
    assert split.labels.names == ["_background_", "leaf"]
    assert np.array_equal(split[0][1].map.numpy() == 1, box_mask(0, 0, 9, 9))
    (tmp_path / "class_names.txt").unlink()
    (tmp_path / "id2label.json").write_text('{"0": "ground", "1": "leaf"}')
    assert read(tmp_path, "semantic").labels.names == ["ground", "leaf"]


def test_missing_files_are_named_together_or_left_out(tmp_path, caplog):
    for split in ("train", "val"):
        photos(tmp_path / split / "images", "a.jpg", "b.jpg", "c.jpg")
        (tmp_path / split / "masks").mkdir()
        Image.fromarray(box_mask(0, 0, 9, 9).astype(np.uint8)).save(tmp_path / split / "masks" / "b.png")
    (tmp_path / "id2label.json").write_text('{"0": "ground", "1": "leaf"}')
    with pytest.raises(ValueError, match=r"2 of 3 images or labels do not exist: .*a\.png, .*c\.png; --skip_bad"):
        read(tmp_path, "semantic")
    split = read(tmp_path, "semantic", skip_bad_images=True)
    assert len(split) == 1 and [text.split("/")[-1] for text in split.skipped] == [
        "a.png does not exist.",
        "c.png does not exist.",
    ]
    assert "Left out: " in caplog.text


def test_lists_of_another_machine_and_panoptic_categories_without_isthing(tmp_path):
    photos(tmp_path / "images" / "train", "1.jpg")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "1.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "train.txt").write_text("data/images/train/1.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: {0: leaf}\n")
    assert read(tmp_path).labels.names == ["leaf"] and len(read(tmp_path)) == 1


def test_panoptic_categories_that_do_not_say_which_are_things(tmp_path):
    folder = official_folders.coco_panoptic(tmp_path / "coco")
    expected = read(folder, "panoptic").labels
    for file in (folder / "annotations").glob("panoptic_*.json"):
        content = json.loads(file.read_text())
        rows = content["categories"]
        content["categories"] = [{"id": row["id"], "name": row["name"]} for row in rows]
        file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="give each of them isthing, 1 or 0, in the JSON, or put"):
        read(folder, "panoptic")
    (folder / "panoptic_categories.json").write_text(json.dumps(rows))
    assert read(folder, "panoptic").labels.things == expected.things


def test_tables_of_paths_and_columns_of_objects(tmp_path):
    photos(tmp_path / "paths" / "photos", "a.jpg")
    (tmp_path / "paths" / "maps").mkdir()
    Image.fromarray(box_mask(0, 0, 9, 9).astype(np.uint8)).save(tmp_path / "paths" / "maps" / "a.png")
    (tmp_path / "paths" / "id2label.json").write_text('{"0": "ground", "1": "leaf"}')
    (tmp_path / "paths" / "train.csv").write_text("image,mask\nphotos/a.jpg,maps/a.png\n")
    split = read(tmp_path / "paths", "semantic", label_column="mask")
    assert np.array_equal(split[0][1].map.numpy() == 1, box_mask(0, 0, 9, 9))
    (tmp_path / "paths" / "train.csv").write_text("image,mask\n/etc/photo.png,maps/a.png\n")
    with pytest.raises(ValueError, match="outside of the dataset"):
        read(tmp_path / "paths", "semantic", label_column="mask")[0]

    objects = json.dumps([{"category": 0, "segmentation": [[5, 5, 25, 5, 5, 30]]}])
    table = [{"image": make.photo(HEIGHT, WIDTH), "annotations": objects}]
    features = {"image": ImageColumn(), "annotations": Value("string")}
    folder = make.write(tmp_path / "objects", table, features, {"id2label.json": {"0": "leaf"}})
    split = read(folder, label_column="annotations")
    assert_masks(masks_of(split), [("leaf", INSIDE)], 0.05)
    with pytest.raises(ValueError, match=r"none of the columns objects, label.*name it with --label_column"):
        read(folder)


def one_coco(file, names, category):
    """A JSON of one image with one object."""
    content = coco("a.png")
    content["categories"] = [{"id": i, "name": name} for i, name in names.items()]
    content["annotations"][0]["category_id"] = category
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    photos(file.parent, "a.png")


def test_given_names_are_matched_by_name(tmp_path):
    """The same class has other ids in the JSONs of two splits, and one split lacks a class."""
    one_coco(tmp_path / "train" / "_annotations.coco.json", {0: "cat", 1: "dog"}, 1)
    one_coco(tmp_path / "valid" / "_annotations.coco.json", {0: "dog"}, 0)
    with pytest.raises(ValueError, match="are not those of 'train': cat missing"):
        open_dataset(DataArguments(dataset_name=str(tmp_path), task="instance"), "valid", labels=read(tmp_path).labels)
    options = {"id2label": '{"0": "dog", "1": "cat"}'}
    train = read(tmp_path, **options)
    data = DataArguments(dataset_name=str(tmp_path), task="instance", **options)
    valid = open_dataset(data, "valid", labels=train.labels)
    assert train.labels.names == valid.labels.names == ["dog", "cat"]
    assert [masks_of(split)[0][0] for split in (train, valid)] == ["dog", "dog"]
    with pytest.raises(ValueError, match="has the class 'dog', which the given names do not have"):
        read(tmp_path, id2label='{"0": "cat", "1": "cow"}')
    assert read(tmp_path, id2label='{"0": "Katze", "1": "Hund"}').labels.names == ["Katze", "Hund"]  # renamed by id


def test_all_splits_of_a_tool_have_the_same_classes(tmp_path):
    for split, label in (("train", "dog"), ("val", "cat")):
        photos(tmp_path / split, "a.jpg")
        rows = {"a": {"filename": "a.jpg", "regions": [via_polygon(TRIANGLE, label=label, note="x")]}}
        (tmp_path / split / "via_region_data.json").write_text(json.dumps(rows))
    train, validation = read(tmp_path), read(tmp_path, split="val")
    assert train.labels.names == validation.labels.names == ["cat", "dog"]
    assert masks_of(train)[0][0] == "dog" and masks_of(validation)[0][0] == "cat"


def test_an_image_is_not_taken_for_another_of_its_name(tmp_path):
    content = {**coco("cam1/a.png"), "annotations": []}
    content["images"].append({"id": 2, "file_name": "cam2/a.png", "height": HEIGHT, "width": WIDTH})
    content["annotations"] = [{**coco("x")["annotations"][0], "image_id": i, "id": i} for i in (1, 2)]
    photos(tmp_path / "images" / "cam2", "a.png")
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"names cam1/a\.png and cam2/a\.png, but only .*cam2/a\.png was found"):
        read(tmp_path)


def test_one_json_of_images_in_folders_of_splits(tmp_path):
    content = {**coco("train/a.png"), "annotations": []}
    content["images"].append({"id": 2, "file_name": "val/a.png", "height": HEIGHT, "width": WIDTH})
    content["annotations"] = [{**coco("x")["annotations"][0], "image_id": i, "id": i} for i in (1, 2)]
    for split in ("train", "val"):
        photos(tmp_path / "images" / split, "a.png")
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    for split in ("train", "val"):
        opened = read(tmp_path, split=split)
        assert len(opened) == 1 and f"/{split}/" in opened.rows[0]["image"]["path"]
    check_splits(DataArguments(dataset_name=str(tmp_path), task="instance", eval_split="val"))


def test_nothing_is_read_through_links_that_lead_out(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "names.txt").write_text("root\nuser\n")
    (secret / "x.json").write_text('{"shapes": [], "imagePath": "x.png"}')
    data = tmp_path / "data"
    photos(data / "images", "a.jpg")
    (data / "masks").mkdir()
    Image.fromarray(box_mask(0, 0, 9, 9).astype(np.uint8)).save(data / "masks" / "a.png")
    (data / "extra").symlink_to(secret)
    (data / "labels.txt").symlink_to(secret / "names.txt")
    with pytest.raises(ValueError, match=r"labels\.txt leads to .*names\.txt, outside of the dataset"):
        read(data, "semantic")
    (data / "labels.txt").unlink()
    (data / "labels.txt").write_text("ground\nleaf\n")
    assert read(data, "semantic").labels.names == ["ground", "leaf"]  # not labelme, as extra/x.json would make it
    os.mkfifo(data / "train.json")
    assert read(data, "semantic").labels.names == ["ground", "leaf"]


def test_label_studio_chooses_the_image_and_compares_its_size(tmp_path):
    percent = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in TRIANGLE]
    pair = [
        {**label_studio_result("polygon", {"points": percent}, "x"), "type": "polygon"},
        {**label_studio_result("polygon", {"points": percent}, "dog"), "type": "labels"},
    ]
    del pair[0]["value"]["polygonlabels"]
    pair[0]["id"] = pair[1]["id"] = "Zb9"
    pair[1]["value"]["labels"] = pair[1]["value"].pop("polygonlabels")
    task = label_studio_task("a.jpg", pair)
    task["data"] = {
        "caption": "A cat. On a mat",
        "thumb": "/t/thumb.jpg",
        "image": "/data/local-files/?d=cam%201/a.jpg",
    }
    photos(tmp_path / "images" / "cam 1", "a.jpg")
    photos(tmp_path / "images" / "cam2", "a.jpg")
    (tmp_path / "project.json").write_text(json.dumps([task]))
    split = read(tmp_path)
    assert_masks(masks_of(split), [("dog", INSIDE)], 0.1)
    assert "cam 1" in split.rows[0]["image"]["path"]
    for result in pair:
        result["original_width"] = 30
    (tmp_path / "project.json").write_text(json.dumps([task]))
    with pytest.raises(ValueError, match=f"the image is {HEIGHT}x{WIDTH}, but {HEIGHT}x30 in the annotations"):
        read(tmp_path)[0]


def test_a_turned_ellipse_of_via_and_pages_of_tiffs(tmp_path):
    shape = {"name": "ellipse", "cx": 30, "cy": 20, "rx": 16, "ry": 6, "theta": np.pi / 2}
    rows = {"a": {"filename": "a.jpg", "regions": [via_region(shape, label="cat")]}}
    photos(tmp_path / "via" / "train", "a.jpg")
    (tmp_path / "via" / "train" / "via_region_data.json").write_text(json.dumps(rows))
    ((_, mask),) = masks_of(read(tmp_path / "via"))
    rows, columns = mask.nonzero()
    assert abs(rows.min() - 4) <= 1 and abs(rows.max() - 35) <= 1 and abs(columns.min() - 24) <= 1
    photos(tmp_path / "d" / "images", "a.jpg")
    (tmp_path / "d" / "masks").mkdir()
    page = Image.fromarray(box_mask(0, 0, 9, 9).astype(np.uint8))
    page.save(tmp_path / "d" / "masks" / "a.tif", save_all=True, append_images=[page])
    (tmp_path / "d" / "id2label.json").write_text('{"0": "ground", "1": "leaf"}')
    with pytest.raises(ValueError, match="the label has 2 pages; label images must have one"):
        read(tmp_path / "d", "semantic")[0]


def shapes_of(name, label="cat"):
    shape = {"label": label, "points": TRIANGLE, "shape_type": "polygon"}
    return json.dumps({"shapes": [shape], "imagePath": name, "imageHeight": HEIGHT, "imageWidth": WIDTH})


def test_labelme_in_deep_folders_of_splits(tmp_path):
    for split in ("train", "val"):
        photos(tmp_path / "images" / split, f"{split}.jpg")
        (tmp_path / "images" / split / f"{split}.json").write_text(shapes_of(f"{split}.jpg"))
    for split in ("train", "val"):
        assert [row["file_name"] for row in read(tmp_path, split=split).rows] == [f"{split}.jpg"]
    check_splits(DataArguments(dataset_name=str(tmp_path), task="instance"))
    (tmp_path / "images" / "val" / "other.json").write_text(shapes_of("val.jpg"))
    with pytest.raises(ValueError, match=r"val/other\.json and .*val/val\.json both name .*val\.jpg; leave"):
        read(tmp_path, split="val")


def test_one_json_an_image_in_folders_of_splits(tmp_path):
    for split, label in (("train", "cat"), ("val", "dog")):
        photos(tmp_path / "labelme" / split, "0.jpg", "1.jpg")
        photos(tmp_path / "coco" / split, "0.jpg", "1.jpg")
        for kind in ("labelme", "coco"):
            (tmp_path / kind / "annotations" / split).mkdir(parents=True)
        for name in ("0", "1"):
            (tmp_path / "labelme" / "annotations" / split / f"{name}.json").write_text(shapes_of(f"{name}.jpg", label))
            (tmp_path / "coco" / "annotations" / split / f"{name}.json").write_text(json.dumps(coco(f"{name}.jpg")))
    for kind in ("labelme", "coco"):
        for split in ("train", "val"):
            rows = read(tmp_path / kind, split=split).rows
            paths = [row["image"]["path"] for row in rows]
            assert paths == [str(tmp_path / kind / split / f"{name}.jpg") for name in ("0", "1")]
    assert [label for label, _ in masks_of(read(tmp_path / "labelme", split="val"))] == ["dog"]


def test_the_exact_path_is_taken_before_others_of_its_name(tmp_path):
    photos(tmp_path, "a.png")
    photos(tmp_path / "sub", "a.png")
    (tmp_path / "annotations.json").write_text(json.dumps(coco("a.png")))
    assert read(tmp_path).rows[0]["image"]["path"] == str(tmp_path / "a.png")


def test_coco_files_in_folders_of_splits(tmp_path):
    for split in ("train", "val"):
        photos(tmp_path / split / "images", "a.png")
        (tmp_path / split / "annotations").mkdir()
        (tmp_path / split / "annotations" / "instances_default.json").write_text(json.dumps(coco("a.png")))
    for split in ("train", "val"):
        assert f"/{split}/" in read(tmp_path, split=split).rows[0]["image"]["path"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("meta.json", {"classes": [], "projectType": "images"}, "is written by Supervisely"),
        ("a.ndjson", {"data_row": {}}, "is written by Labelbox"),
        ("notes.txt", {}, "fits no layout of "),
    ],
)
def test_folders_that_are_no_dataset(tmp_path, name, text, message):
    photos(tmp_path, "a.png")
    (tmp_path / name).write_text(json.dumps(text))
    with pytest.raises(ValueError, match=message) as refused:
        read(tmp_path)
    assert "nearest" not in str(refused.value)


def test_images_of_types_that_are_not_read_are_named(tmp_path, caplog):
    photos(tmp_path, "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"x")
    (tmp_path / "annotations.json").write_text(json.dumps(coco("a.png")))
    read(tmp_path)
    assert "1 images of types that are not read are left out, such as b.HEIC" in caplog.text
