"""Own parts of a training run: criterion, matcher, transform, metric and backbone, named as `MODULE:NAME`."""

import importlib
import os
import sys
from typing import Any

from ..model.modeling_mpformer import MPFormerForUniversalSegmentation
from .arguments import OWN_PARTS, OwnPartArguments

OBJECTS: dict[str, Any] = {}  # that were given from Python, by name


def name_of_object(value: Any) -> str:
    """A name by which `load_object` finds a class or function of this process."""
    name = f"{value.__module__}:{value.__qualname__}"
    OBJECTS[name] = value
    return name


def name_objects(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags in which own parts are names."""
    return {
        key: name_of_object(value) if key in OWN_PARTS and value is not None and not isinstance(value, str) else value
        for key, value in flags.items()
    }


def load_object(name: str) -> Any:
    """A class or function by its name, `MODULE:NAME`; modules in the working directory are found.

    Raises:
        ValueError: it does not exist, or its module cannot be imported.
    """
    if name in OBJECTS:
        return OBJECTS[name]
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{name} must be MODULE:NAME, such as my_module:MyCriterion.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be loaded: {error}.") from error
    return value


def replace_parts(model: MPFormerForUniversalSegmentation, args: OwnPartArguments) -> None:
    """Replace the criterion, or its matcher, in place. What is saved does not depend on them."""
    if args.criterion:
        model.criterion = load_object(args.criterion)(model.config)
    if args.matcher:
        model.criterion.matcher = load_object(args.matcher)(model.config)
