"""Progress in a log file: plain lines with what is left."""

import io
import sys
import time

from mpformer_hf.utils import progress as module
from mpformer_hf.utils.progress import progress


def test_lines_in_a_file(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(module, "SECONDS", 0.05)
    bar = progress(range(6), "predict", unit="image")
    for _ in bar:
        time.sleep(0.04)
    lines = written.getvalue().splitlines()
    assert "\r" not in written.getvalue() and 1 < len(lines) < 8
    assert lines[-1].startswith("predict: 6 of 6, 00:00 passed, 00:00 left") and "image" in lines[-1]


def test_fields_are_in_the_lines_and_cause_none(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(module, "SECONDS", 0.05)
    with progress(total=40, desc="train") as bar:
        for step in range(40):
            bar.update()
            bar.set_postfix(loss=f"{step:.1f}")
            time.sleep(0.005)
    lines = written.getvalue().splitlines()
    assert 1 < len(lines) < 9 and all("loss=" in line for line in lines)


def test_without_a_total_nothing_is_said_to_be_left(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(module, "SECONDS", 0.02)
    for _ in progress((i for i in range(4)), "read"):
        time.sleep(0.02)
    lines = written.getvalue().splitlines()
    assert lines[-1].startswith("read: 4, ") and "left" not in lines[-1] and len(set(lines)) == len(lines)


def test_what_is_fast_writes_nothing(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    assert list(progress(range(3), "check", leave=False)) == [0, 1, 2] and not written.getvalue()


def test_a_terminal_has_a_bar(monkeypatch):
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", written)
    list(progress(range(3), "check"))
    assert "\r" in written.getvalue() and "3/3" in written.getvalue()
