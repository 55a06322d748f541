"""Tests of `arguments`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.training.arguments import parse_arguments
from mpformer_hf.utils.arguments import CheckedArguments, argument, option, parse
from mpformer_hf.utils.recipes import read_recipe, recipe_descriptions, recipe_names


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_eval_samples", 0),
        ("weight_decay", -1),
        ("max_grad_norm", -1),
        ("learning_rate", 0),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("lr_milestones", [0.5, -1]),
        ("lr_milestones", [0.9, 0.5]),
        ("scale_range", [2, 1]),
        ("scale_range", [0.5]),
        ("eval_threshold", "nan"),
        ("gradient_accumulation_steps", 0),
        ("crop_size", [0, 0]),
        ("crop_size", [64]),
        ("early_stopping_patience", -1),
        ("max_train_steps", 0),
        ("pilot_groups", 0),
        ("pilot_label_noise", 1.5),
        ("save_total_limit", 0),
        ("eval_shortest_edge", 8),
        ("void_label", -1),
    ],
)
def test_flags_and_recipes_out_of_range_are_refused_by_name(name, value, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({name: value}))
    values = [str(entry) for entry in (value if isinstance(value, list) else [value])]
    for argv in ([f"--{name}", *values], ["--config", str(recipe)]):
        with pytest.raises(ValueError, match=f"^{name} must "):
            parse_arguments(argv)


def test_evaluation_sizes_are_pairs_in_order():
    with pytest.raises(ValueError, match="eval_shortest_edge and eval_longest_edge must be given together"):
        parse_arguments(["--eval_shortest_edge", "64"])
    with pytest.raises(ValueError, match="eval_shortest_edge must be at most eval_longest_edge, got 2000 and 1333"):
        parse_arguments(["--eval_shortest_edge", "2000", "--eval_longest_edge", "1333"])


def test_arguments_made_in_python_are_checked_too():
    with pytest.raises(ValueError, match="max_eval_samples must be at least 1, got 0"):
        DataArguments(max_eval_samples=0)


@pytest.mark.parametrize(
    "content, message",
    [
        ("!!python/object/apply:os.system [ls]", "cannot be read as YAML: could not determine a constructor"),
        ("a: [1", "cannot be read as YAML"),
        ("- a", "must be a mapping"),
        ("on: 1", "has the name True; YAML reads on, off"),
        ("base: recipe.yaml", "is its own base"),
        ("base: 3", "must name files as base, got 3"),
        ("base: other.yaml", r"does not exist; its folder has recipe\.yaml"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
    ],
)
def test_invalid_recipes_are_refused_in_a_sentence(content, message, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_recipe(str(tmp_path / "recipe.yaml"))
    assert "\n" not in str(error.value)


@pytest.fixture
def sign(tmp_path):
    """Exists if something was executed."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def test_tags_in_a_recipe_are_not_executed(tmp_path, sign):
    (tmp_path / "recipe.yaml").write_text(f"a: !!python/object/apply:os.mkdir [{str(sign)!r}]\n")
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        read_recipe(str(tmp_path / "recipe.yaml"))


@dataclass
class Example(CheckedArguments):
    source: str = argument("source", "what is read")
    share: float = option(help="A share that is required.")
    output: Path = argument("output", "what is written", Path("out"))
    with_code: bool = option(False, "A switch.")
    fast: bool = option(True, "Another one.")
    sizes: list[int] = option([1, 2], "Numbers.", within="[1, inf)")
    kind: Literal["a", "b"] | None = option(None, "A kind.")


def parsed(*argv):
    return parse([Example], list(argv), prog="example")[0]


def test_positions_and_flags_in_any_order_and_both_spellings():
    expected = Example("s", 0.5, Path("o"), True, True, [3, 4], "b")
    assert parsed("s", "o", "--with_code", "--sizes", "3", "4", "--kind", "b", "--share", "0.5") == expected
    assert parsed("--share=0.5", "--kind", "b", "s", "--with-code", "o", "--sizes", "3", "4") == expected
    assert parsed(
        "--source", "s", "--output", "o", "--with-code", "true", *["--sizes", "3", "4", "--kind", "b", "--share", "0.5"]
    ) == (expected)
    assert parsed("s", "--share", "1", "--fast", "false") == Example("s", 1.0, fast=False)
    assert parsed("s", "--share", "1").output == Path("out")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--share", "1"], "SOURCE is missing"),
        (["s"], "--share is missing"),
        (["s", "o", "more", "--share", "1"], "There are too many arguments: more"),
        (["s", "--share", "1", "--size", "3"], r"Unknown flag --size; did you mean --sizes\?"),
        (["s", "--share", "1", "--xyz"], r"Unknown flag --xyz \(`example --help`"),
        (["s", "--share", "x"], "--share: invalid float value: 'x'"),
        (["s", "--share", "1", "--fast=maybe"], "expected true or false, got 'maybe'"),
        (["s", "--share", "1", "--kind", "c"], "invalid choice: 'c'"),
        (["s", "--share", "1", "--fast", "maybe"], "--fast: expected true or false, got 'maybe'"),
        (["s", "--share", "1", "--with_code", "o", "--output", "p"], "--output is given twice"),
        (["s", "--share", "1", "--sizes", "0"], "sizes must be at least 1"),
    ],
)
def test_wrong_command_lines_are_one_sentence(argv, message):
    with pytest.raises(ValueError, match=message) as error:
        parsed(*argv)
    assert "\n" not in str(error.value)


def test_a_recipe_gives_positions_too_and_the_command_line_overrides(tmp_path):
    (tmp_path / "r.yaml").write_text("source: of the recipe\nshare: 0.25\nsizes: [5]")
    assert parsed("--config", str(tmp_path / "r.yaml")) == Example("of the recipe", 0.25, sizes=[5])
    assert parsed("given", "--share", "1", "--config", str(tmp_path / "r.yaml")).source == "given"


def test_recipes_have_names():
    assert read_recipe("own_dataset")["augmentation"] == "auto" and "coco_instance_r50" in recipe_names()
    texts = recipe_descriptions()
    assert texts["coco_instance_r50"] == "COCO instance, R50, 50 epochs." and all(texts.values())
    with pytest.raises(ValueError, match="Recipe own_datasets does not exist; near names are own_dataset"):
        read_recipe("own_datasets")
