"""What is converted or published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.arguments import Task
from ..data.releases import RELEASES
from ..utils.arguments import CheckedArguments, argument, option

Conversion = Literal["official", "from-mask2former", "to-mask2former"]


@dataclass
class ConversionArguments(CheckedArguments):
    """Which checkpoint is converted, and to what."""

    _argument_group_name = "conversion"

    kind: Conversion = argument("kind", "official (detectron2), from-mask2former or to-mask2former")
    source: str = argument("source", "checkpoint file, .pth or .pkl; or saved model: folder or Hub name")
    destination: Path = argument("destination", "new or empty folder")
    dataset: str | None = option(
        None, "official: gives class names, task, sizes and thresholds.", choices=tuple(sorted(RELEASES))
    )
    id2label: Path | None = option(None, "official: JSON file of class names.")
    task: Task | None = option(None, "Default task of the pipeline; default: by dataset, else panoptic.")

    def __post_init__(self):
        super().__post_init__()
        unused = [name for name in ("dataset", "id2label") if getattr(self, name) and self.kind != "official"]
        unused += ["task"] if self.task and self.kind == "to-mask2former" else []
        if unused:
            raise ValueError(f"{', '.join(unused)} has no effect on {self.kind}; leave it out.")


@dataclass
class PublicationArguments(CheckedArguments):
    """What is published, and where."""

    _argument_group_name = "publication"

    folder: Path = argument("folder", "folder of a saved model with its image processor")
    repo: str = argument("repo", "name on the Hub: you/your-model")
    with_code: bool = option(False, "Upload the code with the weights.")
    private: bool = option(False, "Make a new repository private.")
    revision: str | None = option(None, "Branch to push to, created if it does not exist; default: main.")
