"""Tests of `command`."""

import io
import runpy
import sys
from pathlib import Path

import pytest

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.utils.command import printable, run_command
from tests import datasets_on_disk as make
from tests.tiny import tiny_model


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
    "mpformer_hf.training": ["--output_dir", "file"],
    "mpformer_hf.cli.main": ["evaluate", "missing", "missing"],
    "mpformer_hf": ["predict", "model", "source", "output"],
    "scripts.datasets.make_shapes_dataset": ["file"],
    "scripts.datasets.make_solids_dataset": ["file"],
    "scripts.study": ["report", "missing.jsonl"],
    "scripts.datasets.tile_dataset": ["missing", "tiles"],
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
        with pytest.raises(Exception if debug else SystemExit, match=None if debug else "^error: "):
            runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.fixture
def saved(tmp_path):
    tiny_model(num_labels=1, id2label={0: "cat"}).save_pretrained(tmp_path / "model")
    MPFormerImageProcessor(task="instance", size={"height": 64, "width": 64}, threshold=0.0).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("car\x1b[8m\x1b[3A\rnothing\u202e", r"car\x1b[8m\x1b[3A\rnothing\u202e"),
        ("\x9b2J", r"\x9b2J"),
        ("\r 5%|bar", "\r 5%|bar"),  # of a progress bar
        ("\n\n\x1b[A\x1b[A", "\n\n\x1b[A\x1b[A"),
        ("\x1b[1;31mred\x1b[0m\r\n", "\x1b[1;31mred\x1b[0m\r\n"),
    ],
)
def test_what_changes_the_terminal_is_shown_as_text(text, shown):
    assert printable(text) == shown


def test_names_do_not_change_the_terminal(saved, tmp_path, capsys):
    make.photo().save(tmp_path / "good.png")
    (tmp_path / "\x1b]0;title\x07\x1b[2J.png").write_text("no image")
    mpformer(["predict", str(saved), str(tmp_path), str(tmp_path / "out"), "--formats", "none"])
    told = capsys.readouterr()
    assert not {"\x1b", "\x07"} & set(told.err + told.out)
    with pytest.raises(SystemExit) as stopped:
        mpformer(["predict", str(saved), str(tmp_path / "\x1b[2J"), str(tmp_path / "other")])
    assert "\x1b" not in str(stopped.value)


def test_names_that_the_terminal_cannot_show(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    run_command(lambda argv: print("c\u00f4ne"), [])
    terminal.flush()
    assert terminal.buffer.getvalue() == b"c\\xf4ne\n"
