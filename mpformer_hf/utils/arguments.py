"""Command-line arguments as dataclasses, set by yaml recipes (`--config recipe.yaml`) and by flags, which override."""

import argparse
import difflib
import json
import re
from dataclasses import MISSING, Field, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from ..model.ranges import check_range
from .recipes import as_flags, merge, read_recipe


def option(default: Any = MISSING, help: str = "", within: str | None = None, choices: tuple[str, ...] | None = None):
    """A dataclass field that is a flag.

    Args:
        default: its value if it is not given; without one the flag is required.
        help: one line for `--help`.
        within: interval of valid numbers, such as `[1, inf)`.
        choices: valid values, or valid items of a list.
    """
    metadata = {"help": help, "within": within, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def argument(name: str, help: str, default: Any = MISSING):
    """A dataclass field that is given by its position, or as a flag of the field's name, as recipes do.

    Args:
        name: what `--help` calls it.
        help: one line for `--help`.
        default: its value if it is not given; without one it is required.
    """
    return field(default=default, metadata={"help": help, "position": name})


@dataclass
class CheckedArguments:
    """Base of all argument classes: numbers are within their intervals.

    Raises:
        ValueError: one is not; the message has its name.
    """

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if f.default is MISSING and f.default_factory is not MISSING and not isinstance(value, (list, tuple)):
                raise ValueError(f"{f.name} must be a list, got {value!r}.")
            if isinstance(f.default, bool) and not isinstance(value, bool):
                raise ValueError(f"{f.name} must be true or false, got {value!r}.")
            if interval := f.metadata.get("within"):
                check_range(f.name, getattr(self, f.name), interval)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One line per flag. Of `--a_b` and `--a-b`, which both work, only the first is shown."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=40, width=150)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return str(action.metavar)
        flag, kind = action.option_strings[0], action.metavar
        flag = "--help" if flag == "-h" else flag
        return flag if kind is None else f"{flag} {kind}{' ...' if action.nargs == '+' else ''}"


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse ends the process."""

    def error(self, message: str) -> NoReturn:
        text = re.sub(r"^argument (--\w+)\S*: ", r"\1: ", message)  # of its two spellings
        raise ValueError(f"{text} (`{self.prog} --help` lists all arguments).")


AS_FLAG = "flag of "  # destination of a positional argument that is given as a flag
BOOLS = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}


def read_bool(text: str) -> bool:
    """`true` or `false`, in the ways that YAML and shells write them."""
    if text.lower() not in BOOLS:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return BOOLS[text.lower()]


def with_values(argv: list[str], parser: Parser) -> list[str]:
    """A command line in which each switch (a flag whose default is false) has a value, so that it does not take the
    next argument for its value."""
    switches = {
        flag
        for action in parser._actions
        if action.type is read_bool and action.metavar is None
        for flag in action.option_strings
    }
    following = [*argv, ""][1:]
    return [
        f"{flag}=true" if flag in switches and after.lower() not in BOOLS else flag
        for flag, after in zip(argv, following, strict=True)
    ]


def argparse_type(f: Field, hint: Any) -> dict:
    """argparse's options for the values of a field."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    choices = f.metadata.get("choices")
    if get_origin(hint) is list:
        return {"nargs": "+", "type": get_args(hint)[0], "choices": choices}
    if get_origin(hint) is Literal:
        return {"type": str, "choices": get_args(hint)}
    if hint is bool:
        return {"type": read_bool, "nargs": "?", "const": True}
    return {"type": hint, "choices": choices}


def default_of(f: Field) -> Any:
    """Default of a field; MISSING if it has none."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


def describe_field(f: Field, options: dict) -> dict:
    """argparse's options for the line of a flag in `--help`."""
    choices, default = list(options.get("choices") or ()), default_of(f)
    kind: str | None = {"read_bool": "bool", "Path": "path"}.get(options["type"].__name__, options["type"].__name__)
    kind = "|".join(choices) if 0 < len(choices) <= 3 else None if default is False else kind
    text = f"{f.metadata['help']} One of {', '.join(choices)}." if len(choices) > 3 else f.metadata["help"]
    if default is not False and default not in (None, "", [], MISSING):
        values = default if isinstance(default, list) else ["true" if default is True else default]
        text += f" (default: {' '.join(map(str, values))})"
    return {"metavar": kind, "help": text.replace("%", "%%")}


def add_field(parser: argparse._ActionsContainer, f: Field, hint: Any) -> None:
    """Add the flag of a field, or its positional argument and a flag that is not shown."""
    options = {**argparse_type(f, hint), "default": argparse.SUPPRESS}
    flags = dict.fromkeys((f"--{f.name}", f"--{f.name.replace('_', '-')}"))
    if "position" not in f.metadata:
        parser.add_argument(*flags, dest=f.name, **options, **describe_field(f, options))
        return
    kind, choices = options["type"], options.get("choices")

    def convert(text: str):  # argparse converts and checks defaults too
        if text != argparse.SUPPRESS and choices and text not in choices:
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(choices)})")
        return text if text == argparse.SUPPRESS else kind(text)

    several = "*" if options.get("nargs") == "+" else "?"
    shown: dict = {"metavar": f.metadata["position"], "help": f.metadata["help"], "nargs": several, "type": convert}
    shown["choices"] = None
    parser.add_argument(f.name, **{**options, **shown})
    parser.add_argument(*flags, dest=f"{AS_FLAG}{f.name}", help=argparse.SUPPRESS, **options)


def make_parser(classes: list[type], description: str | None, prog: str | None) -> Parser:
    """A parser of the flags of dataclasses, in a group for each class; flags in `_advanced` are in a group of that
    name. What is not given is not in its result."""
    positions = [f.metadata["position"] for cls in classes for f in fields(cls) if "position" in f.metadata]
    usage = " ".join(["%(prog)s", *(name.upper() for name in positions), "[--flag value ...]"])
    parser = Parser(prog, usage, description, formatter_class=HelpFormatter, allow_abbrev=False)
    text = "Recipes: yaml files of flags, or their names; flags override them."
    parser.add_argument("--config", nargs="+", default=[], metavar="recipe", help=text)
    groups = [parser.add_argument_group(getattr(cls, "_argument_group_name", None)) for cls in classes]
    advanced = parser.add_argument_group("advanced")
    for group, cls in zip(groups, classes, strict=True):
        hints = get_type_hints(cls)
        for f in fields(cls):
            container = advanced if f.name in getattr(cls, "_advanced", ()) else group
            add_field(parser if "position" in f.metadata else container, f, hints[f.name])
    return parser


def read_arguments(parser: Parser, argv: list[str], known: set[str]) -> dict:
    """What a command line gives, by name of the field, and `config`.

    Raises:
        ValueError: a flag is unknown or has an invalid value.
    """
    values, rest = parser.parse_known_intermixed_args(with_values(argv, parser))
    if rest:
        raise ValueError(describe_unknown(rest, known, parser.prog))
    given = vars(values)
    for name in [name for name in given if name.startswith(AS_FLAG)]:
        value = given.pop(name)
        if given.setdefault(name.removeprefix(AS_FLAG), value) is not value:
            parser.error(f"--{name.removeprefix(AS_FLAG)} is given twice, also by its position")
    return given


def read_mapping(name: str, text: str) -> dict:
    """A mapping that is given as JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping of fields, got {text}.")
    return value


def parse(
    classes: list[type],
    argv: list[str],
    description: str | None = None,
    prog: str | None = None,
    ignore_unknown: bool = False,
) -> tuple:
    """Parse recipes and flags.

    Args:
        classes: dataclasses whose fields are the arguments. Those in `_advanced` are listed in a group "advanced".
        argv: command line without the name of the program.
        description: text above the flags in `--help`.
        prog: name of the command in `--help`.
        ignore_unknown: ignore recipe entries of other commands (scoring does not need the optimizer's).

    Returns:
        one instance of each class.

    Raises:
        ValueError: a recipe is invalid, a flag is unknown or missing, or a number is outside its interval.
    """
    parser = make_parser(classes, description, prog)
    every = {f.name: f for cls in classes for f in fields(cls)}
    given = read_arguments(parser, argv, set(every))
    paths: list[str] = given.pop("config")
    recipe: dict = {}
    for path in paths:
        recipe = merge(recipe, read_recipe(path))
    unknown = sorted(set(recipe) - set(every))
    if unknown and not ignore_unknown:
        raise ValueError(f"Recipe {', '.join(paths)} has unknown flags: {', '.join(unknown)}.")
    own = {name: value for name, value in recipe.items() if name in every}
    for name, value in own.items():
        if isinstance(value, dict) and name in given:  # a mapping is merged with that of the recipe
            mapping = read_mapping(name, given[name])
            given[name] = json.dumps(merge(value, mapping) if mapping else {})  # an empty one leaves it out
    given = {**read_arguments(parser, as_flags(own), set(every)), **given}
    absent = [f for f in every.values() if default_of(f) is MISSING and f.name not in given]
    if absent:
        names = [f.metadata["position"].upper() if "position" in f.metadata else f"--{f.name}" for f in absent]
        parser.error(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing")
    return tuple(cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given}) for cls in classes)


def describe_unknown(rest: list[str], known: set[str], prog: str) -> str:
    """A sentence about arguments that no field has."""
    flag = next((text for text in rest if text.startswith("--")), None)
    if flag is None:
        return f"There are too many arguments: {' '.join(rest)} (`{prog} --help` lists all arguments)."
    name = flag.removeprefix("--").split("=")[0].replace("-", "_")
    near = difflib.get_close_matches(name, known, 1)
    return f"Unknown flag {flag}{f'; did you mean --{near[0]}?' if near else f' (`{prog} --help` lists all flags).'}"
