import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from accelerate.state import AcceleratorState

from tests import datasets_on_disk


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def new_process():
    """Each run would be a process of its own, with its own precision."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Generated shapes, few and small."""
    return datasets_on_disk.shapes(tmp_path_factory.mktemp("data") / "shapes")
