"""The decoder against the official one's recorded outputs, alone and with the pilot."""

import pytest
import torch

from mpformer_hf.model import transformer_decoder
from mpformer_hf.model.mask_piloting import build_pilot
from tests.tiny import GoldenDecoder


@pytest.fixture(scope="module")
def golden():
    return GoldenDecoder()


def run(golden, pilot, monkeypatch):
    """Class logits `[7, B, N, 6]`, mask embeddings `[7, B, N, 64]`, and the mask of each cross-attention."""
    masks = []
    original = transformer_decoder.cross_attention_mask

    def record(*args):
        masks.append(original(*args))
        return masks[-1]

    monkeypatch.setattr(transformer_decoder, "cross_attention_mask", record)
    model = golden.model
    with torch.no_grad():
        decoded = model.model.transformer_module(golden.mask_features, golden.levels, pilot)
        return model.class_predictor(torch.stack(decoded.normed_states)), torch.stack(decoded.mask_embeddings), masks


def test_inference_equals_official(golden, monkeypatch):
    logits, embeddings, masks = run(golden, None, monkeypatch)
    expected = golden.expected
    torch.testing.assert_close(logits, expected["eval.pred_logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(embeddings, expected["eval.mask_embed"], atol=1e-4, rtol=0)
    last = torch.einsum("bqc,bchw->bqhw", embeddings[-1], golden.mask_features)
    torch.testing.assert_close(last, expected["eval.pred_masks.last"], atol=1e-3, rtol=0)
    for i, mask in enumerate(masks):
        assert torch.equal(~mask[:, 0], expected[f"eval.attn_mask.{i}"].bool())


def test_piloted_training_equals_official(golden, monkeypatch):
    pilot = build_pilot(golden.targets, golden.level_shapes, golden.config)
    logits, embeddings, masks = run(golden, pilot, monkeypatch)
    expected = golden.expected
    assert torch.equal(~pilot.self_attention_mask[0, 0], expected["train.self_attn_mask"].bool())
    assert torch.equal(pilot.self_attention_mask[0], pilot.self_attention_mask[1])
    torch.testing.assert_close(logits[:, :, 3:], expected["train.pred_logits.match"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[:, :, :3], expected["train.pred_logits.pilot"], atol=1e-4, rtol=0)
    torch.testing.assert_close(embeddings, expected["train.mask_embed"], atol=1e-4, rtol=0)
    last = torch.einsum("bqc,bchw->bqhw", embeddings[-1, :, :3], golden.mask_features)
    torch.testing.assert_close(last, expected["train.pred_masks.pilot.last"], atol=1e-3, rtol=0)
    for i, mask in enumerate(masks):
        assert torch.equal(~mask[:, 0], expected[f"train.attn_mask.{i}"].bool())


def test_a_row_that_blocks_everything_is_opened():
    embedding = torch.tensor([[[-1.0], [1.0]]])
    features = torch.tensor([[[1.0, 2.0, -0.5]]])
    mask = transformer_decoder.cross_attention_mask(embedding, features.abs(), None, 0, 0)
    assert mask[0, 0].tolist() == [[True] * 3, [True] * 3]
    mask = transformer_decoder.cross_attention_mask(embedding, features, None, 0, 0)
    assert mask[0, 0].tolist() == [[False, False, True], [True, True, False]]


def test_rounding_noise_around_zero_does_not_block():
    embedding = torch.tensor([[[1.0]]])
    features = torch.tensor([[[-1e-8, 1e-8, -1e-3, 1e-3]]])
    assert transformer_decoder.cross_attention_mask(embedding, features, None, 0, 0)[0, 0, 0].tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_attention_with_weights_equals_fused_attention():
    query, key, value = torch.randn(3, 2, 5, 8).unbind()
    mask = torch.rand(2, 1, 5, 5) > 0.3
    mask[..., 0] = True
    fused, none = transformer_decoder.attend(query, key, value, 2, mask, 0.0, None)
    with_weights, weights = transformer_decoder.attend(query, key, value, 2, mask, 0.0, 0)
    assert none is None
    torch.testing.assert_close(fused, with_weights)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5))
    assert (weights[~mask.expand_as(weights)] == 0).all()
    again, part = transformer_decoder.attend(query, key, value, 2, mask, 0.0, 2)
    assert torch.equal(part, weights[:, :, 2:, 2:]) and torch.equal(again, with_weights)
