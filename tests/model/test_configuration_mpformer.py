"""Tests of `configuration_mpformer`."""

import pytest
from huggingface_hub.errors import StrictDataclassError

from mpformer_hf import MPFormerConfig
from mpformer_hf.model.configuration_mpformer import RANGES


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
