"""Training from Python: `mpformer_hf.train`, and what it leaves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.files import read_json, read_text
from ..utils.recipes import as_flags
from .arguments import DEFAULT_RECIPE, STARTS, parse_arguments
from .run_folder import EVALUATIONS, LOG, RESULTS


@dataclass
class Run:
    """A finished training run.

    Attributes:
        folder: the output folder.
        results: scores (`best`, `last`), steps and times.
    """

    folder: Path
    results: dict

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """The run in an output folder.

        Raises:
            ValueError: there is none, or it has no evaluation yet.
        """
        return cls(Path(folder), read_json(Path(folder) / RESULTS))

    @property
    def best(self) -> dict:
        """Scores of the best weights, which are in the folder."""
        return self.results["best"]

    @property
    def log(self) -> list[dict]:
        """What was logged: losses, learning rate, speed and memory by step."""
        return read_lines(self.folder / LOG)

    @property
    def evaluations(self) -> list[dict]:
        """Scores of each evaluation."""
        return read_lines(self.folder / EVALUATIONS)

    def predictor(self, **kwargs):
        """A `Predictor` of the best weights; arguments: see `Predictor.from_pretrained`."""
        from ..inference.predictor import Predictor

        return Predictor.from_pretrained(str(self.folder), **kwargs)

    def __fspath__(self) -> str:
        return str(self.folder)


def read_lines(file: Path) -> list[dict]:
    """Content of a file of JSON lines.

    Raises:
        ValueError: it is empty, or a line is not a mapping with a step.
    """
    try:
        rows = [json.loads(line) for line in read_text(file).splitlines()]
        if not rows or not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
            raise ValueError("it has no lines, or lines without a step")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {next(iter(str(error).splitlines()), '')}.") from error
    return rows


def train(data: Any = None, **flags: Any) -> Run:
    """Fine-tune a model in this process: `mpformer train` as a function.

    Args:
        data: name of a Hub dataset, local folder, or a dataset in memory, see `mpformer_hf.data.memory.name_of`.
        flags: those of `mpformer train --help` as keywords, such as `task`, `output_dir`, `max_train_steps`; `config`:
            one recipe or several, by default own_dataset; `id2label` and `model_fields` may be dicts, and own parts
            (`criterion`, ...) classes and functions.

    Raises:
        ValueError: an argument, the dataset or the output folder is invalid.
    """
    recipes = flags.pop("config", [] if any(name in flags for name in STARTS) else DEFAULT_RECIPE)
    recipes = [recipes] if isinstance(recipes, (str, Path)) else list(recipes)
    from accelerate.state import AcceleratorState

    from ..data.memory import name_of
    from .extensions import name_objects
    from .finetune import finetune

    if isinstance(flags.get("id2label"), (list, tuple)):
        flags["id2label"] = dict(enumerate(flags["id2label"]))
    flags = name_objects(flags)
    argv = as_flags({name: str(value) if isinstance(value, Path) else value for name, value in flags.items()})
    argv += ["--config", *map(str, recipes)] if recipes else []
    if data is not None:
        argv += ["--dataset_name", name_of(data, str(flags.get("train_split", "train")))]
    args = parse_arguments(argv, prog="mpformer train")
    AcceleratorState._reset_state()  # of a run before, which may have had another precision
    results = finetune(args)
    return Run(Path(args.run.output_dir), results)
