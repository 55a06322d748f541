"""Incomplete or broken weights are never used: predict, evaluate, convert, export and push refuse them."""

import json

import httpx
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.cli import predict
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.inference.loading import fingerprint, load_model, load_processor
from tests import datasets_on_disk as make
from tests.tiny import tiny_config, tiny_model


@pytest.fixture
def sign(tmp_path):
    """Exists if something was executed."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def test_code_in_a_model_folder_is_not_executed(tmp_path, sign):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(sign)!r})\n")
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        classes = ("AutoConfig", "AutoModel", "AutoModelForUniversalSegmentation", "AutoImageProcessor")
        content["auto_map"] = {auto: "code.Something" for auto in classes}
        (folder / name).write_text(json.dumps(content))
    make.photo().save(tmp_path / "photo.png")
    load_processor(str(folder))
    predict.main([str(folder), str(tmp_path / "photo.png"), str(tmp_path / "out")])


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def drop_head(folder):
    change_weights(folder, lambda weights: weights.pop("class_predictor.weight"))


def drop_everything(folder):
    change_weights(folder, lambda weights: [weights.pop(key) for key in list(weights)[1:]])


def make_nan(folder):
    change_weights(folder, lambda weights: weights["class_predictor.bias"].fill_(float("nan")))


def deepen(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoder_layers": 100}))


def truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def break_json(folder):
    (folder / "config.json").write_text('{"model_type": ')


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES = {
    drop_head: "1 weights are missing or have other shapes, such as class_predictor.weight",
    drop_everything: "weights are missing or have other shapes",
    make_nan: "1 weights are not finite, such as class_predictor.bias",
    deepen: "weights are missing or have other shapes",
    truncate: "Cannot load",
    break_json: "Cannot load",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_command_refuses_damaged_weights(damage, saved, tmp_path, monkeypatch):
    make.photo().save(tmp_path / "photo.png")
    damage(saved)
    monkeypatch.chdir(tmp_path)
    for argv in (
        ["predict", "model", "photo.png", "predictions"],
        ["convert", "to-mask2former", "model", "plain"],
        ["export", "model", "model.pt2", "--height", "64", "--width", "64"],
    ):
        with pytest.raises(SystemExit, match=DAMAGES[damage]):
            mpformer(argv)
    if damage is not break_json:
        with pytest.raises(SystemExit, match=DAMAGES[damage]):
            mpformer(["push", "model", "somebody/model"])
    assert {path.name for path in tmp_path.iterdir()} == {"model", "photo.png"}


def test_only_the_pilots_embedding_may_be_missing(saved, tmp_path):
    load_model(str(saved)).to_mask2former().save_pretrained(tmp_path / "plain")
    assert load_model(str(tmp_path / "plain")).model.transformer_module.pilot_class_embedder is not None


def test_the_fingerprint_is_that_of_weights_and_settings(saved):
    before = fingerprint(str(saved))
    assert fingerprint(str(saved)) == before
    change_weights(saved, lambda weights: weights["class_predictor.bias"].add_(1))
    changed = fingerprint(str(saved))
    assert changed != before
    MPFormerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(saved)
    assert fingerprint(str(saved)) not in (before, changed)


def test_tiny_config_is_what_is_saved(saved):  # the damages above are the only difference
    assert load_model(str(saved)).config.decoder_layers == tiny_config().decoder_layers
    assert all(torch.isfinite(p).all() for p in load_model(str(saved)).parameters())


SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture
def saved_model(tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(task="panoptic", size=SIZE, threshold=0.0, label_ids_to_fuse=[3]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_checkpoints_of_half_precision_work(dtype, tmp_path, saved_model):
    tiny_model().to(dtype).save_pretrained(saved_model)
    assert load_model(str(saved_model)).dtype == torch.float32
    make.photo().save(tmp_path / "photo.png")
    predict.main([str(saved_model), str(tmp_path / "photo.png"), str(tmp_path / "out")])


def test_a_loaded_model_does_not_change_with_its_file(tmp_path):
    tiny_model().save_pretrained(tmp_path / "one")
    torch.manual_seed(1)
    tiny_model().save_pretrained(tmp_path / "other")
    loaded = load_model(str(tmp_path / "one"))
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with (tmp_path / "one" / "model.safetensors").open("r+b") as file:  # in place, as `cp` writes
        file.write((tmp_path / "other" / "model.safetensors").read_bytes())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("status", [401, 503])
def test_what_the_hub_answered_is_told(status, monkeypatch):
    """transformers hides the answer behind other errors."""

    def refused(*args, **kwargs):
        request = httpx.Request("GET", "http://127.0.0.1/some/model")
        response = httpx.Response(status, request=request)
        try:
            try:
                raise HfHubHTTPError("Client error", response=response)
            except HfHubHTTPError as error:
                raise LookupError("nothing in the cache") from error
        except LookupError as error:
            raise OSError("We couldn't connect to the Hub") from error

    monkeypatch.setattr(MPFormerForUniversalSegmentation, "from_pretrained", refused)
    with pytest.raises(ValueError, match=f"Cannot load some/model: the Hub answered {status}: Client error"):
        load_model("some/model")
