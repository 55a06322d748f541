"""Tests of `compiling`."""

from torch import nn

from mpformer_hf.utils.compiling import compile_model
from tests.tiny import tiny_model


def test_blocks_are_compiled_one_by_one(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    compile_model(tiny_model("swin", encoder_layers=2).model, "blocks")
    layers = ("SwinStage", "MPFormerPixelDecoderEncoderLayer", "MPFormerDecoderLayer")
    assert set(compiled) >= set(layers) and all(compiled.count(name) > 1 for name in layers)
    assert not {"MPFormerModel", "SwinEncoder", "MPFormerMaskedAttentionDecoder"} & set(compiled)
