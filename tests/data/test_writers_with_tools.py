"""Files of annotation tools, read by the tools' own libraries where they are installed:

pip install label-studio-sdk datumaro labelme
"""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from mpformer_hf.data.result_names import result_names
from mpformer_hf.data.writers.format import Category, ImageRecord, describe_segments
from mpformer_hf.data.writers.registry import make_writers

FILES = ["day 1/a.png", "day 2/a.png", "b.png"]
NAMES = {0: "cat", 1: "dog"}


@pytest.fixture
def written(tmp_path):
    """Photos and files of all tools; masks by image and class."""
    rng, records, masks = np.random.default_rng(0), [], {}
    categories = [Category(label, name, True) for label, name in NAMES.items()]
    writers = make_writers(["labelme", "label_studio", "cvat"], tmp_path, "instance", categories, 0.5)
    for number, (file, name) in enumerate(zip(FILES, result_names(FILES), strict=True), start=1):
        (tmp_path / "labelme" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "labelme" / file)
        found = np.zeros((2, 40, 60), dtype=bool)
        found[0, 3:20, 5:30] = rng.random((17, 25)) < 0.8
        found[1, 25:39, 31:59] = True
        rows = [{"id": i + 1, "label_id": i, "score": 0.9} for i in NAMES]
        result = {"segmentation": torch.from_numpy(found), "segments_info": rows}
        records.append(ImageRecord(number, file, name, 40, 60, describe_segments(result, "instance", NAMES)))
        masks[file] = dict(zip(NAMES.values(), found, strict=True))
        for writer in writers:
            writer.write(records[-1], result)
    for writer in writers:
        writer.finish(records)
    return tmp_path, masks


def test_label_studio(written):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    folder, masks = written
    for task in json.loads((folder / "label_studio.json").read_text()):
        for row in task["predictions"][0]["result"]:
            mask = brush.decode_rle(row["value"]["rle"]).reshape(40, 60, 4)[..., 3] > 127
            np.testing.assert_array_equal(mask, masks[task["data"]["image"]][row["value"]["brushlabels"][0]])


def test_datumaro(written):
    datumaro = pytest.importorskip("datumaro")
    folder, masks = written
    (folder / "images").mkdir()
    (folder / "labelme").rename(folder / "images" / "default")
    dataset = datumaro.Dataset.import_from(str(folder), "coco_instances")
    names = dataset.categories()[datumaro.AnnotationType.label]
    found = {f"{item.id}.png": item.annotations for item in dataset}
    assert found.keys() == masks.keys()
    for file, annotations in found.items():
        rows = [row for row in annotations if hasattr(row, "image")]  # and not its box
        assert len(rows) == 2
        for row in rows:
            np.testing.assert_array_equal(row.image.astype(bool), masks[file][names[row.label].name])


def test_labelme(written):
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    label_file = pytest.importorskip("labelme._label_file")
    folder, masks = written
    for file, expected in masks.items():
        opened = label_file.LabelFile(str((folder / "labelme" / file).with_suffix(".json")))
        assert opened.image_data and len(opened.shapes) == 2, "with the image beside it"
        for shape in opened.shapes:
            (x0, y0), (x1, y1) = np.array(shape["points"]).astype(int)
            mask = np.zeros((40, 60), dtype=bool)
            mask[y0 : y1 + 1, x0 : x1 + 1] = shape["mask"]
            np.testing.assert_array_equal(mask, expected[shape["label"]])
