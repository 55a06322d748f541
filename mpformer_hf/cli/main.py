"""The `mpformer` command: `mpformer COMMAND ...`, one module per command."""

import importlib
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


def run_command(command: Callable[[list[str]], object], argv: list[str] | None = None) -> None:
    """Run a command line program. Errors end in one sentence on stderr: exit code 1, or 130 if it was interrupted. The
    flag `--debug`, which all programs have, shows the traceback.

    Args:
        command: takes the arguments without `--debug`.
        argv: default: those of the process.
    """
    hide_bars_of_libraries()
    argv = list(sys.argv[1:] if argv is None else argv)
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
    text = " ".join(str(error).split())
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
