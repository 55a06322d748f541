"""Tests of `fuzz`."""

import pytest

from tests import fuzz
from tests.runs import Run


def run_module(*argv):
    done = Run(argv)
    assert done.wait(300) == 0, done.told[-6000:]
    return done.told


def test_changed_inputs_give_the_right_result_or_a_sentence():
    table = run_module("tests.fuzz", "--cases", "150", "--seed", "7")
    assert all(f"| {kind} |" in table for kind in fuzz.KINDS)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_resume_bit_equal(processes):
    assert "kills" in run_module("tests.kills", "--kills", "2", "--processes", str(processes), "--seed", "7")


@pytest.mark.parametrize(
    "use, harmless, outcome",
    [
        (lambda: 1, False, "right"),
        (lambda: 2, False, "silently wrong"),
        (lambda: int("text"), False, "sentence"),
        (lambda: int("text"), True, "refused"),
        (lambda: {}["a"], False, "traceback"),
        (lambda: (_ for _ in ()).throw(ValueError("two\nlines")), False, "traceback"),
        (lambda: (_ for _ in ()).throw(SystemExit(2)), False, "sentence"),
        (lambda: (_ for _ in ()).throw(SystemExit(1)), False, "traceback"),
        (lambda: __import__("time").sleep(5), False, "hang"),
    ],
)
def test_the_fuzz_recognises_every_outcome(use, harmless, outcome, monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    assert fuzz.Case("", harmless, use, 1).outcome()[0] == outcome
