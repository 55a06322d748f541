"""Tests of `memory`."""

import torch

from mpformer_hf.training.memory import peak_memory


def test_memory_of_devices(monkeypatch):
    assert peak_memory(torch.device("mps")) is None, "not available, rather than that of the host"
    for kind in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, kind), "max_memory_allocated", lambda device: 3 * 2**20)
        assert peak_memory(torch.device(kind)) == 3
