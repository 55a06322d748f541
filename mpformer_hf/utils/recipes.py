"""Recipes: yaml files of flags."""

import difflib
import itertools
import json
from collections import Counter
from pathlib import Path

import yaml

from .files import read_text, read_yaml

PACKAGE = Path(__file__).parents[1]
RECIPES = PACKAGE / "training" / "recipes"  # in the wheel
if not RECIPES.is_dir():
    RECIPES = PACKAGE.parent / "training" / "recipes"  # in a clone


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML without tags that run code; a key that is given twice is an error. Dates are texts."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        start: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key, count in Counter(map(str, keys)).items() if count > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_recipe(path: str, above: tuple[Path, ...] = ()) -> dict:
    """Read a yaml file of flags, or the recipe of this name. Its `base` (one file or a list, relative to it) is read
    first; later values replace earlier ones, mappings (`model_fields`) are merged.

    Raises:
        ValueError: the file does not exist, is not YAML, is not a mapping of texts, or is its own base.
    """
    own = RECIPES / f"{path}.yaml"
    file = own if own.is_file() and not Path(path).is_file() else Path(path).resolve()
    if file in above:
        raise ValueError(f"Recipe {path} is its own base.")
    if file.is_dir():
        raise ValueError(f"Recipe {path} is a folder; give a dataset before --config.")
    if not file.is_file():
        names = (recipe.name for recipe in file.parent.glob("*.yaml"))
        known = sorted(names) if file.suffix else difflib.get_close_matches(path, recipe_names(), 3)
        where = "its folder has" if file.suffix else "near names are"
        hint = f"{where} {', '.join(known)}" if known else "mpformer train --recipes lists all"
        raise ValueError(f"Recipe {path} does not exist; {hint}.")
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


def recipe_names() -> list[str]:
    """Names of the recipes of this package."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def recipe_descriptions() -> dict[str, str]:
    """The first sentence of the comment of each recipe of this package, by name."""
    descriptions = {}
    for name in recipe_names():
        lines = read_text(RECIPES / f"{name}.yaml").splitlines()
        comment = " ".join(line[1:].strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
        descriptions[name] = f"{comment.split('. ')[0].rstrip('.')}." if comment else ""
    return descriptions


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
