"""The `mpformer` command: `mpformer COMMAND ...`, one module per command."""

import contextlib
import importlib
import re
import sys
from collections.abc import Callable

from ..progress import hide_bars_of_libraries

COMMANDS = {
    "predict": "segment images, a video or a dataset",
    "prepare": "write a dataset as parquet files, which are read faster",
    "evaluate": "score a model on a dataset: PQ, AP, mIoU",
    "convert": "convert checkpoints of the public releases, or to a plain Mask2Former",
    "refine": "make masks of boxes (COCO, YOLO), or better masks of rough ones",
    "audit": "rank the annotations of a dataset by what a model says against them",
    "calibrate": "fit the scores of refined masks to their IoU with the truth",
    "export": "export a model to ONNX or torch.export",
    "serve": "serve a model over HTTP",
    "push": "publish a model on the Hub",
}
USAGE = """usage: mpformer COMMAND ...

MP-Former, mask-piloted Mask2Former: semantic, instance and panoptic segmentation.

commands:
{commands}

`mpformer COMMAND --help` lists the arguments of a command; `--debug` shows the traceback of an error.
"""


# control characters, but for colours and the cursor movement of progress bars
CONTROLS = re.compile(r"\x1b\[[0-9;]*[mA]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A text for a terminal. Control characters, which file and class names may have and which could change the
    terminal, become `\\x1b` and the like."""
    return CONTROLS.sub(lambda found: found[0] if len(found[0]) > 1 else ascii(found[0])[1:-1], text)


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
    hide_bars_of_libraries()
    argv = list(sys.argv[1:] if argv is None else argv)
    with (
        contextlib.redirect_stdout(PrintableStream(sys.stdout)),
        contextlib.redirect_stderr(PrintableStream(sys.stderr)),
    ):
        run_printable(command, argv)


def run_printable(command: Callable[[list[str]], object], argv: list[str]) -> None:
    """See `run_command`."""
    debug = "--debug" in argv
    if debug:
        argv.remove("--debug")
    try:
        command(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # every error, so that no user sees a traceback unasked
        if debug:
            raise
        sys.exit(f"error: {describe_error(error)}")


def describe_error(error: Exception) -> str:
    """One line about an error. Errors of a kind that this package does not raise have their kind in it."""
    text = printable(" ".join(str(error).split()))
    if isinstance(error, (ValueError, FloatingPointError, OSError)) and text:
        return text
    kind = type(error).__name__
    return f"{kind}: {text[:500]} (--debug shows the traceback)" if text else f"{kind} (--debug shows the traceback)"


def main(argv: list[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: name of the command and its arguments; default: those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    usage = USAGE.format(commands="\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))
    if not argv or argv[0] in ("-h", "--help"):
        print(usage, end="")
    elif argv[0] not in COMMANDS:
        sys.exit(f"{usage}\nerror: unknown command {argv[0]!r}")
    else:
        run_command(lambda rest: importlib.import_module(f"mpformer_hf.cli.{argv[0]}").main(rest), argv[1:])


if __name__ == "__main__":
    main()
