"""Tests of `detectron2_checkpoint`."""

import os
import pickle

import pytest
import torch

from mpformer_hf.hub.detectron2_checkpoint import read_checkpoint
from mpformer_hf.inference.loading import load_model
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


def test_a_pickle_of_shared_lists_ends(tmp_path):
    lists: list = []
    for _ in range(40):
        lists = [lists, lists]
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps({"model": {"weight": lists}}))
    with pytest.raises(ValueError, match=r"model\.pkl: weight of its entry 'model' is no array"):
        read_checkpoint(file)
