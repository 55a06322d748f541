"""A stranger's data set: nothing is written outside of the output folder, nothing outside of the data set is read."""

import io
import json
import os
import stat

import pyarrow.parquet
import pytest
from datasets import Features, Image, Value

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.data.result_names import path_inside, result_name, result_names
from mpformer_hf.images import open_image
from mpformer_hf.publishing import files_to_publish
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
    features = {"image": Image(), "image_id": Value("string"), "file_name": Value("string"), "objects": Value("string")}
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
    mpformer(["evaluate", "--model_name_or_path", str(saved), *data, *formats])
    mpformer(["predict", str(saved), str(hostile), str(tmp_path / "out" / "predict"), "--split", "train"])
    new = files_in(tmp_path) - before
    assert new and all(file.startswith("out/") for file in new)
    assert (tmp_path / "x.txt").read_text() == "the user's own"
    labels = [file for file in new if "/labels/" in file and file.endswith(".txt")]
    assert len(labels) == len(ESCAPES), "each image has its own file"


# --- Reading ---


def test_pictures_outside_of_the_data_set_are_not_read(tmp_path, saved):
    make.photo().save(tmp_path / "private.png")
    folder = tmp_path / "data"
    (folder / "data").mkdir(parents=True)
    (folder / "id2label.json").write_text('{"0": "cat"}')
    features = Features({"image": Image(), "objects": Value("string")})
    rows = [
        {"image": {"bytes": None, "path": str(tmp_path / "private.png")}, "objects": "[]"},
        {"image": {"bytes": None, "path": "../private.png"}, "objects": "[]"},
    ]
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, folder / "data" / "train.parquet")
    arguments = DataArguments(dataset_name=str(folder), task="instance")
    for index in range(2):
        with pytest.raises(ValueError, match=rf"Row {index} .*outside of the dataset {folder}; --allow_outside_files"):
            open_dataset(arguments, "train")[index]
    with pytest.raises(SystemExit, match="outside of the dataset"):
        mpformer(["prepare", str(folder), str(tmp_path / "prepared"), "--task", "instance", "--splits", "train"])
    assert not (tmp_path / "prepared").exists()
    arguments.allow_outside_files = True
    assert open_dataset(arguments, "train")[0][0].shape == (3, 40, 60)


@pytest.mark.parametrize("what", ["image", "label", "folder"])
def test_links_that_leave_the_data_set(what, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "data"
    for kind in ("images", "masks"):
        (outside / kind).mkdir(parents=True)
        (folder / kind).mkdir(parents=True)
        make.photo(mode="RGB" if kind == "images" else "L").point(lambda value: 0).save(outside / kind / "a.png")
    linked = {"image": ["images"], "label": ["masks"], "folder": ["images", "masks"]}[what]
    for kind in ("images", "masks"):
        if what == "folder":
            (folder / kind).rmdir()
            (folder / kind).symlink_to(outside / kind)
        elif kind in linked:
            (folder / kind / "a.png").symlink_to(outside / kind / "a.png")
        else:
            (folder / kind / "a.png").write_bytes((outside / kind / "a.png").read_bytes())
    (folder / "id2label.json").write_text('{"0": "road", "1": "car"}')
    arguments = DataArguments(dataset_name=str(folder), task="semantic")
    with pytest.raises(ValueError, match="outside of the dataset"):
        open_dataset(arguments, "train")[0]
    arguments.allow_outside_files = True
    assert open_dataset(arguments, "train")[0][1].classes == {0: 0}
    (tmp_path / "link").symlink_to(outside)  # a link to the data set as a whole is the user's own
    (outside / "id2label.json").write_text('{"0": "road", "1": "car"}')
    arguments = DataArguments(dataset_name=str(tmp_path / "link"), task="semantic")
    assert open_dataset(arguments, "train")[0][1].classes == {0: 0}


# --- Opening images ---


def test_only_known_types_are_opened(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(eps)
    for source in (tmp_path / "a.png", io.BytesIO(eps)):
        with pytest.raises(ValueError, match=r"not an image file \(PNG, JPEG"):
            open_image(source)


def test_damaged_files_of_every_type_have_one_kind_of_error(tmp_path):
    photo, formats = make.photo(40, 60), ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
    for name in formats:
        buffer = io.BytesIO()
        photo.save(buffer, name)
        assert open_image(io.BytesIO(buffer.getvalue())).size == (60, 40)
        for content in (buffer.getvalue()[: len(buffer.getvalue()) // 2], buffer.getvalue()[:40] + b"\xff" * 999):
            with pytest.raises(ValueError, match=r"it (cannot be decoded|is not an image file|has more than)"):
                open_image(io.BytesIO(content))


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    assert stat.S_ISFIFO(os.stat(tmp_path / "x.png").st_mode)
    with pytest.raises(ValueError, match="there is no such file"):
        open_image(tmp_path / "x.png")


# --- What is written to a terminal, published, and read as YAML ---


def test_names_do_not_change_the_terminal(saved, tmp_path, capsys):
    make.photo().save(tmp_path / "good.png")
    (tmp_path / "\x1b]0;title\x07\x1b[2J.png").write_text("no image")
    mpformer(["predict", str(saved), str(tmp_path), str(tmp_path / "out"), "--formats"])
    told = capsys.readouterr()
    assert not {"\x1b", "\x07"} & set(told.err + told.out)
    with pytest.raises(SystemExit) as stopped:
        mpformer(["predict", str(saved), str(tmp_path / "\x1b[2J"), str(tmp_path / "other")])
    assert "\x1b" not in str(stopped.value)


def test_a_class_name_with_a_line_break_is_drawn(tmp_path):
    tiny_model(num_labels=2, id2label={0: "a\nb", 1: "\x1b[2J"}).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(task="semantic", size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    make.photo().save(tmp_path / "photo.png")
    mpformer(["predict", str(tmp_path / "model"), str(tmp_path / "photo.png"), str(tmp_path / "out")])
    assert (tmp_path / "out" / "overlays" / "photo.png").is_file()


def test_links_are_not_published(saved, tmp_path):
    (tmp_path / "key").write_text("secret")
    (saved / "other.safetensors").write_bytes(b"not of this model")
    assert {file.name for file in files_to_publish(saved)} == {
        *("config.json", "preprocessor_config.json", "model.safetensors")
    }
    (saved / "README.md").symlink_to(tmp_path / "key")
    with pytest.raises(ValueError, match=r"is a link to .*key, which is not in"):
        files_to_publish(saved)


def test_a_snapshot_of_the_hub_is_published(saved, tmp_path):
    snapshot = tmp_path / "models--me--model" / "snapshots" / "abc"
    blobs = tmp_path / "models--me--model" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for number, file in enumerate(saved.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert len(files_to_publish(snapshot)) == 3


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "names: *a9\ntrain: images\n", "names of classes must be texts"),
        (BOMB + "names: [cat]\npath: *a9\ntrain: images\n", "path must be the name of a folder"),
        (BOMB + "names: [cat]\ntrain: *a9\n", "train must be a path or a list of paths"),
        ("names: [cat]\ntrain: /dev/zero\n", "train is /dev/zero, which does not exist"),
        ("names: " + 2000 * "[" + 2000 * "]", "cannot be read as YAML"),
        ("names: [cat]\ntrain: images\n#" + (1 << 20) * " ", "not a file of at most 1 MiB"),
    ],
)
def test_yaml_files_that_do_not_end(text, message, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    make.photo().save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        open_dataset(DataArguments(dataset_name=str(tmp_path), task="instance"), "train")
    assert len(str(refused.value)) < 500
