"""No file of a model, dataset or recipe is executed. Checkpoints: `test_run_folder.py`; official pickles:
`test_convert.py`."""

import contextlib
import json
import os
import pickle

import pytest
import torch

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.arguments import read_recipe
from mpformer_hf.cli import predict
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.loading import load_model, load_processor
from tests import datasets_on_disk as make
from tests.tiny import tiny_model


class Runs:
    """Unpickling this creates a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def sign(tmp_path):
    """Exists if something was executed."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def test_the_sign_is_made_by_unpickling(tmp_path):
    pickle.loads(pickle.dumps(Runs(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_weights_in_pickles_are_not_executed(name, tmp_path, sign):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Runs(sign)))
    with pytest.raises(ValueError, match="Cannot load"):
        load_model(str(folder))
    torch.save({"a": Runs(sign)}, folder / name)
    with pytest.raises(ValueError, match="Cannot load"):
        load_model(str(folder))


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


def test_code_and_pickles_in_a_dataset_folder_are_not_executed(tmp_path, sign):
    folder = make.coco_panoptic(tmp_path / "data")
    code = f"import os\nos.mkdir({str(sign)!r})\n"
    for name in ("data.py", "panoptic.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(code)
    (folder / "state.pkl").write_bytes(pickle.dumps(Runs(sign)))
    open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")[0]
    (folder / "panoptic.json").unlink()
    with contextlib.suppress(ValueError):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")


def test_tags_in_a_recipe_are_not_executed(tmp_path, sign):
    (tmp_path / "recipe.yaml").write_text(f"a: !!python/object/apply:os.mkdir [{str(sign)!r}]\n")
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        read_recipe(str(tmp_path / "recipe.yaml"))
