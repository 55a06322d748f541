"""`mpformer convert` on small checkpoints in the official format."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
)

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.hub import converting
from mpformer_hf.hub.conversion import rename
from tests.tiny import FIXTURES, SIZES, STAGES, tiny_model


def official_checkpoint(num_labels=80):
    """A small model, and its weights under their official names."""
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], out_features=STAGES)
    config = MPFormerConfig(backbone_config=backbone, num_labels=num_labels, **SIZES, query_position_embeddings=False)
    model = MPFormerForUniversalSegmentation(config).eval()
    own, weights = model.state_dict(), {}
    for key, *_ in json.loads((FIXTURES / "state_dict_keys_r50.json").read_text())["state_dict"]:
        names = rename(key.removeprefix("sem_seg_head."))
        if names and all(name in own for name in names):
            weights[key] = torch.cat([own[name] for name in names])
    return model, {"model": weights, "iteration": 10}


def as_pickle(content, path):
    content = {**content, "model": {key: value.numpy() for key, value in content["model"].items()}}
    path.write_bytes(pickle.dumps(content))


def same(a, b):
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x, y = a(pixels), b(pixels)
    torch.testing.assert_close(x.class_queries_logits, y.class_queries_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(x.masks_queries_logits, y.masks_queries_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_official_to_a_folder(tmp_path, suffix, capsys):
    model, content = official_checkpoint()
    source = tmp_path / f"model_final.{suffix}"
    torch.save(content, source) if suffix == "pth" else as_pickle(content, source)
    mpformer(["convert", "official", str(source), str(tmp_path / "out"), "--dataset", "coco-instance"])
    assert "CC BY-NC 4.0" in capsys.readouterr().out
    loaded, info = MPFormerForUniversalSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    same(model, loaded)
    assert loaded.config.id2label[0] == "person" and loaded.config.label2id["toothbrush"] == 79
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.task == "instance" and processor.label_ids_to_fuse == []
    assert "license: cc-by-nc-4.0" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "dataset, classes, task, stuff, last",
    [
        ("coco-panoptic", 133, "panoptic", 53, "rug-merged"),
        ("ade20k", 150, "semantic", 50, "flag"),
        ("ade20k", 100, "instance", 0, "flag"),
        ("cityscapes", 19, "semantic", 11, "bicycle"),
        ("mapillary", 65, "semantic", 28, "Ego Vehicle"),
    ],
)
def test_named_datasets(tmp_path, dataset, classes, task, stuff, last):
    _, content = official_checkpoint(classes)
    torch.save(content, tmp_path / "model.pth")
    mpformer(["convert", "official", str(tmp_path / "model.pth"), str(tmp_path / "out"), "--dataset", dataset])
    config = MPFormerConfig.from_pretrained(tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert config.id2label[classes - 1] == last and len(config.label2id) == classes
    assert processor.task == task and len(processor.label_ids_to_fuse) == stuff


def test_own_names_and_task(tmp_path):
    _, content = official_checkpoint(3)
    torch.save(content, tmp_path / "model.pth")
    (tmp_path / "names.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    command = [
        "official",
        str(tmp_path / "model.pth"),
        str(tmp_path / "out"),
        "--id2label",
        str(tmp_path / "names.json"),
    ]
    mpformer(["convert", *command, "--task", "semantic"])
    assert MPFormerConfig.from_pretrained(tmp_path / "out").id2label == {0: "a", 1: "b", 2: "c"}
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").task == "semantic"


def test_to_mask2former(tmp_path):
    model = tiny_model("swin", id2label={0: "a", 1: "b", 2: "c", 3: "d"})
    model.save_pretrained(tmp_path / "own")
    fields = {"resample": 3, "pad_size": {"height": 128, "width": 128}, "rescale_factor": 1 / 128}
    own = MPFormerImageProcessor(size={"height": 64, "width": 96}, **fields)
    own.save_pretrained(tmp_path / "own")
    mpformer(["convert", "to-mask2former", str(tmp_path / "own"), str(tmp_path / "plain")])
    plain, info = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and plain.config.id2label[3] == "d"
    same(model, plain)
    processor = Mask2FormerImageProcessor.from_pretrained(tmp_path / "plain")
    assert processor.size["height"] == 64 and processor.resample == 3
    photo = Image.fromarray(np.arange(90 * 100 * 3, dtype=np.uint8).reshape(90, 100, 3))
    theirs, ours = (kind(photo, return_tensors="pt")["pixel_values"] for kind in (processor, own))
    assert theirs.shape == (1, 3, 128, 128) and torch.allclose(theirs, ours, atol=1e-6)


def test_from_mask2former(tmp_path, capfd):
    plain = tiny_model("swin", id2label={0: "a", 1: "b", 2: "c", 3: "d"}).to_mask2former()
    plain.save_pretrained(tmp_path / "plain")
    fields = {"image_mean": [0.498] * 3, "image_std": [0.3] * 3, "resample": 3, "size": {"height": 64, "width": 96}}
    Mask2FormerImageProcessor(**fields).save_pretrained(tmp_path / "plain")
    capfd.readouterr()
    mpformer(["convert", "from-mask2former", str(tmp_path / "plain"), str(tmp_path / "own"), "--task", "instance"])
    assert "You are using a model of type" not in capfd.readouterr().err
    assert isinstance(AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "plain"), type(plain))
    own = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "own")
    assert isinstance(own, MPFormerForUniversalSegmentation)
    same(own.eval(), plain)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "own")
    assert isinstance(processor, MPFormerImageProcessor) and processor.task == "instance"
    assert list(processor.image_mean) == [0.498] * 3 and list(processor.image_std) == [0.3] * 3
    assert int(processor.resample) == 3 and (processor.size.height, processor.size.width) == (64, 96)


class Malicious:
    """Makes a file where it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def broken(kind, path):
    """A checkpoint that must be refused."""
    _, content = official_checkpoint(3)
    if kind == "runs code, pth":
        torch.save({**content, "hook": Malicious(path.parent / "ran")}, path)
    elif kind == "runs code, pkl":
        path = path.with_suffix(".pkl")
        path.write_bytes(pickle.dumps({"model": {}, "hook": Malicious(path.parent / "ran")}))
    elif kind == "truncated":
        torch.save(content, path)
        path.write_bytes(path.read_bytes()[:20000])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "no model":
        torch.save({"weights": {}}, path)
    elif kind == "video":
        content["model"]["sem_seg_head.predictor.temporal_embed.weight"] = torch.zeros(2)
        torch.save(content, path)
    elif kind == "another architecture":
        torch.save({"model": {"fc.weight": torch.zeros(2)}}, path)
    elif kind == "missing keys":
        del content["model"]["sem_seg_head.pixel_decoder.mask_features.bias"]
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("runs code, pth", "was not loaded, since it could execute code"),
        ("runs code, pkl", "was not loaded, since it could execute code"),
        ("truncated", "is not a checkpoint or is truncated"),
        ("text", "is not a checkpoint or is truncated"),
        ("no model", "has no entry 'model'"),
        ("video", "temporal_embed"),
        ("another architecture", "Not an image checkpoint of MP-Former or Mask2Former"),
        ("missing keys", "mask_projection.bias"),
        ("absent", "does not exist"),
    ],
)
def test_wrong_files_are_one_sentence_and_write_nothing(tmp_path, kind, message):
    source = broken(kind, tmp_path / "model.pth")
    with pytest.raises(SystemExit) as stop:
        mpformer(["convert", "official", str(source), str(tmp_path / "out")])
    assert message in str(stop.value) and str(stop.value).startswith("error: ") and "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()


def test_names_must_fit_and_nothing_is_overwritten(tmp_path):
    _, content = official_checkpoint(3)
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(SystemExit, match="3 classes, but there are 150 names"):
        mpformer(["convert", "official", str(tmp_path / "model.pth"), str(tmp_path / "out"), "--dataset", "ade20k"])
    with pytest.raises(SystemExit, match="is not an empty folder"):
        mpformer(["convert", "official", str(tmp_path / "model.pth"), str(tmp_path)])


def test_category_ids_of_converted_checkpoints():
    names = opened_names("coco-panoptic")
    assert converting.category_ids("coco-panoptic", names, "panoptic")[-1] == 200
    assert converting.category_ids("coco-instance", names[:80], "instance")[-1] == 90
    assert converting.category_ids("ade20k", opened_names("ade20k"), "semantic") == list(range(1, 151))
    assert converting.category_ids("ade20k", opened_names("ade20k"), "panoptic") is None
    assert converting.category_ids(None, ["a"], "semantic") is None


def opened_names(dataset):
    return converting.RELEASES[dataset]["names"]
