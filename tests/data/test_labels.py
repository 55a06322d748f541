"""Tests of `labels`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.training.arguments import TransformArguments
from mpformer_hf.training.building import build_processor
from tests import datasets_on_disk as make
from tests import official_folders
from tests.datasets_on_disk import opened
from tests.tiny import tiny_model


def saved_model(folder: Path, names: list[str], **fields) -> Path:
    tiny_model(num_labels=len(names), id2label=dict(enumerate(names))).save_pretrained(folder)
    MPFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, **fields).save_pretrained(folder)
    return folder


def test_the_palette_of_a_dataset_is_that_of_its_pictures(tmp_path):
    folder = official_folders.cityscapes(tmp_path / "data")
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
    folder = official_folders.coco_panoptic(tmp_path / "data")
    for file in folder.rglob("panoptic_*.json"):
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["color"] = color
        file.write_text(json.dumps(content))
    palette = opened(folder, "panoptic").labels.palette
    assert palette == ([expected] * len(palette) if expected else None) if palette else expected is None


@pytest.mark.parametrize(
    "names", [["a"], "x", {"x": "a"}, {"0": None}, {"0": 3}, {"0": "a", "00": "b"}, {"-1": "a"}, {}]
)
def test_names_of_a_dataset_are_checked(names, tmp_path):
    folder = make.semantic(tmp_path / "d", [np.zeros((40, 60), dtype=np.uint8)])
    (folder / "id2label.json").write_text(json.dumps(names))
    for option in (None, str(folder / "id2label.json")):
        with pytest.raises(ValueError, match=r"id2label\.json"):
            open_dataset(DataArguments(dataset_name=str(folder), task="semantic", id2label=option), "train")


def test_tables_of_names_that_differ_between_rows_are_refused(tmp_path):
    folder = make.instance_maps(tmp_path / "d")
    from datasets import concatenate_datasets, load_dataset

    rows = load_dataset(str(folder), split="train")
    other = rows.map(lambda _: {"semantic_class_to_id": {"background": 0, "cat": 2, "dog": 1}}, features=rows.features)
    concatenate_datasets([rows, other]).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="Row 1: semantic_class_to_id is not that of row 0"):
        open_dataset(DataArguments(dataset_name=str(folder), task="instance"), "train")
