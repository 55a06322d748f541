"""Flags, recipes and configuration are checked by the same ranges; programs end in one sentence."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from mpformer_hf import MPFormerConfig
from mpformer_hf.arguments import read_recipe
from mpformer_hf.cli.main import run_command
from mpformer_hf.configuration_mpformer import RANGES
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.ranges import check_range, describe_range
from training.arguments import parse_arguments


@pytest.mark.parametrize(
    "interval, inside, outside",
    [
        ("[0, 1]", [0, 0.5, 1, None, True], [-0.1, 1.1, float("nan"), float("inf")]),
        ("(0, 1)", [0.5], [0, 1]),
        ("[1, inf)", [1, 10**30], [0, float("inf")]),
        ("(0, 100]", [[0.1, 100]], [[0.1, 0], [101]]),
    ],
)
def test_intervals(interval, inside, outside):
    for value in inside:
        check_range("x", value, interval)
    for value in outside:
        with pytest.raises(ValueError, match=r"^x must be (at least|greater than)"):
            check_range("x", value, interval)
    with pytest.raises(ValueError, match="x must be a number, got 'a'"):
        check_range("x", "a", interval)


def test_intervals_in_words():
    assert describe_range("[1, inf)") == "at least 1" and describe_range("(0, 1]") == "greater than 0 and at most 1"


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


@pytest.mark.parametrize("field", RANGES)
def test_the_configuration_refuses_numbers_out_of_range(field):
    kind = type(getattr(MPFormerConfig(), field) or 0)
    with pytest.raises(ValueError, match=f"MPFormerConfig: {field} must be"):
        MPFormerConfig(**{field: kind(-1)})
    if not RANGES[field].endswith("inf)"):
        with pytest.raises(ValueError, match=f"MPFormerConfig: {field} must be"):
            MPFormerConfig(**{field: kind(10**9)})


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


@pytest.mark.parametrize(
    "error, sentence",
    [
        (ValueError("bad\n input"), "error: bad input"),
        (OSError(28, "No space left on device", "x"), r"error: \[Errno 28\] No space left on device: 'x'"),
        (MemoryError(), "error: MemoryError"),
        (KeyError("a"), "error: KeyError: 'a' .--debug shows the traceback."),
    ],
)
def test_every_error_of_a_program_is_one_sentence(error, sentence):
    def fail(argv):
        assert argv == ["--flag"]
        raise error

    with pytest.raises(SystemExit, match=sentence):
        run_command(fail, ["--flag"])
    with pytest.raises(type(error)):
        run_command(fail, ["--debug", "--flag"])


def test_an_interrupted_program_says_so(capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_command(interrupted, [])
    assert stop.value.code == 130 and capsys.readouterr().err == "interrupted\n"


PROGRAMS = {
    "training.finetune": ["--output_dir", "file"],
    "mpformer_hf.cli.main": ["evaluate", "--dataset_name", "missing"],
    "mpformer_hf.cli.predict": ["model", "source", "output"],
    "scripts.make_shapes_dataset": ["file"],
    "scripts.make_solids_dataset": ["file"],
    "scripts.int8_scores": ["missing", "--dataset_name", "missing"],
    "scripts.benchmark_deploy": [
        "score",
        "--model",
        "missing",
        "--dataset_name",
        "missing",
        "--task",
        "semantic",
        "--calibration",
        "x",
    ],
    "scripts.study": ["report", "missing.jsonl"],
    "scripts.tile_dataset": ["missing", "tiles"],
    "scripts.benchmark": ["--output_file", "file"],
}


@pytest.mark.parametrize("module", PROGRAMS)
@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
def test_programs_end_in_a_sentence_and_show_the_traceback_with_debug(module, tmp_path, monkeypatch):
    """As `python -m` runs them, in this process."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no JSON")
    for debug in (False, True):
        monkeypatch.setattr(sys, "argv", [module, *PROGRAMS[module], *["--debug"] * debug])
        with pytest.raises(Exception if debug else SystemExit, match="" if debug else "^error: "):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
