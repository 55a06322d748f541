"""What a dataset and its user say about labels that are missing: ignored classes, annotated classes, incomplete images.

All layouts are read in the same way, and this is applied to what their readers return. A row may have the columns
`annotated_classes`, names or category ids of classes, and `complete`, a boolean.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Value

from .arguments import DataArguments
from .labels import Labels
from .segments import Reader, Segments

COLUMNS = {"annotated_classes": [Value("string")], "complete": Value("bool")}
LVIS = ("neg_category_ids", "not_exhaustive_category_ids")


def class_list(value: Any) -> list[str | int] | None:
    """A list of names or category ids, or None.

    Raises:
        ValueError: it is something else.
    """
    kinds = isinstance(value, list) and all(isinstance(x, (str, int)) and not isinstance(x, bool) for x in value)
    if value is not None and not kinds:
        raise ValueError(f"annotated_classes is {value!r}, expected a list of names or category ids")
    return value


def truth_value(value: Any) -> bool | None:
    """Whether an image is complete; None: not stated.

    Raises:
        ValueError: it is neither true nor false.
    """
    if value is not None and (not isinstance(value, (bool, int)) or value not in (0, 1)):
        raise ValueError(f"complete is {value!r}, expected true or false")
    return None if value is None else bool(value)


def columns_of_images(images: list[dict], annotations: list[dict], categories: list[dict], where: Path) -> dict:
    """`annotated_classes`, as category ids, and `complete` of the images of a COCO JSON, by image id. For LVIS, the
    annotated classes are those that occur or were looked for, except `not_exhaustive_category_ids`.

    Raises:
        ValueError: they are of another form, or there is no such class.
    """
    lvis = any(LVIS[0] in image for image in images)
    given = [key for key in COLUMNS if any(key in image for image in images)]
    given += ["annotated_classes"] * (lvis and "annotated_classes" not in given)
    if not given:
        return {image["id"]: {} for image in images}
    ids = {row["name"]: row["id"] for row in categories}
    present: dict = {image["id"]: set() for image in images}
    for row in annotations if lvis else ():
        present[row["image_id"]].add(row["category_id"])
    columns = {}
    for image in images:
        try:
            classes, complete = class_list(image.get("annotated_classes")), truth_value(image.get("complete"))
            if LVIS[0] in image:
                if classes is not None:
                    raise ValueError(f"annotated_classes is given beside {LVIS[0]}; one of them is enough")
                negative, partly = (class_list(image.get(key)) or [] for key in LVIS)
                classes = sorted((present[image["id"]] | set(negative)) - set(partly))
            listed = None if classes is None else [ids.get(name, name) for name in classes]
            unknown = [name for name in listed or () if name not in ids.values()]
            if unknown:
                raise ValueError(f"annotated_classes has {unknown[0]!r}, which is no category")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: image {image['id']}: {error}.") from error
        columns[image["id"]] = {key: {"annotated_classes": listed, "complete": complete}[key] for key in given}
    return columns


def stated_columns(column_names: Collection[str]) -> list[str]:
    """Those of `COLUMNS` that a table has."""
    return [name for name in COLUMNS if name in column_names]


def stated_by(row: dict, segments: Segments, labels: Labels, columns: Sequence[str]) -> dict:
    """The columns of an image that was read; None for what its row does not state."""
    annotated = segments.annotated
    names = None if annotated is None else [n for n, known in zip(labels.names, annotated, strict=True) if known]
    known = {"annotated_classes": names, "complete": segments.complete}
    return {name: None if row.get(name) is None else known[name] for name in columns}


def ids_of(names: Sequence[str | int], labels: Labels, where: str) -> list[int]:
    """Class ids of names or category ids. Classes that the task or the user leaves out are left out.

    Raises:
        ValueError: there is no such class.
    """
    ids: dict[Any, int] = {**{name: i for i, name in enumerate(labels.names)}, **labels.category_to_class}
    before = labels.before_ignoring or labels
    left_out = {*before.names, *before.category_to_class, *before.ignored_categories, *before.ignored_names}
    unknown = [name for name in names if name not in ids and name not in left_out]
    if unknown:
        raise ValueError(f"{where} has {unknown[0]!r}, which is not a class; the classes are {', '.join(before.names)}")
    return [ids[name] for name in names if name in ids]


def without_classes(labels: Labels, ignored: Sequence[str], semantic: bool) -> Labels:
    """Labels without some classes, whose pixels are void.

    Raises:
        ValueError: there is no such class, or no other one; of semantic segmentation, only one other.
    """
    if not ignored:
        return labels
    left = [label for label in range(len(labels.names)) if label not in ids_of(ignored, labels, "ignore_labels")]
    if not left:
        raise ValueError("ignore_labels has all classes of the dataset.")
    if len(left) == 1 and semantic:
        raise ValueError(f"ignore_labels leaves one class, {labels.names[left[0]]!r}, so every pixel would be of it.")
    new = {label: index for index, label in enumerate(left)}
    kept = {category: new[label] for category, label in labels.category_to_class.items() if label in new}
    return Labels(
        names=[labels.names[label] for label in left],
        category_to_class=kept,
        things={new[label] for label in labels.things if label in new},
        ignored_categories=labels.ignored_categories | (set(labels.category_to_class) - set(kept)),
        ignored_names=labels.ignored_names,
        palette=labels.palette and [labels.palette[label] for label in left],
        before_ignoring=labels,
    )


def reader_with_completeness(args: DataArguments, labels: Labels, read: Reader) -> Callable[[dict], Segments]:
    """A reader that hides ignored classes, and says which labels are complete.

    Args:
        args: `annotated_classes` and `incomplete` of all images of the dataset.
        labels: classes of the results.
        read: reader of the layout, for the classes `labels.before_ignoring`, or `labels` if none are ignored.
    """
    full = labels.before_ignoring or labels
    ids_of(args.annotated_classes, labels, "annotated_classes")  # checked before a row is read
    new = {label: labels.names.index(name) for label, name in enumerate(full.names) if name in labels.names}
    return partial(read_with_completeness, args=args, labels=labels, read=partial(read, labels=full), new=new)


def read_with_completeness(
    row: dict, args: DataArguments, labels: Labels, read: Callable[[dict], Segments], new: dict[int, int]
) -> Segments:
    """See `reader_with_completeness`; `new` maps the classes of the layout to those of the results."""
    segments = read(row)
    if labels.before_ignoring is not None:
        known = segments.classes | segments.crowds
        hidden = frozenset(segment for segment, label in known.items() if label not in new)
        classes, crowds = ({i: new[c] for i, c in x.items() if c in new} for x in (segments.classes, segments.crowds))
        segments = replace(segments, classes=classes, crowds=crowds, ignored_objects=hidden)
    given = class_list(row.get("annotated_classes"))
    if given is not None or args.annotated_classes:
        listed = ids_of(args.annotated_classes if given is None else given, labels, "annotated_classes")
        segments.annotated = tuple(label in listed for label in range(len(labels.names)))
    complete = truth_value(row.get("complete"))
    segments.complete = not args.incomplete if complete is None else complete
    return segments
