"""`mpformer compare`: its table has the numbers of `evaluate` and `predict`, its page the images that differ most."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.inference.loading import load_model
from tests.browser import check_page
from tests.official_folders import mask_images
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, the same model exported, and one of another class predictor; and a dataset."""
    folder = tmp_path_factory.mktemp("compared")
    mask_images(folder / "data")
    torch.manual_seed(0)
    model = tiny_model(id2label={0: "sky", 1: "road", 2: "car"}, num_labels=3)
    processor = MPFormerImageProcessor(task="semantic", size={"shortest_edge": 64, "longest_edge": 128}, threshold=0.1)
    for name in ("one", "other"):
        model.save_pretrained(folder / name), processor.save_pretrained(folder / name)
        torch.nn.init.normal_(model.class_predictor.weight)
    shutil.copytree(folder / "one", folder / "copy")
    mpformer(["export", str(folder / "one"), str(folder / "one.pt2"), "--height", "64", "--width", "64"])
    return folder


def test_the_table_and_the_page(models, capsys):
    argv = [models / "data", models / "one", models / "other", models / "copy", models / "one.pt2"]
    outputs = ["--page", models / "page.html", "--output_file", models / "table.json", "--num_pictures", "1"]
    mpformer(["compare", *map(str, [*argv, *outputs]), "--task", "semantic"])
    rows = json.loads((models / "table.json").read_text())
    assert [row["model"] for row in rows] == ["one", "other", "copy", "one.pt2 (torch.export)"]
    for row, name in zip(rows, ("one", "other", "copy", "one.pt2"), strict=True):
        flags = ["--task", "semantic", "--output_file", str(models / f"{name}.json")]
        flags += ["--report", str(models / f"{name}.html")]
        mpformer(["evaluate", str(models / name), str(models / "data"), *flags])
        scores = json.loads((models / f"{name}.json").read_text())
        assert row["score"] == pytest.approx(scores["mean_iou"], abs=1e-4)
        assert ("layer" in (models / f"{name}.html").read_text()) == (name != "one.pt2"), "a file has no layers"
    assert rows[0]["score"] > 0 and abs(rows[0]["score"] - rows[1]["score"]) > 0.001
    assert rows[2]["largest_logit_difference"] == 0 and rows[2]["equal_pixels"] == 1
    assert 0 < rows[3]["largest_logit_difference"] < 1e-4 and rows[3]["equal_pixels"] > 0.999
    assert rows[1]["largest_logit_difference"] > 1 and rows[1]["equal_pixels"] < 0.9
    text = (models / "page.html").read_text()
    shares = [float(share) for share in re.findall(r": ([\d.]+)% of the pixels differ", text)]
    assert len(shares) == 1 and shares[0] / 100 >= (1 - rows[1]["equal_pixels"]) / 3 - 1e-4, "that which differs most"
    assert text.count("data:image/jpeg;base64,") == 5, "truth and four models"
    assert "one.pt2 (torch.export)" in capsys.readouterr().out
    check_page(models / "page.html")


def test_photos_without_labels(models, tmp_path):
    """Shares of equal pixels are those of the maps that `predict` writes; models may have other image sizes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(2):
        Image.effect_noise((90, 70 + 10 * index), 60).save(photos / f"{index}.png")
    shutil.copytree(models / "one", tmp_path / "small")
    small = MPFormerImageProcessor(task="panoptic", size={"shortest_edge": 32, "longest_edge": 64}, threshold=0.1)
    small.save_pretrained(tmp_path / "small")
    names = [models / "one", tmp_path / "small"]
    table = ["--output_file", str(tmp_path / "table.json")]
    mpformer(["compare", str(photos), *map(str, names), "--no_labels", "--task", "semantic", *table])
    row = json.loads((tmp_path / "table.json").read_text())[1]
    maps = []
    for name in names:
        output = tmp_path / f"maps_{name.name}"
        mpformer(["predict", str(name), str(photos), str(output), "--task", "semantic", "--write", "maps"])
        maps.append([np.array(Image.open(output / "maps" / f"{index}.png")) for index in range(2)])
    shares = [np.mean(one == two) for one, two in zip(*maps, strict=True)]
    assert row["equal_pixels"] == pytest.approx(np.mean(shares)) and row["equal_pixels"] < 1
    assert row["score"] is None and row["largest_logit_difference"] is None, "their logits have other shapes"


@pytest.mark.parametrize(
    "names, message",
    [
        (["one"], "There is only .*one: give at least two models"),
        (["one", "fewer"], "has the class|classes"),
        (["one", "other", "--output_file", "one/config.json"], "exists; choose another name"),
        (["one", "nothing"], "Cannot load .*nothing"),
    ],
)
def test_what_cannot_be_compared(models, names, message):
    if not (models / "fewer").exists():
        tiny_model(num_labels=2, id2label={0: "sky", 1: "road"}).save_pretrained(models / "fewer")
        shutil.copy(models / "one" / "preprocessor_config.json", models / "fewer")
    argv = [name if name.startswith("--") else str(models / name) for name in names]
    with pytest.raises(SystemExit, match=message):
        mpformer(["compare", str(models / "data"), *argv])
    assert load_model(str(models / "one")) is not None
