"""Training and prediction from Python, also of data in memory."""

import json

import numpy as np
import pytest
import torch
from datasets import DatasetDict, load_dataset
from PIL import Image

import mpformer_hf
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.memory import name_of
from mpformer_hf.data.opening import open_dataset
from tests.runs import flags
from tests.tiny import BACKBONES, SIZES
from training.finetune import main as script

TINY = {
    "model_fields": {"backbone_config": BACKBONES["resnet"].to_dict(), **SIZES},
    "augmentation": "crop",
    "crop_size": [64, 64],
    "eval_shortest_edge": 64,
    "eval_longest_edge": 64,
    "per_device_train_batch_size": 2,
    "dataloader_num_workers": 0,
    "max_train_steps": 2,
    "num_pictures": 0,
    "logging_steps": 1,
}
NAMES = {0: "ground", 1: "box"}


def examples(number: int, kind: str) -> list[tuple]:
    """Images with one or two boxes, and their label maps or masks."""
    found = []
    for index in range(number):
        values = np.full((48, 64, 3), 90 + index, dtype=np.uint8)
        masks = np.zeros((1 + index % 2, 48, 64), dtype=bool)
        for i, mask in enumerate(masks):
            mask[4 + index : 20 + index, 4 + 30 * i : 24 + 30 * i] = True
        values[masks.any(0)] = 200
        if kind == "map":
            found.append((values, masks.any(0).astype(np.uint8)))
        else:
            found.append((Image.fromarray(values), torch.from_numpy(masks), torch.ones(len(masks), dtype=torch.int64)))
    return found


def test_train_and_predict(shapes, tmp_path):
    run = mpformer_hf.train(str(shapes), task="panoptic", output_dir=tmp_path / "run", **TINY)
    assert run.folder == tmp_path / "run" and run.results["steps"] == 2 and "pq" in run.best
    assert [row["step"] for row in run.log] == [1, 2] and run.evaluations[-1]["step"] == 2
    assert mpformer_hf.Run.open(run).results == run.results
    assert run.evaluations[-1]["loss"] > 0
    mpformer(["plot", str(run.folder), str(run.folder), "--output", str(tmp_path / "curves.png")])
    assert Image.open(tmp_path / "curves.png").width > 500
    with pytest.raises(SystemExit, match=r"have no score 'ap'; the first one has .*pq"):
        mpformer(["plot", str(run.folder), "--metric", "ap", "--output", str(tmp_path / "other.png")])
    with pytest.raises(SystemExit, match=r"curves\.png exists; choose another name"):
        mpformer(["plot", str(run.folder), "--output", str(tmp_path / "curves.png")])
    predictor = run.predictor(options=mpformer_hf.InferenceOptions(threshold=0.0))
    image = examples(1, "map")[0][0]
    result = predictor(image)
    assert isinstance(result, mpformer_hf.Result) and result.task == "panoptic"
    assert [type(found) for found in predictor([image, image])] == [mpformer_hf.Result] * 2
    several = predictor(iter([image, image]))
    assert iter(several) is several and torch.equal(next(several).label_map, result.label_map)


@pytest.mark.parametrize("kind, task", [("map", "semantic"), ("masks", "instance")])
def test_data_in_memory(kind, task, tmp_path):
    given = examples(4, kind)
    name = name_of({"train": given})
    split = open_dataset(
        DataArguments(dataset_name=name, task=task, id2label=json.dumps(NAMES), eval_split="x"), "train"
    )
    for index, example in enumerate(given):
        image, segments = split[index]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(example[0]))
        masks = [segments.map == segment for segment, label in segments.classes.items() if label == 1]
        expected = torch.as_tensor(example[1] > 0)[None] if kind == "map" else example[1]
        assert torch.equal(torch.stack(masks), expected)
    data = {"train": given, "validation": given[:1]}
    run = mpformer_hf.train(data, task=task, id2label=NAMES, output_dir=str(tmp_path / "run"), **TINY)
    assert run.results["steps"] == 2


def test_a_dataset_dict_is_read_as_the_hub_dataset(shapes):
    rows = DatasetDict({name: load_dataset(str(shapes), split=name) for name in ("train", "validation")})
    names = json.loads((shapes / "id2label.json").read_text())
    memory = DataArguments(dataset_name=name_of(rows), task="panoptic", id2label=json.dumps(names))
    found, expected = (open_dataset(x, "validation") for x in (memory, DataArguments(dataset_name=str(shapes))))
    for index in range(len(expected)):
        assert torch.equal(found[index][0], expected[index][0])
        assert found[index][1].classes == expected[index][1].classes
    with pytest.raises(ValueError, match="has no split 'test', only train, validation"):
        open_dataset(memory, "test")


def turned_photo():
    """A photo of a phone that was held upside down."""
    image = Image.new("RGB", (5, 4))
    image.getexif()[274] = 3
    return image


@pytest.mark.parametrize(
    "example, message",
    [
        ("no tuple", r"train\[0\] must be \(image, label map\) or \(image, masks, labels\)"),
        ((np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), int)), r"label map is int64 \(5, 4\), expected integers"),
        ((np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5)) + 0.5), "label map is float64"),
        ((np.zeros((4, 5, 3), np.uint8), np.full((4, 5), -1)), "values from -1 to -1, expected 0 to 65535"),
        ((np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5)), [1]), r"masks are \(2, 4, 5\), expected \(1, 4, 5\)"),
        ((None, np.zeros((4, 5), int)), "got NoneType"),
        ((turned_photo(), np.zeros((4, 5), int)), "turned by its EXIF data, .*: give ImageOps.exif_transpose"),
    ],
)
def test_examples_of_another_form_are_named(example, message):
    with pytest.raises(ValueError, match=message):
        name_of([example])


def test_flags_are_checked(shapes, tmp_path):
    with pytest.raises(ValueError, match="Unknown flag --max_steps; did you mean --max_train_steps"):
        mpformer_hf.train(str(shapes), output_dir=tmp_path, max_steps=3)
    with pytest.raises(ValueError, match="Recipe own_data does not exist; near names are own_dataset"):
        mpformer_hf.train(str(shapes), output_dir=tmp_path, config="own_data")
    with pytest.raises(ValueError, match="--task: invalid choice: 'things'"):
        mpformer_hf.train(str(shapes), output_dir=tmp_path, task="things")


def test_the_script_that_people_copy(shapes, tmp_path, capsys):
    """It trains, evaluates and saves a model that can be loaded; recipes of `mpformer train` work."""
    argv = flags(shapes, tmp_path / "out", max_train_steps=3)
    at = argv.index("--logging_steps")
    script(argv[:at] + argv[at + 2 :])
    told = capsys.readouterr().out
    assert "step 2: loss " in told and "step 3: loss " in told and "pq " in told
    result = mpformer_hf.Predictor.from_pretrained(str(tmp_path / "out"))(examples(1, "map")[0][0])
    assert result.task == "panoptic"
    with pytest.raises(ValueError, match="is not an empty folder"):
        script(argv[:at] + argv[at + 2 :])


@pytest.mark.parametrize("content", ["", "[1]\n", "{\n", '{"loss": 1}\n'])
def test_logs_that_are_damaged_are_named(content, tmp_path):
    (tmp_path / "all_results.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"log\.jsonl cannot be read: "):
        print(mpformer_hf.Run.open(tmp_path).log)
