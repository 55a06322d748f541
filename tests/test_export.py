"""`mpformer export`: exported files have the outputs of the model, also at other sizes than the traced ones."""

import pytest
import torch

from mpformer_hf import exporting
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.loading import load_model
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folders = {}
    for backbone in ("resnet", "swin"):
        folders[backbone] = tmp_path_factory.mktemp("saved") / backbone
        torch.manual_seed(0)
        tiny_model(backbone, decoder_layers=3).save_pretrained(folders[backbone])
    return folders


@pytest.mark.parametrize("backbone, name", [("resnet", "model.onnx"), ("swin", "model.onnx"), ("resnet", "model.pt2")])
def test_the_file_is_the_model(saved, tmp_path, backbone, name, capsys):
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    mpformer(["export", str(saved[backbone]), str(tmp_path / name), "--height", "64", "--width", "96"])
    sides = "any multiple of 32" if backbone == "resnet" else "only 64x96"
    assert f"image sides: {sides}): largest difference of a logit" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == [name]
    size = (96, 64) if backbone == "resnet" else (64, 96)
    pixel_values = torch.randn(1, 3, *size)
    logits = exporting.ExportableModel(load_model(str(saved[backbone])))
    with torch.no_grad():
        expected = logits(pixel_values)
    for ours, theirs in zip(exporting.run_exported(tmp_path / name, pixel_values), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_what_differs_is_not_kept(saved, tmp_path, monkeypatch, capsys):
    def wrong(file, pixel_values):
        height, width = pixel_values.shape[-2:]
        return [torch.zeros(3, 8, 5), torch.full((3, 8, height // 4, width // 4), 9.0)]

    monkeypatch.setattr(exporting, "run_exported", wrong)
    with pytest.raises(SystemExit, match=r"at 64x96: its logits differ from the model's by .*; nothing was saved"):
        mpformer(["export", str(saved["resnet"]), str(tmp_path / "model.pt2"), "--height", "64", "--width", "96"])
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_back_gets_one_size(saved, tmp_path, monkeypatch, capsys):
    read = exporting.run_exported

    def guarded(file, pixel_values):
        if pixel_values.shape[-2:] != (64, 96):
            raise RuntimeError("the shape guards cannot be read")
        return read(file, pixel_values)

    monkeypatch.setattr(exporting, "run_exported", guarded)
    mpformer(["export", str(saved["resnet"]), str(tmp_path / "model.pt2"), "--height", "64", "--width", "96"])
    assert "image sides: only 64x96" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["{resnet}", "model.txt"], "must end in .onnx or .pt2"),
        (["{resnet}", "{resnet}/config.pt2"], "exists; choose another file"),
        (["{resnet}", "model.pt2", "--height", "100"], "multiples of 32"),
        (["no/such folder", "model.pt2"], "Cannot load no/such folder"),
    ],
)
def test_bad_arguments(saved, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (saved["resnet"] / "config.pt2").touch()
    with pytest.raises(SystemExit, match=message):
        mpformer(["export", *(part.format(resnet=saved["resnet"]) for part in argv)])
    assert not list(tmp_path.iterdir())
