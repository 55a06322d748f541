"""The `mpformer` command: `mpformer COMMAND ...`, one module per command."""

import difflib
import importlib
import sys
from importlib.metadata import version

from ..utils.command import run_command

COMMANDS = {
    "train": "fine-tune a model on a dataset, or train it from scratch",
    "check": "show what is in a dataset, and what looks wrong",
    "predict": "segment images, a video or a dataset",
    "prepare": "write a dataset as parquet files, which are read faster",
    "evaluate": "score a model on a dataset: PQ, AP, mIoU",
    "compare": "compare models, runs and exported files on the same images",
    "plot": "plot loss and scores of training runs",
    "convert": "convert checkpoints of the public releases, or to a plain Mask2Former",
    "refine": "make masks of boxes (COCO, YOLO), or better masks of rough ones",
    "audit": "rank the annotations of a dataset by what a model says against them",
    "calibrate": "fit the scores of refined masks to their IoU with the truth",
    "export": "export a model to ONNX, torch.export, ExecuTorch, LiteRT or Core ML",
    "serve": "serve a model over HTTP",
    "push": "publish a model on the Hub",
}
USAGE = """usage: mpformer COMMAND ...

MP-Former, mask-piloted Mask2Former: semantic, instance and panoptic segmentation.

commands:
{commands}

`mpformer COMMAND --help` lists the arguments of a command; `--debug` shows the traceback of an error.
"""


def main(argv: list[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: name of the command and its arguments; default: those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    usage = USAGE.format(commands="\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))
    if argv[:1] == ["--version"]:
        print(version("mpformer-hf"))
    elif not argv or argv[0] in ("-h", "--help"):
        print(usage, end="")
    elif argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, 1)
        sys.exit(f"{usage}\nerror: unknown command {argv[0]!r}{f'; did you mean {near[0]}?' if near else ''}")
    else:
        run_command(lambda rest: importlib.import_module(f"mpformer_hf.cli.{argv[0]}").main(rest), argv[1:])


if __name__ == "__main__":
    main()
