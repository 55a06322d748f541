"""Class names of a dataset, and which classes are things."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ..model.ranges import is_color
from ..utils.files import check_inside, read_json
from .arguments import MEMORY, DataArguments
from .coco_checks import find_category_problems, is_flag
from .names import check_names, read_names

NO_CLASSES = ("unlabelled", "unlabeled", "void", "ignore", "ignored")  # names of what is none
EXAMPLE = '{"0": "background", "1": "leaf"}'  # of a file of class names


@dataclass
class Labels:
    """Classes of a dataset.

    Attributes:
        names: class names, by class id 0..K-1.
        category_to_class: class id of each category id that annotations use.
        things: class ids that are things.
        ignored_categories: category ids that the task does not use, such as void, or stuff for instances.
        ignored_names: names of these categories.
        palette: RGB colour of each class, 0 to 255, if the dataset has one.
        before_ignoring: all classes that annotations use, if the user ignores some of them.
    """

    names: list[str]
    category_to_class: dict[int, int]
    things: set[int]
    ignored_categories: frozenset[int] = frozenset()
    ignored_names: frozenset[str] = frozenset()
    palette: list[tuple[int, int, int]] | None = None
    before_ignoring: "Labels | None" = None

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def category_ids(self) -> list[int]:
        """The dataset's own id of each class, by class id."""
        ids = {label: category for category, label in self.category_to_class.items()}
        return [ids[label] for label in range(len(self.names))]

    @property
    def stuff(self) -> list[int]:
        return sorted(set(range(len(self.names))) - self.things)


def check_classes(of_model: dict[int, str], of_dataset: dict[int, str]) -> None:
    """Compare the classes of a model and a dataset; generic names (`LABEL_0`, ...) match any name.

    Raises:
        ValueError: they differ in number, names or order.
    """
    if len(of_model) != len(of_dataset):
        raise ValueError(f"The model has {len(of_model)} classes, the dataset has {len(of_dataset)}.")
    for index, name in of_model.items():
        if name not in (of_dataset[index], f"LABEL_{index}"):
            raise ValueError(f"Class {index} is {name!r} in the model and {of_dataset[index]!r} in the dataset.")


def describe_difference(own: Labels, other: Labels) -> str:
    """What is different in the classes of two splits."""
    missing, more = ([n for n in a.names if n not in b.names] for a, b in ((other, own), (own, other)))
    parts = [f"{', '.join(missing)} missing"] * bool(missing) + [f"{', '.join(more)} added"] * bool(more)
    difference = " and ".join(parts) or "their ids or their order differ"
    return f"{difference}; if they are the same classes, give all names in one order with --id2label"


def as_rows(segments: list[dict] | dict[str, list]) -> list[dict]:
    """`segments_info` as a list of dicts; some datasets have a dict of lists."""
    if isinstance(segments, dict):
        return [dict(zip(segments, values, strict=True)) for values in zip(*segments.values(), strict=True)]
    return segments


def read_dataset_json(args: DataArguments, name: str):
    """Content of a JSON file in the dataset's folder or Hub repository, or None if it has none.

    Raises:
        ValueError: it is not JSON, or a link that leads out of the folder.
    """
    dataset = args.dataset_name
    if dataset.startswith(MEMORY):
        return None
    if Path(dataset).is_dir():
        file = Path(dataset) / name
        check_inside(file, None if args.allow_outside_files else (os.path.realpath(dataset),))
        return read_json(file, unique=True) if file.is_file() else None
    try:
        return read_json(Path(hf_hub_download(dataset, name, repo_type="dataset")), unique=True)
    except (EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError):
        return None


def check_categories(categories, dataset: str) -> None:
    """Check the content of `panoptic_categories.json`.

    Raises:
        ValueError: it is invalid; the message has the first problem.
    """
    if categories is None:
        return
    if not isinstance(categories, list) or not all(isinstance(row, dict) for row in categories):
        raise ValueError(f"panoptic_categories.json of {dataset} is not a list of categories.")
    problem = next(find_category_problems(categories), None)
    if problem:
        raise ValueError(f"panoptic_categories.json of {dataset}: {problem}.")


def feature_names(rows: Dataset, column: str) -> list[str] | None:
    """Names of the ClassLabel feature of a column, of its items or of its objects' categories, or None."""
    feature = (rows.features or {}).get(column)
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, dict):
        feature = next((feature[key] for key in ("category", "category_id", "label") if key in feature), None)
        feature = getattr(feature, "feature", feature)
    return feature.names if isinstance(feature, ClassLabel) else None


def class_names(rows: Dataset) -> dict[int, str] | None:
    """Class names from the column `semantic_class_to_id`, which repeats them in every row, or None.

    Raises:
        ValueError: the rows differ.
    """
    if "semantic_class_to_id" not in rows.column_names:
        return None
    first = next(iter(rows))["semantic_class_to_id"]
    if not isinstance(first, dict):
        raise ValueError(f"Row 0: semantic_class_to_id is {first!r}, expected a mapping of names to ids.")
    if isinstance(rows, Dataset):
        for index, table in enumerate(rows.select_columns("semantic_class_to_id")):
            if table["semantic_class_to_id"] != first:
                raise ValueError(f"Row {index}: semantic_class_to_id is not that of row 0.")
    return {index: name for name, index in first.items() if index is not None}


def read_labels(args: DataArguments, rows: Dataset, label_column: str, categories: list[dict] | None = None) -> Labels:
    """Classes of a dataset.

    Names are taken from the first of: `--id2label`, the dataset's `id2label.json`, its categories (of a COCO folder or
    `panoptic_categories.json`), its features, its column `semantic_class_to_id`. Things are taken from the categories
    or the `isthing` of all segments; for instance segmentation every class is a thing and stuff is left out.

    Raises:
        ValueError: there are no names.
    """
    if categories is None or not any("isthing" in category for category in categories):
        given = read_dataset_json(args, "panoptic_categories.json")
        check_categories(given, args.dataset_name)
        categories = categories if given is None else given
    names: dict | None = None
    if args.id2label:
        names = read_names(args.id2label)
    elif (content := read_dataset_json(args, "id2label.json")) is not None:
        names = check_names(content, f"id2label.json of {args.dataset_name}")
    void = frozenset(category["id"] for category in categories or () if category.get("void"))
    categories = categories and [category for category in categories if category["id"] not in void]
    if categories is not None:
        check_different(categories, args.dataset_name)
    if names is None and categories is not None:
        names = {category["id"]: category["name"] for category in categories}
    if names is None and (listed := feature_names(rows, label_column)):
        names = dict(enumerate(listed))
    names = names or class_names(rows)
    if names is None:
        raise ValueError(f"{args.dataset_name} has no class names: give --id2label, a JSON file such as {EXAMPLE}.")
    names = {int(category): name for category, name in names.items()}
    order = list(dict.fromkeys(names[category] for category in sorted(names)))
    if categories is not None:
        names = names_of_categories(names, categories, args)
    if args.do_reduce_labels and "semantic_class_to_id" in rows.column_names and not args.id2label:
        names = {category - 1: name for category, name in names.items() if category > 0}
    elif args.do_reduce_labels and str(names.get(0)).strip("_").lower() in NO_CLASSES:
        raise ValueError(
            f"Class 0 of {args.dataset_name} is {names[0]!r}; with do_reduce_labels the first name is that of id 1: "
            f"leave do_reduce_labels out, and give --ignore_labels {names[0]}."
        )
    things = find_things(args, rows, categories)
    ignored_categories = void
    colors = {category["id"]: read_color(category.get("color")) for category in categories or ()}
    ignored_names = frozenset(category["name"] for category in categories or () if category["id"] not in names)
    if args.task == "instance" and things is not None:
        ignored_names |= {name for category, name in names.items() if category not in things}
        ignored_categories = void | (set(names) - things)
        names = {category: name for category, name in names.items() if category in things}
    if not names:
        raise ValueError(f"{args.dataset_name} has no class of things, which the task instance needs.")
    if len(names) == 1 and args.task == "semantic":
        (only,) = names.values()
        raise ValueError(
            f"{args.dataset_name} has one class, {only!r}, so every pixel of a semantic result would be of it: keep "
            "the background as class 0 (leave out --do_reduce_labels), or choose --task instance."
        )
    twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if twice:
        raise ValueError(f"{args.dataset_name} has classes of the same name: {', '.join(twice)}.")
    kept = [name for name in order if name in names.values()]
    category_to_class = {category: kept.index(names[category]) for category in sorted(names)}
    if args.task == "instance":
        things = set(names)
    by_class = sorted(names, key=category_to_class.__getitem__)
    palette: list[Any] = [colors.get(category) for category in by_class] or [None]
    return Labels(
        names=kept,
        category_to_class=category_to_class,
        things={category_to_class[category] for category in things or () if category in category_to_class},
        ignored_categories=ignored_categories,
        ignored_names=ignored_names,
        palette=None if None in palette else palette,
    )


def check_different(categories: list[dict], dataset: str) -> None:
    """
    Raises:
        ValueError: two categories have one id, such as one colour of a table.
    """
    names: dict[int, str] = {}
    for category in categories:
        if names.setdefault(category["id"], category["name"]) != category["name"]:
            both = f"{names[category['id']]!r} and {category['name']!r}"
            raise ValueError(f"{dataset} has two classes of one id or colour: {both}.")


def names_of_categories(names: dict[int, str], categories: list[dict], args: DataArguments) -> dict[int, str]:
    """Names by the ids of annotations that have names themselves. Given names are in the order of the classes, and are
    those of the same name; without any common name they rename the categories by id. A given name without a category,
    which another split may have, gets an id of its own. Categories with `by_name` have ids without a meaning of their
    own, such as colours.

    Raises:
        ValueError: some names are the same, but not those of all categories.
    """
    own = {category["id"]: category["name"] for category in categories}
    by_name = bool(args.id2label) or all(category.get("by_name") for category in categories)
    for category, name in own.items():
        if not by_name and names.get(category, name) != name:
            both = f"{names[category]!r} in id2label.json and {name!r} in its categories"
            raise ValueError(f"{args.dataset_name} has two names for class {category}: {both}.")
    if set(own.values()) <= set(names.values()):
        free = max(own, default=-1) + 1
        absent = [name for name in dict.fromkeys(names.values()) if name not in own.values()]
        return {**own, **{free + index: name for index, name in enumerate(absent)}}
    if set(own.values()) & set(names.values()) or set(own) - set(names):
        unknown = next(name for name in own.values() if name not in names.values())
        if args.id2label and all(category.get("default") for category in categories):
            return names
        raise ValueError(f"{args.dataset_name} has the class {unknown!r}, which the given names do not have.")
    return {category: names[category] for category in own}


def read_color(color) -> tuple[int, int, int] | None:
    """RGB of a category: a list of three numbers, as in COCO's panoptic files, or `#rrggbb`; None if it is neither."""
    if isinstance(color, str) and re.fullmatch("#[0-9a-fA-F]{6}", color):
        red, green, blue = bytes.fromhex(color[1:])
        return red, green, blue
    return tuple(color) if is_color(color) else None


def find_things(args: DataArguments, rows: Dataset, categories: list[dict] | None) -> set[int] | None:
    """Category ids of things, or None if the dataset does not say.

    Raises:
        ValueError: it does not say, and the task is panoptic.
    """
    if categories is not None and any("isthing" in category for category in categories):
        return {category["id"] for category in categories if category.get("isthing")}
    if args.task == "semantic" or "segments_info" not in rows.column_names:
        return None
    columns = rows.select_columns("segments_info")
    segments = [segment for row in columns for segment in as_rows(row["segments_info"] or [])]
    if any("isthing" not in segment or segment["isthing"] is None for segment in segments):
        if categories is not None:
            raise ValueError(
                f"The categories of {args.dataset_name} do not say which are things: give each of them isthing, 1 or "
                "0, in the JSON, or put panoptic_categories.json with them into the folder."
            )
        raise ValueError(
            f"{args.dataset_name} does not say which classes are things: it has neither panoptic_categories.json nor "
            "isthing in segments_info."
        )
    kinds = {(segment["category_id"], segment["isthing"]) for segment in segments}
    wrong = sorted((category, kind) for category, kind in kinds if not is_flag(kind))
    if wrong:
        raise ValueError(f"{args.dataset_name} has isthing {wrong[0][1]!r} of category {wrong[0][0]}, expected 0 or 1.")
    things = {category for category, kind in kinds if kind}
    both = sorted(things & {category for category, kind in kinds if not kind})
    if both:
        raise ValueError(f"{args.dataset_name} has category {both[0]} as thing and as stuff.")
    return things
