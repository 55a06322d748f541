"""Official names, architectures and, for the full R50 model, values; `fill.py` makes weights from official names."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mpformer_hf import MPFormerForUniversalSegmentation
from mpformer_hf.hub.conversion import convert_checkpoint, convert_state_dict, infer_config
from tests.fixtures.fill import fill_image, fill_state_dict
from tests.tiny import FIXTURES


def official(name, device="meta"):
    facts = json.loads((FIXTURES / f"state_dict_keys_{name}.json").read_text())
    weights = {
        key: torch.zeros(shape, dtype=getattr(torch, dtype), device=device) for key, shape, dtype in facts["state_dict"]
    }
    return weights, facts


@pytest.mark.parametrize("name", ["r50", "r101", "swin_t", "swin_l"])
def test_every_official_key_finds_its_place(name):
    weights, facts = official(name)
    with torch.device("meta"):
        model = MPFormerForUniversalSegmentation(infer_config(weights))
    converted, own = convert_state_dict(weights), model.state_dict()
    assert not set(converted) - set(own)
    left = {
        key for key in set(own) - set(converted) if "num_batches_tracked" not in key and "swin.layernorm" not in key
    }
    assert not left
    assert all(own[key].shape == tensor.shape for key, tensor in converted.items())
    trainable = sum(
        p.numel() for key, p in model.named_parameters() if p.requires_grad and ".normalization." not in key
    )  # official ResNets freeze their batch norms
    assert trainable == facts["num_trainable_parameters"]
    assert not model.config.query_position_embeddings and model.config.mask_piloting


def test_mask2formers_query_positions():
    weights, _ = official("r50")
    weights["sem_seg_head.predictor.query_embed.weight"] = torch.zeros(100, 256, device="meta")
    del weights["sem_seg_head.predictor.label_enc.weight"]
    config = infer_config(weights, id2label={i: str(i) for i in range(80)})
    assert config.query_position_embeddings and not config.mask_piloting and config.num_labels == 80


def test_names_of_earlier_official_versions():
    weights, _ = official("r50")
    older = {
        key.replace("predictor.query_feat.", "predictor.static_query.").replace(
            "sem_seg_head.pixel_decoder.", "sem_seg_head."
        ): tensor
        for key, tensor in weights.items()
    }
    assert set(older) != set(weights) and len(older) == len(weights)
    assert infer_config(older).to_dict() == infer_config(weights).to_dict()
    assert convert_state_dict(older).keys() == convert_state_dict(weights).keys()


def test_strange_keys_stop_the_conversion():
    weights, _ = official("r50")
    weights["sem_seg_head.predictor.bbox_embed.weight"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"1 keys .*: predictor.bbox_embed.weight"):
        convert_state_dict(weights)
    with pytest.raises(ValueError, match="Not an image checkpoint"):
        infer_config({"fc.weight": torch.zeros(1)})


@pytest.fixture(scope="module")
def r50():
    """The full official R50 model, weights made from their names; and what it said."""
    weights, _ = official("r50", device="cpu")
    filled = {key: tensor.float() for key, tensor in fill_state_dict(weights, seed=0).items()}
    check = json.loads((FIXTURES / "fill_check.json").read_text())
    for key in (key for key in check if "fill_image" not in key):
        assert filled[key].sum().item() == pytest.approx(check[key]["sum"], rel=1e-4, abs=1e-2), "another generator"
    files = ("r50_features", "r50_predictions")
    expected = {key: t for file in files for key, t in load_file(FIXTURES / f"{file}.safetensors").items()}
    return convert_checkpoint(filled), expected


@pytest.mark.parametrize("name", ["r101", "swin_t"])
def test_other_backbones_run_after_conversion(name):
    weights, _ = official(name, device="cpu")
    torch.manual_seed(0)
    for key, tensor in weights.items():
        if key.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight")):
            tensor.fill_(1.0)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.02)
    model = convert_checkpoint(weights)
    with torch.no_grad():
        one = model(normalise(fill_image(64, 96, 0))[None])
        other = model(normalise(fill_image(64, 96, 1))[None])
    assert one.class_queries_logits.shape == (1, model.config.num_queries, 81)
    assert one.masks_queries_logits.shape == (1, model.config.num_queries, 16, 24)
    assert one.masks_queries_logits.isfinite().all() and one.masks_queries_logits.std() > 0
    assert not torch.equal(one.masks_queries_logits, other.masks_queries_logits)


def normalise(image):
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return (image.float() - mean[:, None, None]) / std[:, None, None]


def test_the_full_r50_model_equals_the_official_one(r50):
    model, expected = r50
    assert torch.equal(expected["image"], fill_image(128, 160, 0))
    with torch.no_grad():
        out = model(normalise(expected["image"])[None], output_hidden_states=True, output_auxiliary_logits=True)
    torch.testing.assert_close(out.class_queries_logits, expected["pred_logits"], atol=5e-5, rtol=0)
    torch.testing.assert_close(out.masks_queries_logits, expected["pred_masks"], atol=3e-4, rtol=0)
    half = {"atol": 1e-3, "rtol": 2e-3}  # stored in half precision
    for i, features in enumerate(out.encoder_hidden_states):
        torch.testing.assert_close(features, expected[f"backbone_res{i + 2}"].float(), **half)
    for i, features in enumerate(out.pixel_decoder_hidden_states):
        torch.testing.assert_close(features, expected[f"multi_scale_{i}"].float(), **half)
    torch.testing.assert_close(out.pixel_decoder_last_hidden_state, expected["mask_features"].float(), **half)
    for i in (0, 8):
        logits = out.auxiliary_logits[i]["class_queries_logits"]
        torch.testing.assert_close(logits, expected[f"aux_{i}_pred_logits"].float(), **half)


def test_the_padded_batch_of_two_equals_the_official_one(r50):
    model, expected = r50
    second = F.pad(normalise(expected["padded.image_1"]), (0, 10, 0, 28))
    with torch.no_grad():
        out = model(torch.stack((normalise(expected["image"]), second)))
    torch.testing.assert_close(out.class_queries_logits, expected["padded.pred_logits"], atol=5e-5, rtol=0)
    masks = expected["padded.pred_masks_1"].float()
    torch.testing.assert_close(out.masks_queries_logits[1], masks, atol=1e-3, rtol=1e-3)
