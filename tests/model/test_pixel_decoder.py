"""Tests of `pixel_decoder`."""

import pytest
import torch

from mpformer_hf.model.pixel_decoder import MPFormerPixelDecoderEncoder, cell_centres
from tests.tiny import tiny_config, tiny_model


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_encoder_layers_are_made_again_in_the_backward_pass_with_the_same_dropout(dropout):
    torch.manual_seed(0)
    encoder = MPFormerPixelDecoderEncoder(tiny_config(dropout=dropout)).train()
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.2)
    shapes, calls = [(1, 2), (2, 3), (4, 6)], []
    hidden, position = torch.randn(2, 32, 32), torch.randn(32, 32)
    for layer in encoder.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients(forward):
        calls.clear()
        encoder.zero_grad()
        torch.manual_seed(1)
        forward().square().sum().backward()
        return len(calls), [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    def plainly():
        x = hidden
        for layer in encoder.layers:
            x = layer(x, position, cell_centres(shapes, x.device, x.dtype), shapes)
        return x

    made, ours = gradients(lambda: encoder(hidden, position, shapes))
    plain, theirs = gradients(plainly)
    assert (made, plain) == (2 * len(encoder.layers), len(encoder.layers))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_channels_last_input_changes_nothing():
    torch.manual_seed(0)
    model, pixel_values = tiny_model(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        plain = model(pixel_values).masks_queries_logits
        last = model.to(memory_format=torch.channels_last)(pixel_values.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last.masks_queries_logits, plain, atol=1e-5, rtol=0)
