"""Class names from JSON files and of the datasets of the public releases."""

import json
from pathlib import Path

from ..utils.files import different_keys, read_json
from .releases import RELEASES


def read_names(file: str | Path) -> dict:
    """Class names by id, from a JSON file, a JSON text, or the name of a dataset of the public releases (`ade20k`).

    Raises:
        ValueError: the file cannot be read or is not a mapping of ids to names.
    """
    if str(file).startswith("{"):
        try:
            names = json.loads(str(file), object_pairs_hook=different_keys)
        except ValueError as error:
            raise ValueError(f"id2label is not JSON: {error}.") from error
        return check_names(names, "id2label")
    if str(file) in RELEASES:
        return dict(enumerate(RELEASES[str(file)]["names"]))
    try:
        return check_names(read_json(Path(file), unique=True), str(file))
    except ValueError as error:
        raise ValueError(f"id2label: {error}") from error


def check_names(names, source: str) -> dict[int, str]:
    """Class names by id from the content of a JSON file.

    Raises:
        ValueError: it is not a mapping of different ids to texts.
    """
    if not isinstance(names, dict) or not names or not all(str(key).isdecimal() for key in names):
        raise ValueError(f'{source} must map class ids to names, like {{"0": "road"}}.')
    result = {int(key): name for key, name in names.items()}
    wrong = [name for name in result.values() if not isinstance(name, str) or not name]
    if len(result) < len(names) or wrong:
        reason = f"has the name {wrong[0]!r}, expected a text" if wrong else "has an id twice"
        raise ValueError(f"{source} {reason}.")
    return result


def check_texts(texts, source: str) -> dict[str, str]:
    """A mapping of texts to texts, the content of a JSON file.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise ValueError(f'{source} must map names to names, like {{"automobile": "car"}}.')
    return texts
