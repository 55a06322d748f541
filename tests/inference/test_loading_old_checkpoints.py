"""A Mask2Former as transformers 4.57 wrote it, from a folder and by its Hub name: every command takes it as it is."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerConfig, Mask2FormerImageProcessor

from mpformer_hf import MPFormerConfig, MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.inference.loading import load_model, load_processor
from mpformer_hf.training.finetune import main as finetune
from tests import datasets_on_disk as make
from tests.hub.test_publishing import run
from tests.hub_server import Hub
from tests.runs import ROOT
from tests.tiny import FIXTURES

OLD = FIXTURES / "swin_of_transformers_4_57"


LOGITS = ("class_queries_logits", "masks_queries_logits")


# Everything that a user does with a Hub name, in one process.
JOURNEY = """
import json, sys
sys.path.insert(0, {root!r})
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.training.finetune import main as finetune
name = "facebook/mask2former-swin-tiny-coco-panoptic"
mpformer(["predict", name, "photo.png", "predictions"])
mpformer(["predict", name, "photo.png", "predictions"])  # resumed: the commit is the same
settings = json.load(open("predictions/settings.json"))
mpformer(["convert", "from-mask2former", name, "ours"])
mpformer(["convert", "to-mask2former", "ours", "plain"])
mpformer(["export", name, "model.pt2", "--height", "64", "--width", "96"])
finetune(["--model_name_or_path", name, "--dataset_name", "shapes", "--output_dir", "run", "--max_train_steps", "1",
          "--augmentation", "crop", "--crop_size", "64", "64", "--shortest_edges", "64", "--max_eval_samples", "1",
          "--dataloader_num_workers", "0"])
print("RESULT", json.dumps([settings["weights"]]))
"""


@pytest.fixture
def hub():
    hub = Hub()
    hub.create("facebook/mask2former-swin-tiny-coco-panoptic")
    hub.commit(
        "facebook/mask2former-swin-tiny-coco-panoptic",
        "main",
        {file.name: file.read_bytes() for file in OLD.iterdir() if file.name != "expected.safetensors"},
    )
    yield hub
    hub.close()


def largest_difference(folder: Path) -> float:
    expected = load_file(OLD / "expected.safetensors")
    with torch.no_grad():
        outputs = load_model(str(folder))(expected["pixel_values"])
    return max((getattr(outputs, name) - expected[name]).abs().max().item() for name in LOGITS)


def test_outputs_are_those_of_the_version_that_wrote_it(caplog):
    assert largest_difference(OLD) < 1e-6
    assert "MISSING" not in caplog.text and "UNEXPECTED" not in caplog.text
    processor = load_processor(str(OLD))
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 128} and processor.ignore_index == 255


def test_a_weight_that_is_used_must_be_there(tmp_path):
    weights = load_file(OLD / "model.safetensors")
    del weights["model.pixel_level_module.encoder.hidden_states_norms.stage1.weight"]
    (tmp_path / "config.json").write_text((OLD / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing .* such as .*hidden_states_norms\.stage1\.weight"):
        load_model(str(tmp_path))


def write_processor(folder: Path, **fields) -> Path:
    """The old processor's file with other fields; None leaves one out."""
    content = json.loads((OLD / "preprocessor_config.json").read_text()) | fields
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def test_old_fields_of_processors(tmp_path):
    """Each as Mask2FormerImageProcessor reads it."""
    image = make.photo(50, 70)
    for fields in (
        {"size": 96, "max_size": 128},
        {"size": {"shortest_edge": 96, "longest_edge": 128}, "_max_size": 128},
        {"size": None, "do_resize": False},
        {"do_pad": False},
        {"size_divisor": 0},
        {"image_mean": None, "image_std": None, "do_normalize": False},
        {"do_reduce_labels": None, "reduce_labels": True},
    ):
        folder = write_processor(tmp_path / "processor", **fields)
        ours, theirs = (cls.from_pretrained(folder) for cls in (MPFormerImageProcessor, Mask2FormerImageProcessor))
        assert dict(ours.size) == dict(theirs.size), fields
        assert (
            ours(image, return_tensors="pt", stretch_to_divisor=True)["pixel_values"].shape
            == theirs(image, return_tensors="pt")["pixel_values"].shape
        ), fields


def test_a_size_that_is_null_is_refused_where_images_are_resized(tmp_path):
    folder = write_processor(tmp_path / "processor", size=None)
    with pytest.raises(ValueError, match="size is null"):
        MPFormerImageProcessor.from_pretrained(folder)
    assert MPFormerImageProcessor.from_pretrained(folder, size={"height": 32, "width": 32}).size.height == 32


def test_what_the_caller_gives_replaces_what_the_file_says(tmp_path):
    folder = write_processor(tmp_path / "model", size=640, max_size=1024)
    for given in ({"size": {"shortest_edge": 32, "longest_edge": 48}}, {"size": 32, "max_size": 48}):
        processor = MPFormerImageProcessor.from_pretrained(folder, **given)
        assert dict(processor.size) == {"shortest_edge": 32, "longest_edge": 48}
    config = json.loads((OLD / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"1": "a", "2": "b"}, "label2id": {"a": 1}}))
    with pytest.raises(
        StrictDataclassError, match=r"the ids 0 to 1 to names, it has the ids 1, 2, ...; give id2label="
    ):
        MPFormerConfig.from_pretrained(folder)
    config = MPFormerConfig.from_pretrained(folder, id2label={0: "a", 1: "b"})
    assert config.id2label == {0: "a", 1: "b"} and config.label2id == {"a": 0, "b": 1} and config.num_labels == 2


def test_converted_there_and_back(tmp_path):
    mpformer(["convert", "from-mask2former", str(OLD), str(tmp_path / "ours")])
    mpformer(["convert", "to-mask2former", str(tmp_path / "ours"), str(tmp_path / "plain")])
    assert largest_difference(tmp_path / "ours") < 1e-6 and largest_difference(tmp_path / "plain") < 1e-6
    assert Mask2FormerConfig.from_pretrained(tmp_path / "plain").id2label[7] == "class7"


def test_evaluated_and_trained_from_the_folder(shapes, tmp_path):
    arguments = ["--dataset_name", str(shapes), "--output_dir", str(tmp_path / "run"), "--max_train_steps", "1"]
    arguments += ["--model_name_or_path", str(OLD), "--augmentation", "crop", "--crop_size", "64", "64"]
    finetune([*arguments, "--shortest_edges", "64", "--dataloader_num_workers", "0", "--max_eval_samples", "1"])
    scored = ["--model", str(tmp_path / "run"), "--dataset_name", str(shapes), "--max_eval_samples", "1"]
    mpformer(["evaluate", *scored, "--output_file", str(tmp_path / "scores.json")])
    assert 0 <= json.loads((tmp_path / "scores.json").read_text())["pq"] <= 1


def test_by_its_hub_name(hub, shapes, tmp_path):
    (tmp_path / "shapes").symlink_to(shapes)
    make.photo(64, 96).save(tmp_path / "photo.png")
    sha = hub.resolve("facebook/mask2former-swin-tiny-coco-panoptic", "main")
    done = run(JOURNEY.format(root=str(ROOT)), hub, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f'RESULT ["{sha}"]' in done.stdout, "results depend on the commit, not on the name"
    assert (tmp_path / "predictions" / "overlays" / "photo.png").is_file()
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert largest_difference(tmp_path / "plain") < 1e-6
    assert not hub.unknown
