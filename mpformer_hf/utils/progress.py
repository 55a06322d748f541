"""Progress bars on a terminal; plain lines in a log file."""

import logging
import os
import sys
from typing import TextIO

from tqdm.auto import tqdm

SECONDS = 10  # between two lines
LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} passed, {remaining} left, {rate_fmt}{postfix}"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt}, {elapsed} passed, {rate_fmt}{postfix}"


class Lines:
    """A file to which a bar writes lines instead of overwriting one line."""

    def __init__(self, file: TextIO):
        self.file, self.last = file, ""

    def write(self, text: str) -> None:
        """Write what is not empty, and not the line before, as a line."""
        text = text.strip()
        if text and text != self.last:
            self.file.write(f"{text}\n")
            self.last = text

    def flush(self) -> None:
        self.file.flush()


def quiet_libraries() -> None:
    """Turn off a warning of PyTorch about torchao's enumerations, and the bars of transformers, huggingface_hub and
    datasets where the output is not a terminal."""
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    if sys.stderr.isatty():
        return
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")  # read when the libraries are imported
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()


class LineBar(tqdm):
    """A bar whose fields do not cause a line of their own."""

    def set_postfix(self, *args, refresh: bool = False, **fields) -> None:
        super().set_postfix(*args, refresh=False, **fields)


def progress(*args, **options) -> tqdm:
    """A `tqdm` bar; where the output is not a terminal, a line every ten seconds, and none for what takes less."""
    if sys.stderr.isatty():
        return tqdm(*args, **options)
    interval = {"mininterval": SECONDS, "maxinterval": SECONDS, "delay": SECONDS}
    bar = LineBar(*args, **options, **interval, file=Lines(sys.stderr))
    bar.bar_format = LINE if bar.total else LINE_WITHOUT_TOTAL
    return bar
