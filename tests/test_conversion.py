"""Official names and architectures; the full model's values need the fixture's weights, made by `fill.py`."""

import json

import pytest
import torch

from mpformer_hf import MPFormerForUniversalSegmentation
from mpformer_hf.conversion import convert_state_dict, read_config
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
        model = MPFormerForUniversalSegmentation(read_config(weights))
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
    config = read_config(weights, id2label={i: str(i) for i in range(80)})
    assert config.query_position_embeddings and not config.mask_piloting and config.num_labels == 80


def test_strange_keys_stop_the_conversion():
    weights, _ = official("r50")
    weights["sem_seg_head.predictor.bbox_embed.weight"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"1 keys .*: sem_seg_head.predictor.bbox_embed.weight"):
        convert_state_dict(weights)
    with pytest.raises(ValueError, match="Not an image checkpoint"):
        read_config({"fc.weight": torch.zeros(1)})
