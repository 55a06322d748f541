"""The `mpformer` command: `mpformer COMMAND ...`, one module per command."""

import importlib
import sys
from collections.abc import Callable

COMMANDS = {
    "predict": "segment images, a video or a dataset",
    "evaluate": "score a model on a dataset: PQ, AP, mIoU",
    "convert": "convert checkpoints of the public releases, or to a plain Mask2Former",
    "export": "export a model to ONNX or torch.export",
    "push": "publish a model on the Hub",
}
USAGE = """usage: mpformer COMMAND ...

MP-Former, mask-piloted Mask2Former: semantic, instance and panoptic segmentation.

commands:
{commands}

`mpformer COMMAND --help` lists the arguments of a command.
"""


def run_command(command: Callable[[], object]) -> None:
    """Run a command line program; user errors end in one sentence on stderr and exit code 1."""
    try:
        command()
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")


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
        module = importlib.import_module(f"mpformer_hf.cli.{argv[0]}")
        run_command(lambda: module.main(argv[1:]))


if __name__ == "__main__":
    main()
