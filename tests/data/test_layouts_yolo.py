"""Tests of `folders_yolo`."""

import shutil

import pytest
import yaml

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from tests import datasets_on_disk as make
from tests import official_folders
from tests.datasets_on_disk import opened


def areas(dataset, index=0):
    """Pixels of each segment of an image."""
    segments = dataset[index][1]
    return sorted(int((segments.map == i).sum()) for i in segments.classes)


def test_yolo_paths_and_names(tmp_path, caplog):
    source = official_folders.yolo(tmp_path / "source")
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
        ("names: [cat]\ntrain: images\nkpt_shape: [17, 3]\n", "its labels are poses, expected polygons"),
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


def test_an_odd_number_of_coordinates_and_folders_outside(tmp_path):
    folder, outside = official_folders.yolo(tmp_path / "data"), official_folders.yolo(tmp_path / "outside")
    file = folder / "train" / "labels" / "a.txt"
    file.write_text(f"{file.read_text().splitlines()[0]} 0.5\n")
    with pytest.raises(ValueError, match="coordinates, an odd number: x or y is missing"):
        split = open_dataset(DataArguments(dataset_name=str(folder), task="instance", train_split="train"), "train")
        [split[row] for row in range(len(split))]
    images = outside / "train" / "images"
    (folder / "data.yaml").write_text(f"train: {images}\nval: {images}\nnames: [a, b, c, d, e]\n")
    with pytest.raises(ValueError, match=r"outside of the dataset .*; --allow_outside_files reads such files"):
        open_dataset(DataArguments(dataset_name=str(folder), task="instance"), "train")
