"""What a split has, against counts that were made by hand; what looks wrong is named with a remedy."""

import io
import json

import numpy as np
import pytest
from datasets import Image as ImageColumn
from datasets import Value
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.census import take_census
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.training import finetune
from tests import datasets_on_disk as make
from tests.runs import flags


def box(x, y, width, height, category=0, **more):
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {"category_id": category, "segmentation": [polygon], **more}


def objects(folder, rows, images=None, names=("cat", "dog")):
    """A dataset of objects, as tables have them."""
    images = images or [make.photo() for _ in rows]
    table = [{"image": image, "objects": json.dumps(row)} for image, row in zip(images, rows, strict=True)]
    features = {"image": ImageColumn(), "objects": Value("string")}
    return make.write(folder, table, features, {"id2label.json": dict(enumerate(names))})


def census_of(folder, task="instance", **options):
    return take_census(open_dataset(DataArguments(dataset_name=str(folder), task=task), "train"), task, **options)


def test_counts_of_objects(tmp_path):
    rows = [[box(0, 0, 10, 5), box(20, 0, 10, 10), box(0, 20, 4, 4, iscrowd=1)], [box(70, 50, 5, 5), box(1, 1, 6, 5)]]
    census = census_of(objects(tmp_path / "d", rows))
    lines = list(census.table())
    assert lines[0] == "images    2, 2 read; 60x40 pixels; RGB (2); 0 turned by EXIF"
    assert lines[1] == "objects   3, 1.5 an image (1 to 2); 1 crowd, 1 without pixels"
    share = 100 * (50 + 100 + 30) / (2 * 2400)
    assert lines[2:] == [
        f"class 0   cat: 3 objects, {share:.1f} % of the pixels, 2 images",
        "class 1   dog: 0 objects, 0.0 % of the pixels, 0 images",
    ]
    assert list(census.doubts()) == [
        "1 object covers no pixel, and is not trained on: look at the coordinates",
        "1 class does not occur: dog",
    ]
    assert census.crowding(2) is None and census.crowding(1).startswith("1 of 2 images have more objects (up to 2)")


def test_counts_of_maps_and_void(tmp_path):
    first, second = np.full((40, 60), 255, np.uint8), np.full((40, 60), 255, np.uint8)
    first[:10], second[:5] = 0, 2
    census = census_of(make.semantic(tmp_path / "d", [first, second]), "semantic")
    lines = list(census.table())
    assert lines[1] == "void      81.2 % of the pixels"
    assert lines[2] == "class 0   road: 12.5 % of the pixels, 1 image"
    assert next(census.doubts()) == "81 % of the pixels are void: is 255, or the void label, a class?"


def test_dark_turned_long_and_tiny(tmp_path):
    dark = Image.fromarray(np.full((40, 60), 4000, dtype=np.uint16))
    turned = make.photo()
    turned.getexif()[274] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=turned.getexif())
    images = [dark, {"bytes": buffer.getvalue(), "path": None}, Image.new("RGB", (300, 10))]
    rows = [[box(0, 0, 1, 1, 1), box(5, 5, 1, 1)], [box(1, 1, 1, 1)], [box(2, 2, 1, 1)]]
    census = census_of(objects(tmp_path / "d", rows, images))
    about = next(census.table())
    assert "1 turned by EXIF" in about and "I;16 (1)" in about
    told = list(census.doubts())
    assert told[0].startswith("most objects have fewer than 4 pixels")
    assert told[1] == "1 image is long and narrow, such as 300x10: cut them into tiles"
    assert told[2] == "1 image is turned by EXIF data: are the labels too? `mpformer check --output` draws them"
    assert told[3].startswith("1 16-bit image has no value above 4000 and would be nearly black")


def test_a_sample_is_from_all_over_and_goes_on_until_there_is_an_object(tmp_path):
    folder = objects(tmp_path / "d", [[] for _ in range(9)] + [[box(0, 0, 5, 5)]])
    census = census_of(folder, sample=2)
    assert len(census.facts) == 10 and census.images == 10
    folder = objects(tmp_path / "e", [[box(0, 0, 5, 5)] for _ in range(10)])
    census = census_of(folder, sample=2)
    assert len(census.facts) == 2 and not list(census.doubts())  # a class may occur in the other images
    folder = objects(tmp_path / "f", [[] for _ in range(3)])
    with pytest.raises(ValueError, match="None of the 3 images has an object that is trained on"):
        census_of(folder)


def test_the_command_and_the_training_print_it(tmp_path, capsys, caplog):
    folder = objects(tmp_path / "d", [[box(0, 0, 10, 5), box(9, 9, 9, 9)], [box(70, 50, 5, 5), box(1, 1, 6, 5)]])
    mpformer(["check", str(folder), "--task", "instance", "--splits", "train", "--output", str(tmp_path / "pictures")])
    told = capsys.readouterr().out
    assert "objects   3, 1.5 an image" in told and "look: 1 object covers no pixel" in told
    assert "3 things to look at" in told and Image.open(tmp_path / "pictures" / "train" / "0001.png").height >= 40
    argv = flags(folder, tmp_path / "run", task="instance", eval_split="train", max_train_steps=1)
    fields = json.loads(argv[1])
    argv[1] = json.dumps({**fields, "num_queries": 1})
    with caplog.at_level("INFO"):
        finetune.main(argv)
    assert "objects   3, 1.5 an image" in caplog.text and "1 object covers no pixel" in caplog.text
    assert "more objects (up to 2) than the model has queries (1)" in caplog.text


def test_objects_that_are_cut_and_crowds_only(tmp_path):
    census = census_of(objects(tmp_path / "d", [[box(50, 0, 40, 40), box(0, 0, 9, 9)], [box(1, 1, 58, 38)]]))
    assert (
        "1 object reaches beyond its image and is cut off: were the images resized after annotation?" in census.doubts()
    )
    crowds = [[box(0, 0, 9, 9, iscrowd=1)], [box(0, 0, 9, 9, iscrowd=1)]]
    with pytest.raises(ValueError, match=r"None of the 2 images .* trained on: 2 are crowds"):
        census_of(objects(tmp_path / "crowds", crowds))


def test_repeated_objects_and_classes_that_look_alike(tmp_path):
    rows = [[box(0, 0, 9, 9), box(3, 3, 20, 9), box(0, 0, 9, 9)], [box(0, 0, 9, 9)]]
    census = census_of(objects(tmp_path / "d", rows))
    assert "1 object has the pixels and the class of another one: were files joined twice?" in census.doubts()
    census.names = ["cat", " Cat", "dog"]
    assert "class names differ only in spaces or capitals, and may be one class: 'cat', ' Cat'" in census.doubts()


def test_images_that_are_too_narrow_are_named_before_training(tmp_path):
    census = census_of(objects(tmp_path / "d", [[box(0, 0, 9, 2)]], [Image.new("RGB", (300, 2))]))
    census.check_shapes(MPFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 200}), "val")
    processor = MPFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    with pytest.raises(ValueError, match="val: the image is 300x2 pixels, too narrow for a longest edge of 128"):
        census.check_shapes(processor, "val")
