"""`mpformer refine`: boxes of a COCO file become masks; broken annotations are listed; runs resume."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_fill_holes

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.coco_masks import decode_segmentation
from mpformer_hf.data.layouts.coco import read_coco_json
from mpformer_hf.data.layouts.yolo import read_labels_file
from mpformer_hf.data.layouts.yolo_boxes import read_class_names
from mpformer_hf.data.segments import from_objects
from mpformer_hf.inference.loading import load_model, load_processor
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.cleaning import clean_mask
from mpformer_hf.model.images import read_image
from mpformer_hf.model.label_maps import encode_rle
from mpformer_hf.prompts.refining import prompt_of
from tests import datasets_on_disk as make
from tests.datasets_on_disk import opened
from tests.tiny import tiny_model

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "unicorn"}]


@pytest.fixture
def files(tmp_path):
    """A model, two photographs, and a file with boxes, a polygon, a crowd and broken annotations."""
    torch.manual_seed(0)
    tiny_model(id2label={0: "cat", 1: "dog"}, num_labels=2, decoder_layers=3).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    images = [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(("a.png", "b.png"))]
    polygon = [[10, 10, 30, 10, 30, 25, 10, 25]]
    crowd = {"size": [40, 60], "counts": [0, 100, 2300]}
    rows = [
        {"image_id": 0, "category_id": 7, "bbox": [5, 5, 20, 20], "note": "kept"},
        {"image_id": 0, "category_id": 9, "bbox": [30, 10, 20, 20], "segmentation": []},
        {"image_id": 0, "category_id": 7, "bbox": [10, 10, 20, 15], "segmentation": polygon},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 3, 40], "segmentation": crowd, "iscrowd": 1},
        {"image_id": 1, "category_id": 7, "bbox": [70, 0, 5, 5]},
        {"image_id": 1, "category_id": 7},
    ]
    content = {
        "images": images,
        "categories": CATEGORIES,
        "annotations": [{"id": i, **row} for i, row in enumerate(rows)],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path, content


def run(folder, *flags):
    names = (folder / name for name in ("model", "boxes.json", "photos", "out"))
    mpformer(["refine", *map(str, names), *flags])
    return json.loads((folder / "out" / "annotations.json").read_text())


def test_boxes_become_masks(files, capsys):
    folder, before = files
    after = run(folder, "--overlays")
    output = capsys.readouterr()
    assert "the model has no class unicorn" in output.err
    assert "b.png: annotation 4: Box 0 is outside of the image" in output.err
    assert "b.png: annotation 5: has neither a mask nor a box" in output.err
    assert "3 of 6 annotations refined, 2 with problems" in output.out
    assert after["images"] == before["images"] and after["categories"] == CATEGORIES
    rows = after["annotations"]
    assert rows[3:] == before["annotations"][3:] and rows[0]["note"] == "kept"
    for row in rows[:3]:
        mask = coco_mask.decode(coco_mask.frPyObjects(row["segmentation"], 40, 60))
        y, x = np.nonzero(mask)
        assert row["area"] == mask.sum() > 0
        assert row["bbox"] == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
        assert 0 <= row["score"] <= 1 and row["predicted_category"] in ("cat", "dog")
    predictor = Predictor(load_model(str(folder / "model")).eval(), load_processor(str(folder / "model")))
    given = torch.zeros(3, 40, 60)
    given[0, 5:25, 5:25], given[1, 10:30, 30:50], given[2, 10:25, 10:30] = 1, 1, 1
    limits = [[3, 3, 27, 27], [28, 8, 52, 32], [0, 0, 60, 40]]  # boxes enlarged by a tenth, none for the polygon
    photo = read_image(folder / "photos" / "a.png")
    expected = predictor.refine(photo, masks=given, labels=[0, -1, 0], limits=limits)
    assert [row["segmentation"] for row in rows[:3]] == [encode_rle(mask.numpy()) for mask in expected["segmentation"]]
    assert sorted(file.name for file in (folder / "out" / "overlays").iterdir()) == ["a_0.png", "b_1.png"]


def test_photos_are_found_as_training_finds_them(files):
    folder, before = files
    expected = run(folder)
    for image, name in zip(before["images"], ("images/a.png", "C:\\photos\\b.png"), strict=True):
        image["file_name"] = name
    (folder / "boxes.json").write_text(json.dumps(before))
    shutil.rmtree(folder / "out")
    assert run(folder)["annotations"] == expected["annotations"]


def test_it_resumes_and_refuses_other_settings(files):
    folder, _ = files
    first = run(folder)
    done = folder / "out" / "results" / "0.json"
    stamp = done.stat().st_mtime_ns
    (folder / "out" / "annotations.json").unlink()
    (folder / "out" / "results" / "1.json").unlink()
    assert run(folder) == first and done.stat().st_mtime_ns == stamp
    done.write_text(done.read_text()[:50])  # truncated
    assert run(folder) == first
    stamp = done.stat().st_mtime_ns
    photo = Image.open(folder / "photos" / "b.png")
    Image.fromarray(255 - np.array(photo)).save(folder / "photos" / "b.png")  # another picture under its name
    old = json.loads((folder / "out" / "results" / "1.json").read_text())
    run(folder)
    new = json.loads((folder / "out" / "results" / "1.json").read_text())
    assert new["pixels_sha256"] != old["pixels_sha256"] and done.stat().st_mtime_ns == stamp
    with pytest.raises(SystemExit, match="has results of another rounds"):
        run(folder, "--rounds", "2")
    (folder / "photos" / "b.png").unlink()
    with pytest.raises(SystemExit, match=r"photos has no b.png; 1 of 2 are missing"):
        run(folder)


def test_what_is_refined_is_the_mask_or_the_box():
    triangle = {"bbox": [10, 10, 20, 15], "segmentation": [[10, 10, 30, 10, 10, 25]]}
    given, limit = prompt_of(triangle, (40, 60), boxes_only=True)
    assert given.sum() == 20 * 15 and limit.tolist() == [8, 8.5, 32, 26.5]
    given, limit = prompt_of(triangle, (40, 60), boxes_only=False)
    assert 0.4 < given.sum() / (20 * 15) < 0.6 and limit.tolist() == [0, 0, 60, 40]
    with pytest.raises(ValueError, match="has an RLE of 9x9, the image is 40x60"):
        prompt_of({"segmentation": {"size": [9, 9], "counts": [0, 81]}}, (40, 60), boxes_only=False)


@pytest.mark.parametrize(
    "mask, message",
    [
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "far outside of the image"),
        ({"size": [40, 60], "counts": [10, 5]}, "has an RLE of 15 pixels"),
        ({"size": [40, 60]}, "without size and counts"),
        ("abc", "neither polygons nor RLE"),
    ],
)
def test_broken_masks_are_listed(files, capsys, mask, message):
    folder, content = files
    content["annotations"][2]["segmentation"] = mask
    (folder / "boxes.json").write_text(json.dumps(content))
    after = run(folder)["annotations"]
    assert "annotation 2: has a" in (error := capsys.readouterr().err) and message in error
    assert after[2] == content["annotations"][2]


def test_files_that_do_not_fit(files):
    folder, content = files
    rows = content["annotations"]
    for changed, message in (
        ({"annotations": [{**row, "id": 1} for row in rows]}, "annotations must have different ids"),
        ({"annotations": [{k: v for k, v in row.items() if k != "id"} for row in rows]}, "must have different ids"),
        (
            {"images": [*content["images"], {**content["images"][1], "id": "1", "file_name": "c.png"}]},
            "images must have different ids",
        ),
        ({"annotations": [{**rows[0], "file_name": "a.png", "segments_info": []}]}, "has panoptic annotations"),
    ):
        (folder / "boxes.json").write_text(json.dumps({**content, **changed}))
        with pytest.raises(SystemExit, match=message):
            run(folder)
        assert not (folder / "out" / "annotations.json").exists()


def test_images_that_cannot_be_refined_do_not_end_the_others(files, capsys):
    folder, content = files
    (folder / "photos" / "b.png").write_bytes(b"no image")
    refined = run(folder)["annotations"]
    assert "skipped b.png: " in (told := capsys.readouterr().err) and "b.png: it is not an image file" in told
    assert len(refined) == len(content["annotations"]) and all("score" in row for row in refined[:3])


def test_invalid_options_leave_nothing_behind(files):
    folder, _ = files
    for flags, message in ((["--rounds", "0"], "rounds must be"), (["--scale", "0"], "scale must be")):
        with pytest.raises(SystemExit, match=message):
            run(folder, *flags)
        assert not (folder / "out").exists()
    names = (folder / name for name in ("model", "boxes.json", "photos", "photos/out"))
    with pytest.raises(SystemExit, match="is in the folder of the images"):
        mpformer(["refine", *map(str, names)])
    tiny_model(num_labels=2, mask_piloting=False).save_pretrained(folder / "model")
    with pytest.raises(SystemExit, match="has no pilot"):
        run(folder)
    assert not (folder / "out").exists()


def test_formats_of_annotation_tools_have_the_refined_masks(files, capsys):
    """Also what is a duplicate, since somebody annotated it; crowds and what has no mask are left out."""
    folder, content = files
    content["annotations"].insert(1, {**content["annotations"][0], "id": 10})
    kept = {**content["annotations"][3], "id": 11, "image_id": 1, "bbox": [70, 0, 5, 5], "score": "0.9"}
    content["images"].append({"id": 2, "file_name": "c.png", "height": 400, "width": 600})  # as before a resize
    shutil.copy(folder / "photos" / "b.png", folder / "photos" / "c.png")
    content["annotations"] += [kept, {**kept, "id": 12, "image_id": 2, "bbox": [5, 5, 20, 20]}]
    (folder / "boxes.json").write_text(json.dumps(content))
    after = run(folder, "--boxes_only", "--formats", "labelme", "label_studio", "cvat", "yolo")
    assert f"file: {folder / 'out' / 'label_studio.json'}" in capsys.readouterr().out
    expected = [decode_segmentation(row["segmentation"], 40, 60) for row in after["annotations"][:4]]
    names = ["cat", "cat", "unicorn", "cat"]
    shutil.copy(folder / "photos" / "a.png", folder / "out" / "labelme" / "a.png")
    shutil.copy(folder / "photos" / "b.png", folder / "out" / "labelme" / "b.png")
    assert sorted(path.name for path in (folder / "out" / "labelme").glob("*.json")) == ["a.json", "b.json"]
    tasks = json.loads((folder / "out" / "label_studio.json").read_text())
    accepted = [{**task, "annotations": task["predictions"]} for task in tasks]  # as somebody does in Label Studio
    (folder / "out" / "label_studio.json").write_text(json.dumps(accepted))
    for place in ("labelme", "label_studio.json", "annotations/instances_default.json"):
        alone = folder / "read" / place.split("/")[0]
        shutil.copytree(folder / "photos", alone)
        copied = folder / "out" / place
        shutil.copytree(copied, alone, dirs_exist_ok=True) if copied.is_dir() else shutil.copy(copied, alone)
        dataset = opened(alone)
        segments = dataset[0][1]
        layers = segments.map.view(-1, 40, 60)
        masks = [(layers == i).any(0).numpy() for i in segments.classes]
        assert [dataset.labels.names[label] for label in segments.classes.values()] == names
        np.testing.assert_array_equal(masks, expected)
    assert [row.label for row in read_labels_file(folder / "out" / "labels" / "a.txt", 40, 60)] == [0, 0, 1, 0]
    assert len(read_labels_file(folder / "out" / "labels" / "b.txt", 40, 60)) == 1
    (row,) = tasks[1]["predictions"][0]["result"]
    assert row["score"] == 0 and len(tasks) == 2, "what is not refined is to be looked at"
    assert yaml.safe_load((folder / "out" / "data.yaml").read_text())["names"] == {0: "cat", 1: "unicorn"}


def test_small_parts_and_holes_are_removed(files):
    folder, _ = files
    plain = run(folder)
    with pytest.raises(SystemExit, match="min_pixels"):
        run(folder, "--min_pixels", "2400")
    shutil.rmtree(folder / "out")
    for before, after in zip(
        plain["annotations"][:3], run(folder, "--min_pixels", "2400")["annotations"], strict=False
    ):
        masks = [decode_segmentation(row["segmentation"], 40, 60) for row in (before, after)]
        np.testing.assert_array_equal(masks[1], clean_mask(masks[0].astype(bool), 2400))


def test_a_file_for_training_must_have_masks(files):
    folder, content = files
    with pytest.raises(ValueError, match=r"annotations\[0\] has no segmentation"):
        read_coco_json(folder / "boxes.json")
    assert read_coco_json(folder / "boxes.json", masks_required=False) == content


@pytest.fixture
def yolo(files):
    """The photographs with YOLO's labels: a box, one with a confidence, a polygon, and a box outside of the image."""
    folder, _ = files
    labels = folder / "labels"
    labels.mkdir()
    (folder / "data.yaml").write_text("names: [cat, unicorn]\n")
    (labels / "a.txt").write_text("0 0.25 0.375 0.3333333 0.5\n1 0.6666667 0.5 0.3333333 0.5 0.87\n")
    (labels / "b.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6\n1 1.5 0.5 0.1 0.1\n")
    return folder


def test_boxes_of_yolo_become_polygons(yolo, capsys):
    names = [str(yolo / name) for name in ("model", "labels", "photos", "out")]
    mpformer(["refine", *names])
    assert "b.png: annotation 3: Box 0 is outside of the image" in capsys.readouterr().err
    content = json.loads((yolo / "out" / "annotations.json").read_text())
    assert content["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "unicorn"}]
    predictor = Predictor(load_model(str(yolo / "model")).eval(), load_processor(str(yolo / "model")))
    boxes = [[5, 5, 25, 25], [30, 10, 50, 30]]
    expected = predictor.refine(read_image(yolo / "photos" / "a.png"), boxes=boxes, labels=[0, -1])["segmentation"]
    assert [row["segmentation"] for row in content["annotations"][:2]] == [encode_rle(x.numpy()) for x in expected]
    rows = read_labels_file(yolo / "out" / "labels" / "a.txt", 40, 60)
    assert [item.label for item in rows] == [0, 1]
    for item, refined in zip(rows, expected, strict=True):
        mask = from_objects([item], 40, 60).map.numpy() > 0
        filled = binary_fill_holes(refined.numpy())
        assert (mask & filled).sum() > 0.9 * (mask | filled).sum()
    assert len(read_labels_file(yolo / "out" / "labels" / "b.txt", 40, 60)) == 1
    assert "unicorn" in (yolo / "out" / "data.yaml").read_text()


def test_invalid_labels_of_yolo(yolo):
    names = [str(yolo / name) for name in ("model", "labels", "photos", "out")]
    for text, message in (
        ("5 0.5 0.5 0.1 0.1", r"line 1 of .*a.txt has class 5; the classes are \[0, 1\]"),
        ("\n0 0.5 x 0.1 0.1", "line 2 of .*a.txt is not numbers"),
        ("0.5 0.5 0.5 0.1 0.1", "has class 0.5, expected an integer"),
        ("0 0.5 0.5 0.1", "has 3 coordinates"),
        ("0 0.5 0.5 7 0.1 0.2 0.3", "has coordinates outside of 0 to 1"),
        (b"\xff\xfe0", "a.txt cannot be read"),
    ):
        (yolo / "labels" / "a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(SystemExit, match=message):
            mpformer(["refine", *names])
    for text, message in (
        ("names: cones", "has no names"),
        ("names: {-1: cat, 0: dog}", "numbers of at least 0"),
        ("nothing: 1", "has no names"),
    ):
        (yolo / "data.yaml").write_text(text)
        with pytest.raises(SystemExit, match=message):
            mpformer(["refine", *names])
    (yolo / "data.yaml").write_text("names: [cat, unicorn]\n")
    (yolo / "photos" / "a.jpg").write_bytes((yolo / "photos" / "a.png").read_bytes())
    with pytest.raises(SystemExit, match=r"Two images of .* have the labels .*a.txt"):
        mpformer(["refine", *names])
    (yolo / "photos" / "a.jpg").unlink()
    (yolo / "labels" / "a.txt").write_text("")
    photo = (yolo / "photos" / "b.png").read_bytes()
    (yolo / "photos" / "b.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"photos/b.png: .*not an image"):
        mpformer(["refine", *names])
    (yolo / "photos" / "b.png").write_bytes(photo)
    for file in ("a", "b"):
        (yolo / "labels" / f"{file}.txt").unlink()
    with pytest.raises(SystemExit, match=r"labels has no labels of the images in .*photos, such as a.txt"):
        mpformer(["refine", *names])
    assert not (yolo / "out").exists()


def test_classes_of_yolo_without_names_are_those_of_the_model(yolo, capsys):
    (yolo / "data.yaml").unlink()
    mpformer(["refine", *(str(yolo / name) for name in ("model", "labels", "photos", "out"))])
    assert "so its classes are those of the model" in capsys.readouterr().err
    content = json.loads((yolo / "out" / "annotations.json").read_text())
    assert [row["name"] for row in content["categories"]] == ["cat", "dog"]


def test_other_forms_of_yolo(yolo, caplog):
    """Classes in a folder above, ids with gaps, polygons with a confidence, labels without an image."""
    labels = yolo / "labels" / "train"
    labels.mkdir()
    (labels / "a.txt").write_text("7 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6 0.93\n")
    (labels / "lost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (yolo / "data.yaml").write_text("names: {0: unicorn, 7: cat}\n")
    mpformer(["refine", *(str(part) for part in (yolo / "model", labels, yolo / "photos", yolo / "out"))])
    assert "lost.txt has no image; there are 1 of these" in caplog.text
    names = yaml.safe_load((yolo / "out" / "data.yaml").read_text())["names"]
    assert names == {0: "unicorn", **{i: f"class_{i}" for i in range(1, 7)}, 7: "cat"}
    assert [item.label for item in read_labels_file(yolo / "out" / "labels" / "a.txt", 40, 60)] == [7]
    (yolo / "data.yaml").unlink()
    (yolo / "classes.txt").write_text("\ufeffcat \ndog\n\n", encoding="utf-8")
    assert read_class_names(labels) == {0: "cat", 1: "dog"}


def test_values_that_are_not_json_become_null(tmp_path):
    """Python reads and writes NaN, which other programs do not read."""
    tiny_model().save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(task="instance", size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    make.photo().save(tmp_path / "photos" / "a.png")
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 30], "confidence": float("nan")}
    rows = [row, {**row, "id": 2, "bbox": [2, 2, 10**400, 5]}]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": rows}
    content["categories"] = [{"id": 1, "name": "LABEL_1"}]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    names = [str(tmp_path / name) for name in ("model", "boxes.json", "photos", "out")]
    mpformer(["refine", *names])
    written = (tmp_path / "out" / "annotations.json").read_text()
    found = json.loads(written, parse_constant=lambda name: pytest.fail(name))
    assert found["annotations"][0]["confidence"] is None
