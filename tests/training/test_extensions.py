"""The examples of docs/extend.md: own parts, from the command line and from Python."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mpformer_hf
from mpformer_hf.training import finetune
from mpformer_hf.training.extensions import load_object
from tests import official_folders
from tests.runs import flags

PAGE = (Path(__file__).parents[2] / "docs" / "extend.md").read_text()
CALL, *PARTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folder with the file of the page, and with a dataset."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "my_parts.py").write_text("\n".join(PARTS))
    official_folders.coco_instances(folder / "your_dataset")
    return folder


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_parts_named_on_the_command_line(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(parts)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(parts)])
    given = {"criterion": "MyCriterion", "matcher": "MyMatcher", "transform": "darken", "metrics": "CountError"}
    own = {name: f"my_parts:{part}" for name, part in given.items()}
    argv = flags("your_dataset", tmp_path / "out", task="instance", eval_split="val", max_train_steps=2, **own)
    fields = json.loads(argv[1])
    del fields["backbone_config"]
    argv[1] = json.dumps(fields)
    argv += ["--backbone", "my_parts:my_backbone", "--metric_for_best", "count_error"]
    results = finetune.main(argv)
    log = lines(tmp_path / "out" / "log.jsonl")
    assert all(row["loss_entropy"] > 0 for row in log)
    assert results["best"]["count_error"] <= 0
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.5] * 3
    model = mpformer_hf.MPFormerForUniversalSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.backbone_config.hidden_sizes == [16, 32, 64, 128]
    assert type(model.criterion).__name__ == "MPFormerCriterion"


def test_the_matcher_is_used(parts, monkeypatch):
    monkeypatch.chdir(parts)
    import torch

    matcher = load_object("my_parts:MyMatcher")(None)
    logits = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]])  # two queries, two points
    truth = torch.tensor([[[0.0, 1.0]]])
    cost = matcher.cost(torch.zeros(1, 2, 3), logits, torch.zeros(1, 1, dtype=torch.int64), truth)
    assert cost.shape == (1, 2, 1) and cost[0, 1, 0] < 0.1 < cost[0, 0, 0]


def test_the_python_call_of_the_page(parts, tmp_path):
    code = CALL.replace('task="instance"', 'task="instance", eval_split="val", **options')
    code = code.replace("outputs/yours", str(tmp_path / "yours"))
    argv = flags("", "", max_train_steps=1)
    options = {"model_fields": json.loads(argv[1]), "augmentation": "crop", "crop_size": [64, 64], "max_train_steps": 1}
    options |= {"eval_shortest_edge": 64, "eval_longest_edge": 64, "dataloader_num_workers": 0}
    done = subprocess.run(
        [sys.executable, "-c", f"options = {options!r}\n{code}"], cwd=parts, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert lines(tmp_path / "yours" / "log.jsonl")[0]["loss_entropy"] > 0


@pytest.mark.parametrize(
    "name, message",
    [
        ("MyCriterion", "must be MODULE:NAME"),
        ("no_such_module:A", "cannot be loaded: No module named 'no_such_module'"),
        ("json:nothing", "cannot be loaded: module 'json' has no attribute 'nothing'"),
    ],
)
def test_parts_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        load_object(name)
