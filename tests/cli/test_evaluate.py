"""Tests of `evaluate`."""

import json

import pytest

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli import convert, evaluate, predict
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation import scoring
from mpformer_hf.utils.files import read_json, write_json
from tests import datasets_on_disk as make
from tests.tiny import tiny_model

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(task="panoptic", size=SIZE, threshold=0.0, label_ids_to_fuse=[3]).save_pretrained(folder)
    return folder


def test_a_plain_mask2former_is_scored_with_the_stuff_of_the_dataset(saved, shapes, tmp_path, monkeypatch, capsys):
    tiny_model(num_labels=8).save_pretrained(saved)
    convert.main(["to-mask2former", str(saved), str(tmp_path / "plain")])
    used = []
    monkeypatch.setattr(scoring, "evaluate_model", lambda model, processor, *_, **__: used.append(processor) or {})
    data = ["--dataset_name", str(shapes), "--task", "panoptic"]
    evaluate.main(["--model", str(tmp_path / "plain"), *data])
    labels = open_dataset(DataArguments(dataset_name=str(shapes)), "validation").labels
    assert used[0].label_ids_to_fuse == labels.stuff != []
    make.photo().save(tmp_path / "photo.png")
    predict.main([str(tmp_path / "plain"), str(tmp_path / "photo.png"), str(tmp_path / "out")])
    assert "names no stuff classes" in capsys.readouterr().err


def test_two_outputs_of_one_name_are_refused(tmp_path):
    both = str(tmp_path / "same")
    with pytest.raises(ValueError, match="is given twice"):
        evaluate.main(["m", "--output_file", both, "--report", both, "--dataset_name", "x"])
    with pytest.raises(ValueError, match="diagnostics must be a file"):
        evaluate.main(["m", "--diagnostics", str(tmp_path / "plot.xyz"), "--dataset_name", "x"])


@pytest.mark.parametrize("command", ["evaluate", "audit", "calibrate"])
@pytest.mark.parametrize("flag", ["max_train_samples", "train_samples_seed", "drop_empty", "dataloader_num_workers"])
def test_flags_of_training_are_refused(command, flag):
    with pytest.raises(SystemExit, match=f"--{flag}"):
        mpformer([command, "--dataset_name", "data", f"--{flag}", "1"])


def test_more_objects_than_queries_are_said(tmp_path, caplog):
    data = make.overlapping_objects(tmp_path / "data")
    split = open_dataset(DataArguments(dataset_name=str(data), task="instance"), "train")
    names = dict(enumerate(split.labels.names))
    most = max(len(split[index][1].classes) for index in range(len(split)))
    for queries in (most, most - 1):
        tiny_model(num_queries=queries, num_labels=len(names), id2label=names).save_pretrained(tmp_path / str(queries))
        MPFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / str(queries))
        argv = ["--model", str(tmp_path / str(queries)), "--dataset_name", str(data)]
        evaluate.main([*argv, "--task", "instance", "--eval_split", "train"])
        assert ("have more objects (up to" in caplog.text) == (queries < most)
    caplog.clear()
    argv = ["--model", str(tmp_path / str(most)), "--dataset_name", str(data), "--max_detections", "1"]
    evaluate.main([*argv, "--task", "instance", "--eval_split", "train"])
    assert f"num_queries is {most}, max_detections 1" in caplog.text


def test_folders_appear_whole(shapes, tmp_path_factory, tmp_path, monkeypatch):
    """An evaluation that ends early leaves nothing, so that the same command works again."""

    def full(*_):
        raise OSError(28, "No space left on device")

    saved, names = tmp_path_factory.mktemp("model"), dict(enumerate(read_json(shapes / "id2label.json").values()))
    tiny_model(id2label=names, num_labels=len(names)).save_pretrained(saved)
    MPFormerImageProcessor(task="panoptic", size=SIZE, threshold=0.0).save_pretrained(saved)
    flags = ["--save_predictions", "coco_panoptic", "--predictions_dir", str(tmp_path / "files")]
    argv = ["evaluate", str(saved), str(shapes), *flags, "--pictures", str(tmp_path / "pictures")]
    with monkeypatch.context() as patch:
        patch.setattr("mpformer_hf.evaluation.evaluator.draw_pair", full)
        with pytest.raises(SystemExit, match=r"No space left on device: '.*/files'"):
            mpformer(argv)
    assert not list(tmp_path.iterdir())
    mpformer(argv)
    assert {path.name for path in tmp_path.iterdir()} == {"files", "pictures"} and any((tmp_path / "files").iterdir())


def test_the_task_is_that_of_the_model_unless_it_is_given(saved, shapes, capsys):
    processor = read_json(saved / "preprocessor_config.json")
    for task, classes, score in (("instance", 4, "ap"), ("panoptic", 8, "pq")):
        tiny_model(num_labels=classes).save_pretrained(saved)
        write_json({**processor, "task": task}, saved / "preprocessor_config.json")
        mpformer(["evaluate", str(saved), str(shapes), "--max_eval_samples", "1", "--all_scores", "false"])
        scores = json.loads(capsys.readouterr().out)
        assert score in scores and ("pq" in scores) == (task == "panoptic")
    with pytest.raises(SystemExit, match="most_frequent_class has no task: give --task"):
        mpformer(["evaluate", "most_frequent_class", str(shapes)])
