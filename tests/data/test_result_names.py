"""Tests of `result_names`."""

import json
import os

import pytest
from datasets import Image as ImageColumn
from datasets import Value

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.result_names import path_inside, result_name, result_names
from mpformer_hf.utils.files import lock_folder
from tests import datasets_on_disk as make
from tests.tiny import tiny_model

ESCAPES = ("../../x", "/etc/x", "..\\..\\x", "a/../../x", "\x1b]0;title\x07", "..", "")


SQUARE = [[1.0, 1.0, 20.0, 1.0, 20.0, 20.0, 1.0, 20.0]]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_of_results_stay_in_their_folder(name, tmp_path):
    safe = result_name(f"{name}.png")
    assert safe.isprintable() and "/" not in safe and "\\" not in safe
    path_inside(tmp_path, "results", f"{safe}.json")
    with pytest.raises(ValueError, match="is not the name of a file"):
        path_inside(tmp_path, "results", "../../x.json")


def test_links_in_an_output_folder_are_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlays").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"out/overlays is a link that leads out of .*out; remove it"):
        path_inside(tmp_path / "out", "overlays", "a.png")
    with pytest.raises(ValueError, match=r"out/overlays is a link that leads out of the output folder; remove it"):
        lock_folder(tmp_path / "out")


def test_names_of_results_are_unique():
    files = ["a/b.png", "a_b.png", "a/b.jpg", "../a/b.png", "c.png"]
    names = result_names(files)
    assert len(set(names)) == len(files) and names[-1] == "c"
    assert result_names(files[::-1]) == names[::-1], "names depend on the order"


@pytest.fixture
def hostile(tmp_path):
    """A data set whose ids and names lead out of the output folder."""
    rows = [
        {
            "image": make.photo(),
            "image_id": name,
            "file_name": name and f"{name}.png",
            "objects": json.dumps([{"category": 0, "segmentation": SQUARE}]),
        }
        for name in ESCAPES
    ]
    features = {
        "image": ImageColumn(),
        "image_id": Value("string"),
        "file_name": Value("string"),
        "objects": Value("string"),
    }
    return make.write(tmp_path / "data", rows, features, {"id2label.json": {"0": "cat"}})


@pytest.fixture
def saved(tmp_path):
    tiny_model(num_labels=1, id2label={0: "cat"}).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(task="instance", size={"height": 64, "width": 64}, threshold=0.0).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def files_in(folder) -> set[str]:
    return {
        os.path.relpath(os.path.join(parent, name), folder) for parent, _, names in os.walk(folder) for name in names
    }


def test_commands_write_below_their_output_only(hostile, saved, tmp_path, capsys):
    (tmp_path / "x.txt").write_text("the user's own")
    before = files_in(tmp_path)
    data = ["--dataset_name", str(hostile), "--eval_split", "train", "--task", "instance"]
    formats = ["--save_predictions", "yolo", "coco", "cvat", "--predictions_dir", str(tmp_path / "out" / "predictions")]
    mpformer(["evaluate", "--model", str(saved), *data, *formats])
    mpformer(["predict", str(saved), str(hostile), str(tmp_path / "out" / "predict"), "--split", "train"])
    new = files_in(tmp_path) - before
    assert new and all(file.startswith("out/") for file in new)
    assert (tmp_path / "x.txt").read_text() == "the user's own"
    labels = [file for file in new if "/labels/" in file and file.endswith(".txt")]
    assert len(labels) == len(ESCAPES), "each image has its own file"


def test_images_of_one_name_in_a_table_get_their_own_results():
    assert (
        result_names(["a.png", "b.png", "a.png"])[1] == "b" and len(set(result_names(["a.png", "a.png", "b.png"]))) == 3
    )
