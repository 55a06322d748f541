"""Tests of `arguments`."""

import json

import pytest

from mpformer_hf.data.labels import Labels
from mpformer_hf.training import finetune
from mpformer_hf.training.arguments import ModelArguments, PilotArguments, SpeedArguments, parse_arguments
from mpformer_hf.training.building import build_model
from mpformer_hf.utils.recipes import read_recipe
from tests.runs import flags


def test_recipes_and_flags_without_effect_are_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ValueError, match="seed is given twice"):
        read_recipe(str(recipe))
    recipe.write_text("lr_milestones: []\n")
    with pytest.raises(ValueError, match="lr_milestones is an empty list"):
        parse_arguments(["--config", str(recipe)])
    with pytest.raises(ValueError, match="early_stopping_patience needs eval_steps"):
        parse_arguments(["--early_stopping_patience", "2"])
    for fields, message in (
        ({"backbone_config": {"model_type": "resnet", "hidden_sizess": [1]}}, "unknown fields: hidden_sizess"),
        ({"id2label": {"0": "a"}}, "class names are read from the dataset"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(ModelArguments(model_fields=json.dumps(fields)), PilotArguments(), Labels(["a"], {0: 0}, set()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gradient_checkpointing": True, "recompute_encoder": False}, "recomputes the encoder too"),
        ({"static_graph": True, "find_batch_size": True}, "give one of them"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpeedArguments(**options)


def test_a_static_graph_needs_several_processes_and_one_pass(shapes, tmp_path):
    with pytest.raises(ValueError, match="static_graph is for several processes"):
        finetune.main(flags(shapes, tmp_path / "a", static_graph=True))
    with pytest.raises(ValueError, match="static_graph does not work with gradient_accumulation_steps"):
        finetune.main(flags(shapes, tmp_path / "b", static_graph=True, gradient_accumulation_steps=2))
