"""Running a command line program: errors in one sentence, and only text that does not change the terminal."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable

from .progress import quiet_libraries

# What progress bars begin with, or write to move the cursor, and colours; and control characters, also those that turn
# the direction of a text.
CONTROLS = re.compile(
    r"(?P<kept>\A\r|\r(?=\n)|\A\n*(?:\x1b\[A)+\Z|\x1b\[(?:[0-4]|2[1-4]|[39][0-79])?(?:;(?:[0-4]|2[1-4]|[39][0-79]))*m)"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    """A text for a terminal. Control characters, which file and class names may have and which could change the
    terminal, become `\\x1b` and the like."""
    return CONTROLS.sub(lambda found: found[0] if found["kept"] is not None else ascii(found[0])[1:-1], text)


class PrintableStream:
    """A text stream that writes what is `printable`."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable(text))

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def run_command(command: Callable[[list[str]], object], argv: list[str] | None = None) -> None:
    """Run a command line program. Errors end in one sentence on stderr: exit code 1, or 130 if it was interrupted. The
    flag `--debug`, which all programs have, shows the traceback.

    Args:
        command: takes the arguments without `--debug`.
        argv: default: those of the process.
    """
    quiet_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names that the terminal cannot show
    argv = list(sys.argv[1:] if argv is None else argv)
    with (
        contextlib.redirect_stdout(PrintableStream(sys.stdout)),
        contextlib.redirect_stderr(PrintableStream(sys.stderr)),
    ):
        run_in_one_sentence(command, argv)


def run_in_one_sentence(command: Callable[[list[str]], object], argv: list[str]) -> None:
    """See `run_command`."""
    debug = "--debug" in argv
    if debug:
        argv.remove("--debug")
    try:
        command(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # what reads the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the end of the process fails too
        sys.exit(1)
    except Exception as error:  # every error, so that no user sees a traceback unasked
        if debug:
            raise
        sys.exit(f"error: {describe_error(error)}")


def describe_error(error: Exception) -> str:
    """One line about an error. Errors of a kind that this package does not raise have their kind in it."""
    if type(error).__name__.startswith("StrictDataclass") and error.__cause__ is not None:  # of huggingface_hub
        error = ValueError(f"MPFormerConfig: {error.__cause__}")
    text = printable(" ".join(str(error).split()))
    if isinstance(error, (ValueError, FloatingPointError, OSError)) and text:
        return text
    kind = type(error).__name__
    return f"{kind}: {text[:500]} (--debug shows the traceback)" if text else f"{kind} (--debug shows the traceback)"
