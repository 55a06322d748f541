"""Tests of `configuration_mpformer`."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from mpformer_hf import MPFormerConfig
from mpformer_hf.model.configuration_mpformer import RANGES


def test_class_names_with_keys_of_json(tmp_path):
    MPFormerConfig().save_pretrained(tmp_path)
    config = MPFormerConfig.from_pretrained(tmp_path, id2label={"0": "cat", "1": "dog"})
    assert config.id2label == {0: "cat", 1: "dog"} and config.label2id == {"cat": 0, "dog": 1}


@pytest.mark.parametrize("field", RANGES)
def test_the_configuration_refuses_numbers_out_of_range(field):
    kind = type(getattr(MPFormerConfig(), field) or 0)
    with pytest.raises(StrictDataclassError, match=f"{field} must be"):
        MPFormerConfig(**{field: kind(-1)})
    config = MPFormerConfig()
    with pytest.raises(StrictDataclassError, match=f"{field} must be"):
        setattr(config, field, kind(-1))
    if not RANGES[field].endswith("inf)"):
        with pytest.raises(StrictDataclassError, match=f"{field} must be"):
            MPFormerConfig(**{field: kind(10**9)})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mask_piloting": "false"}, "'mask_piloting' expected bool, got str"),
        ({"pilot_class_loss": "no"}, "'pilot_class_loss' expected bool, got str"),
        ({"pilot_layers": 1.5}, "pilot_layers"),
        ({"pilot_groups": True}, "'pilot_groups' expected int, got bool"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label must map the ids 0 to 1 to names, it has the ids 0, 2"),
    ],
)
def test_fields_of_the_wrong_type_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        MPFormerConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "evil/kernel"},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "local-dir:/home"}},
        {"backbone_config": {"model_type": "resnet", "_attn_implementation": "evil/kernel"}},
    ],
)
def test_a_file_names_no_code_and_no_weights_elsewhere(fields, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MPFormerConfig().to_dict() | fields))
    with pytest.raises(ValueError, match=r"must be (built into transformers|the name of a timm model)"):
        MPFormerConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("fields", [{"num_labels": 10**8}, {"backbone_config": {"depths": [10**6, 1, 1, 1]}}])
def test_absurd_sizes_in_a_file_are_refused_at_once(fields, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MPFormerConfig().to_dict() | fields))
    with pytest.raises(ValueError, match=r"(num_labels|backbone_config\.depths) must be at most"):
        MPFormerConfig.from_pretrained(tmp_path)
