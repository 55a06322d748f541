"""Details of layouts: names, missing parts, masks of any mode, tools that write them differently."""

import io
import json
import shutil
import struct
import unicodedata
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mpformer_hf.data.segments import merge_by_class, read_map
from mpformer_hf.model.images import is_not_black, open_image, read_image, read_size
from tests import official_folders
from tests.datasets_on_disk import opened


def areas(dataset, index=0):
    """Pixels of each segment of an image."""
    segments = dataset[index][1]
    return sorted(int((segments.map == i).sum()) for i in segments.classes)


@pytest.mark.parametrize(
    "build",
    [
        official_folders.mask_images,
        official_folders.yolo,
        official_folders.labelme,
        official_folders.instance_files,
        official_folders.cityscapes,
    ],
)
def test_hidden_files_are_no_data(build, tmp_path):
    task = "semantic" if build is official_folders.mask_images else "instance"
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
    folder = official_folders.mask_images(tmp_path / "m")
    (folder / "metadata.csv").write_text("file_name,author\n")
    assert len(opened(folder, "semantic")) == 2
    (official_folders.cityscapes(tmp_path / "c") / "metadata.json").write_text("{}")
    assert len(opened(tmp_path / "c", "instance")) == 2


def test_equal_names_get_different_ids(tmp_path):
    for name, where in (("one", "x"), ("two", "y")):
        official_folders.save_photo(tmp_path / name / "images" / "image.png")
        official_folders.save(
            np.full((official_folders.HEIGHT, official_folders.WIDTH), 255, np.uint8),
            tmp_path / name / "masks" / f"{where}.png",
        )
    dataset = opened(tmp_path, "instance")
    assert [dataset.identity(i) for i in range(2)] == [
        ("one/images/image.png", "one/images/image.png", "one_images_image"),
        ("two/images/image.png", "two/images/image.png", "two_images_image"),
    ]
    folder, content = tmp_path / "coco", official_folders.coco_content()
    for image, name in zip(content["images"], ("a/b_c.jpg", "a_b/c.jpg"), strict=True):
        image["file_name"] = name
        official_folders.save_photo(folder / name)
    official_folders.write_json(content, folder / "instances_train.json")
    coco = opened(folder, "instance")
    assert len({coco.identity(i)[2] for i in range(2)}) == 2


def test_a_label_that_is_there_twice_is_refused(tmp_path):
    folder = official_folders.mask_images(tmp_path)
    shutil.copy(folder / "masks" / "train" / "a_mask.png", folder / "masks" / "train" / "a_mask.tif")
    with pytest.raises(ValueError, match=r"a_mask\.tif and a_mask\.png are labels of one name"):
        opened(folder, "semantic")


def test_images_that_are_left_out_are_named(tmp_path, caplog):
    for build, file in (
        (official_folders.mapillary, "training/panoptic/panoptic_2018.json"),
        (official_folders.ade20k_prepared, "ade20k_panoptic_train.json"),
    ):
        folder = build(tmp_path / build.__name__)
        content = json.loads((folder / file).read_text())
        content["annotations"].pop()
        (folder / file).write_text(json.dumps(content))
        caplog.clear()
        assert len(opened(folder, "panoptic")) == 1 and "1 images have no annotation and are left out" in caplog.text
    folder = official_folders.labelme(tmp_path / "labelme")
    official_folders.save_photo(folder / "unlabelled.jpg")
    caplog.clear()
    opened(folder, "instance")
    assert "1 images have no annotation and are left out" in caplog.text
    folder = official_folders.instance_files(tmp_path / "files")
    shutil.rmtree(folder / "0a1b" / "masks")
    dataset = opened(folder, "instance")
    assert "has no masks/: an image without objects" in caplog.text
    assert [len(dataset[i][1].classes) for i in range(2)] == [0, 2]


def test_composed_and_decomposed_names_of_labelme(tmp_path):
    folder = official_folders.labelme(tmp_path)
    name = unicodedata.normalize("NFD", "é.jpg")
    (folder / "a.jpg").rename(folder / name)
    content = json.loads((folder / "a.json").read_text())
    for written in (name, unicodedata.normalize("NFC", name), f"..\\photos\\{name}"):
        (folder / "a.json").write_text(json.dumps({**content, "imagePath": written}))
        assert opened(folder, "instance")[0][1].classes
    (folder / "categories.json").write_text("[]")
    assert len(opened(folder, "instance")) == 2


def test_names_and_classes_of_voc(tmp_path):
    folder = official_folders.pascal_voc(tmp_path)
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
            official_folders.save(np.array([[colors[i] for i in row] for row in values.tolist()], np.uint8), file)
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:::\ncar:255,0,0::\n")
    semantic = opened(folder, "semantic")
    assert semantic.labels.names == ["background", "car"] and areas(semantic)[0] == 400 + 572
    assert semantic.labels.palette == [(0, 0, 0), (255, 0, 0)]
    assert areas(opened(folder, "instance")) == [400, 572]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "1", "P"])
def test_masks_of_any_mode(mode, tmp_path):
    folder = official_folders.instance_files(tmp_path)
    for file in folder.rglob("masks/*.png"):
        with Image.open(file) as image:
            converted = image.convert(mode)
        if mode == "P":  # white first
            converted = image.point(lambda value: 0 if value else 1)
            converted.putpalette([255, 255, 255, 0, 0, 0])
        converted.save(file)
    assert areas(opened(folder, "instance")) == [400, 572]


def test_grey_label_images_of_three_channels(tmp_path):
    folder = official_folders.mask_images(tmp_path)
    expected = areas(opened(folder, "semantic"))
    for file in (folder / "masks").rglob("*.png"):
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        rgb.save(file)
    assert areas(opened(folder, "semantic")) == expected


def test_a_rotated_image_without_objects(tmp_path):
    folder = official_folders.instance_files(tmp_path)
    image = next((folder / "0a1b" / "images").iterdir())
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(image) as opened_image:
        pixels = opened_image.copy()
    pixels.save(image, exif=exif)
    for mask in (folder / "0a1b" / "masks").iterdir():
        mask.unlink()
    pixels, segments = opened(folder, "instance")[0]
    assert pixels.shape[1:] == segments.map.shape == (official_folders.WIDTH, official_folders.HEIGHT)


def labelme_of(folder, shapes, labels=(), **more):
    """One 20x30 image and its JSON; `labels` become labels.txt."""
    folder.mkdir()
    Image.new("RGB", (30, 20)).save(folder / "a.png")
    rows = [{"label": label, "shape_type": "rectangle", "points": points} for label, *points in shapes]
    content = {"shapes": rows, "imagePath": "a.png", "imageData": None, "imageHeight": 20, "imageWidth": 30}
    (folder / "a.json").write_text(json.dumps({**content, **more}))
    if labels:
        (folder / "labels.txt").write_text("\n".join(labels))
    return folder


def test_shapes_of_labelme_are_painted_in_their_order(tmp_path):
    """Each overlaps the one before: in layers of separate objects, the third would be under the second."""
    shapes = [("a", (0, 0), (9, 9)), ("b", (6, 0), (15, 9)), ("c", (12, 0), (21, 9)), ("a", (18, 0), (27, 9))]
    map_ = opened(labelme_of(tmp_path / "d", shapes), "semantic")[0][1].map
    assert map_[4, ::3].tolist() == [1, 1, 2, 2, 3, 3, 1, 1, 1, 0]  # 0: what no shape covers
    objects = opened(tmp_path / "d", "instance")[0][1]
    assert torch.equal(merge_by_class(objects).map, map_ - 1)
    (tmp_path / "d" / "labels.txt").write_text("a\nb\nc\n")
    map_ = opened(tmp_path / "d", "semantic")[0][1].map
    assert map_[4, ::3].tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 0, -1], "without a class for it, it is void"


def test_background_and_ignored_shapes_of_labelme(tmp_path):
    shapes = [("a", (0, 0), (9, 9)), ("__ignore__", (5, 0), (14, 9)), ("_background_", (0, 5), (4, 9))]
    folder = labelme_of(tmp_path / "d", shapes, ["__ignore__", "_background_", "a"])
    semantic = opened(folder, "semantic")
    assert semantic.labels.names == ["_background_", "a"]
    map_ = semantic[0][1].map
    assert map_[2, [0, 7, 12, 20]].tolist() == [1, -1, -1, 0] and map_[7, 2] == 0 and map_[15, 15] == 0
    instance = opened(folder, "instance")
    assert instance.labels.names == ["a"] and list(instance[0][1].classes.values()) == [0]


def test_a_resized_image_of_labelme_is_refused(tmp_path):
    folder = labelme_of(tmp_path / "d", [("a", (0, 0), (9, 9))], imageWidth=60, imageHeight=40)
    with pytest.raises(ValueError, match=r"the image is 20x30, but 40x60 in the annotations"):
        opened(folder, "instance")[0]


def test_a_palette_without_black_has_its_background_at_index_0():
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 255])
    assert is_not_black(image).tolist() == [[False, True], [True, False]]
    image.putpalette([255, 255, 255, 0, 0, 0])
    assert is_not_black(image).tolist() == [[True, False], [False, True]]


def mask_folders(tmp_path, mask: Image.Image, name: str = "a.png", kind: str = "masks"):
    """An image and one mask, as a folder for each image."""
    for part in ("images", kind):
        (tmp_path / "x" / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", mask.size, (9, 9, 9)).save(tmp_path / "x" / "images" / "a.png")
    mask.save(tmp_path / "x" / kind / name)
    return tmp_path


def test_masks_of_one_object_have_one_value(tmp_path):
    values = np.zeros((20, 30), np.uint8)
    values[5:15, 5:25] = 255
    for mask in (Image.fromarray(values), Image.fromarray((values > 0).astype(np.uint16) * 7)):
        assert areas(opened(mask_folders(tmp_path, mask), "instance")) == [200]
    transparent = Image.merge("RGBA", [Image.new("L", (30, 20), 255)] * 3 + [Image.fromarray(values)])
    assert areas(opened(mask_folders(tmp_path, transparent), "instance")) == [200]
    ids = values.copy()
    ids[5:15, 15:25] = 2
    for mask in (ids, np.where(values, 200, values) + (np.arange(30) % 3).astype(np.uint8)):
        with pytest.raises(ValueError, match="values that are not black, expected one: put maps"):
            opened(mask_folders(tmp_path, Image.fromarray(mask)), "instance")[0]
    folder = mask_folders(tmp_path / "lossy", Image.fromarray(values), "a.jpg")
    with pytest.raises(ValueError, match="is a JPEG, whose compression blurs masks"):
        opened(folder, "instance")[0]


def test_soft_masks_are_no_maps_of_ids(tmp_path):
    soft = np.zeros((40, 60), np.uint8)
    soft[5:25, 5:25], soft[5, 5:25] = 255, np.arange(10, 210, 10)
    for kind, values in (("images", soft), ("instances", soft)):
        (tmp_path / kind).mkdir()
        Image.fromarray(values).save(tmp_path / kind / "a.png")
    with pytest.raises(ValueError, match="the label is a soft mask of up to 255, expected ids of objects"):
        opened(tmp_path, "instance")[0]


def test_a_label_image_is_turned_by_its_own_exif_data(tmp_path):
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[274] = 3  # upside down
    for kind, values in (("images", np.stack([labels] * 3, -1)), ("masks", labels)):
        (tmp_path / kind).mkdir()
        Image.fromarray(values).save(tmp_path / kind / "a.png", exif=exif)
    (tmp_path / "id2label.json").write_text(json.dumps({str(i): str(i) for i in range(6)}))
    image, segments = opened(tmp_path, "semantic")[0]
    assert np.array_equal(segments.map.numpy(), image[0].numpy()) and image[0, 0, 0] == 5


@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".png"])
def test_sizes_of_turned_files(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (80, 60)).save(tmp_path / f"a{suffix}", exif=exif)
    assert read_size(tmp_path / f"a{suffix}") == (60, 80)
    assert read_image(tmp_path / f"a{suffix}").shape == (3, 80, 60)


def test_label_images_whose_values_would_change_are_refused(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + b"\0\3" * 9 for _ in range(2))  # RGB of 16 bits, each value 3
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="RGB image of 16 bits, of which only the upper 8 can be read"):
        read_map(open_image(io.BytesIO(png)))
    whole = np.array([[0, 7], [70000, 3]], np.float32)
    Image.fromarray(whole).save(tmp_path / "a.tif")
    assert np.array_equal(read_map(open_image(tmp_path / "a.tif")), whole)
    Image.fromarray(whole + 0.5).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="values of type float32, expected integers"):
        read_map(open_image(tmp_path / "a.tif"))


def test_tables_of_splits_that_differ_are_refused(tmp_path):
    for split, names in (("train", "cat\ndog\n"), ("val", "dog\ncat\n")):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
            Image.new("L", (8, 6), 1).save(tmp_path / split / kind / "a.png")
        (tmp_path / split / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match=r"train/classes\.txt and .*val/classes\.txt differ: one table must be right"):
        opened(tmp_path, "semantic")


def test_voc_without_lists_and_in_folders(tmp_path):
    for part in ("JPEGImages", "SegmentationClass"):
        (tmp_path / part / "f").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "JPEGImages" / "f" / "a.jpg")
    Image.new("L", (8, 6), 1).save(tmp_path / "SegmentationClass" / "f" / "a.png")
    (tmp_path / "class_names.txt").write_text("_background_\ncat\n")
    dataset = opened(tmp_path, "semantic")
    assert dataset.labels.names == ["_background_", "cat"] and (dataset[0][1].map == 1).all()


def test_names_replace_those_of_pascal_voc(tmp_path, caplog):
    folder = official_folders.pascal_voc(tmp_path / "voc")
    caplog.set_level("INFO")
    opened(folder, "semantic")
    assert "has no names of classes (class_names.txt), so they are those of Pascal VOC" in caplog.text
    names = json.dumps({i: f"class {i}" for i in range(21)})
    assert opened(folder, "semantic", id2label=names).labels.names[7] == "class 7"


def test_labelme_without_an_image_and_rectangles(tmp_path, caplog):
    folder = labelme_of(tmp_path / "d", [("a", (0, 0), (9, 9))])
    lost = json.loads((folder / "a.json").read_text()) | {"imagePath": "lost.png", "imageData": None}
    (folder / "lost.json").write_text(json.dumps(lost))
    with pytest.raises(
        ValueError, match=r"1 of 2 images are invalid: .*refers to 'lost.png', which does not exist.*skip"
    ):
        opened(folder, "instance")
    split = opened(folder, "instance", skip_bad_images=True)
    assert len(split) == 1 and len(split.skipped) == 1
    assert "rectangles are read as masks that fill them" in caplog.text


def test_void_flags_that_a_layout_does_not_have_name_the_one_that_it_has(tmp_path):
    folder = official_folders.mask_images(tmp_path)
    for flag in ({"do_reduce_labels": True}, {"void_label": 2}):
        with pytest.raises(
            ValueError, match=f"cannot be read with {next(iter(flag))}.*name the class.*--ignore_labels"
        ):
            opened(folder, "semantic", **flag)
    assert opened(folder, "semantic", ignore_labels=["car"]).labels.names == ["sky", "road"]
