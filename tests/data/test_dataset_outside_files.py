"""Tests of `dataset_outside_files`."""

import numpy as np
import pyarrow.parquet
import pytest
from datasets import Features, Value
from datasets import Image as ImageColumn

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from tests import datasets_on_disk as make
from tests.tiny import tiny_model


@pytest.fixture
def saved(tmp_path):
    tiny_model(num_labels=1, id2label={0: "cat"}).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(task="instance", size={"height": 64, "width": 64}, threshold=0.0).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def test_pictures_outside_of_the_data_set_are_not_read(tmp_path, saved):
    make.photo().save(tmp_path / "private.png")
    folder = tmp_path / "data"
    (folder / "data").mkdir(parents=True)
    (folder / "id2label.json").write_text('{"0": "cat"}')
    features = Features({"image": ImageColumn(), "objects": Value("string")})
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


def semantic_table(folder, file):
    """One row as parquet in a file."""
    make.write(
        folder / "made",
        [{"image": make.photo(), "label": make.photo(mode="L").point(lambda value: 0)}],
        {"image": ImageColumn(), "label": ImageColumn()},
        {},
    )
    (table,) = (folder / "made").rglob("*.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    table.rename(file)


def test_tables_outside_of_the_data_set_are_not_read(tmp_path):
    semantic_table(tmp_path, tmp_path / "secret" / "train.parquet")
    linked, named = tmp_path / "linked", tmp_path / "named"
    for folder in (linked, named):
        (folder / "data").mkdir(parents=True)
        (folder / "id2label.json").write_text('{"0": "a", "1": "b"}')
    (linked / "data" / "train.parquet").symlink_to(tmp_path / "secret" / "train.parquet")
    path = tmp_path / "secret" / "train.parquet"
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n---\n"
    (named / "x.csv").write_text("a,b\n1,2\n")
    (named / "README.md").write_text(card.format(path))
    for folder in (linked, named):
        arguments = DataArguments(dataset_name=str(folder), task="semantic")
        with pytest.raises(ValueError, match=r"outside of the dataset.*; --allow_outside_files reads such"):
            open_dataset(arguments, "train")
        arguments.allow_outside_files = True
        assert len(open_dataset(arguments, "train")) == 1
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    (named / "README.md").write_text(f"---\n{bomb}configs: *a9\n---\n")
    with pytest.raises(ValueError, match=r"The YAML of .*README\.md has aliases, which are not read"):
        open_dataset(DataArguments(dataset_name=str(named), task="semantic"), "train")


def test_side_files_that_are_links_are_not_read(tmp_path):
    """Nor written into the prepared dataset, unless the flag allows it."""
    (tmp_path / "private.json").write_text('{"0": "secret", "1": "name"}')
    folder = make.semantic(tmp_path / "data", [np.eye(2, dtype=np.uint8).repeat(20, 0).repeat(30, 1)])
    (folder / "id2label.json").unlink()
    (folder / "id2label.json").symlink_to(tmp_path / "private.json")
    argv = ["prepare", str(folder), str(tmp_path / "prepared"), "--task", "semantic", "--splits", "train"]
    with pytest.raises(SystemExit, match=r"id2label.json leads to .*private.json, outside of the dataset"):
        mpformer(argv)
    assert not (tmp_path / "prepared").exists()
    mpformer([*argv, "--allow_outside_files"])
    assert "secret" in (tmp_path / "prepared" / "id2label.json").read_text()
