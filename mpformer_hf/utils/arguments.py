"""Command-line arguments as dataclasses, set by yaml recipes (`--config recipe.yaml`) and by flags, which override."""

import argparse
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from ..model.ranges import check_range
from .files import read_yaml


def option(default, help: str, within: str | None = None, choices: tuple[str, ...] | None = None):
    """A dataclass field with its help line and, for numbers, the interval of valid values, such as `[1, inf)`; for
    lists, the valid items.

    `CheckedArguments` checks the interval, which is stored as argparse's `metavar`.
    """
    metadata = {"help": help} | ({"metavar": within} if within else {}) | ({"choices": choices} if choices else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class CheckedArguments:
    """Base of all argument classes: numbers are within their intervals.

    Raises:
        ValueError: one is not; the message has its name.
    """

    def __post_init__(self):
        for f in fields(self):
            if interval := f.metadata.get("metavar"):
                check_range(f.name, getattr(self, f.name), interval)


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML without tags that run code; a key that is given twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_recipe(path: str, above: tuple[Path, ...] = ()) -> dict:
    """Read a yaml file of flags. Its `base` (one file or a list, relative to it) is read first; later values replace
    earlier ones, mappings (`model_fields`) are merged.

    Raises:
        ValueError: the file does not exist, is not YAML, is not a mapping of texts, or is its own base.
    """
    file = Path(path).resolve()
    if file in above:
        raise ValueError(f"Recipe {path} is its own base.")
    if not file.is_file():
        known = ", ".join(sorted(recipe.name for recipe in file.parent.glob("*.yaml")))
        raise ValueError(f"Recipe {path} does not exist{f'; its folder has {known}' if known else ''}.")
    content = read_yaml(file, UniqueKeyLoader) or {}
    if not isinstance(content, dict):
        raise ValueError(f"Recipe {path} must be a mapping of flags to values.")
    for name in content:
        if not isinstance(name, str):
            raise ValueError(f"Recipe {path} has the name {name!r}; YAML reads on, off, yes and no so: quote them.")
    bases = content.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"Recipe {path} must name files as base, got {bases!r}.")
    merged: dict = {}
    for base in bases:
        merged = merge(merged, read_recipe(str(file.parent / base), (*above, file)))
    return merge(merged, content)


def merge(first: dict, second: dict) -> dict:
    """`second` over `first`. Nested mappings are merged too, unless their `model_type` differs."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(first.get(key), dict)
        if both and value.get("model_type") == first[key].get("model_type"):
            value = merge(first[key], value)
        result[key] = value
    return result


def as_flags(recipe: dict) -> list[str]:
    """`{"a": 1, "b": [2, 3], "c": {"d": 4}}` -> `["--a", "1", "--b", "2", "3", "--c", '{"d": 4}']`."""
    flags = []
    for name, value in recipe.items():
        values = value if isinstance(value, list) else [value]
        if value is None:
            continue
        if not values:
            raise ValueError(f"{name} is an empty list; leave it out for the default.")
        flags += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
    return flags


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """One line per flag, with its default. Of `--a_b` and `--a-b`, which both work, only the first is shown."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=40, width=150)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return action.option_strings[0]
        name = getattr(action.type, "__name__", "str")
        kind, choices = {"string_to_bool": "bool"}.get(name, name), list(action.choices or ())
        if choices:
            kind = "|".join(map(str, choices)) if len(choices) <= 3 else "str"
        return f"{action.option_strings[0]} {kind}{' ...' if action.nargs == '+' else ''}"

    def _get_help_string(self, action: argparse.Action) -> str:
        unset, choices = action.default in (None, "") or action.nargs == 0, list(action.choices or ())
        text = (action.help if unset else super()._get_help_string(action)) or ""
        return f"{text} One of {', '.join(choices)}." if len(choices) > 3 else text


def parse(
    classes: list[type],
    argv: list[str] | None = None,
    description: str | None = None,
    prog: str | None = None,
    ignore_unknown: bool = False,
) -> tuple:
    """Parse recipes and flags.

    Args:
        classes: dataclasses whose fields are the flags. Those in `_advanced` are listed in a group "advanced".
        argv: command line; default: that of the process.
        description: text above the flags in `--help`.
        prog: name of the command in `--help`.
        ignore_unknown: ignore recipe entries of other commands (scoring does not need the optimizer's).

    Returns:
        one instance of each class.

    Raises:
        ValueError: a recipe is invalid or has an unknown flag, or a number is outside its interval.
    """
    recipe_parser = argparse.ArgumentParser(add_help=False)
    recipe_parser.add_argument(
        "--config",
        nargs="+",
        type=str,
        help="Recipes (yaml files of flags); later ones override earlier ones, flags override all.",
    )
    recipe_args, flags = recipe_parser.parse_known_args(argv)
    known = {f.name for cls in classes for f in fields(cls)}
    recipe: dict = {}
    for path in recipe_args.config or []:
        recipe = merge(recipe, read_recipe(path))
    unknown = sorted(set(recipe) - known)
    if unknown and not ignore_unknown:
        raise ValueError(f"Recipe {', '.join(recipe_args.config)} has unknown flags: {', '.join(unknown)}.")
    flags = as_flags({name: value for name, value in recipe.items() if name in known}) + flags
    parser = HfArgumentParser(
        classes,
        prog=prog,
        description=description,
        usage="%(prog)s [--config RECIPE ...] [--flag value ...]",
        parents=[recipe_parser],
        formatter_class=HelpFormatter,
    )
    advanced = {name for cls in classes for name in getattr(cls, "_advanced", ())}
    moved = [action for action in parser._actions if action.dest in advanced]
    for group in parser._action_groups:
        group._group_actions = [action for action in group._group_actions if action not in moved]
    parser.add_argument_group("advanced")._group_actions += moved
    return parser.parse_args_into_dataclasses(flags)[: len(classes)]
