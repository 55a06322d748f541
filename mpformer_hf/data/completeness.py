"""What a dataset and its user say about labels that are missing: ignored classes, annotated classes, incomplete images.

All layouts are read in the same way, and this is applied to what their readers return. A row may have the columns
`annotated_classes`, names or category ids of classes, and `complete`, a boolean.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Value

from .arguments import DataArguments
from .labels import Labels
from .segments import Reader, Segments

COLUMNS = {"annotated_classes": [Value("string")], "complete": Value("bool")}
LVIS = ("neg_category_ids", "not_exhaustive_category_ids")


def columns_of_images(images: list[dict], annotations: list[dict], categories: list[dict], where: Path) -> dict:
    """`annotated_classes` and `complete` of the images of a COCO JSON, by image id. For LVIS, the annotated classes are
    those that occur or were looked for, except `not_exhaustive_category_ids`.

    Raises:
        ValueError: they are of another form, or there is no such class.
    """
    given = [key for key in COLUMNS if any(key in image for image in images)]
    lvis = any(LVIS[0] in image for image in images)
    if lvis:
        given = ["annotated_classes", *(key for key in given if key != "annotated_classes")]
    if not given:
        return {image["id"]: {} for image in images}
    names = {row["id"]: row["name"] for row in categories}
    present: dict = {image["id"]: set() for image in images}
    for row in annotations if lvis else ():
        present[row["image_id"]].add(row["category_id"])
    columns = {}
    for image in images:
        classes, complete = image.get("annotated_classes"), image.get("complete")
        negative, partly = (image.get(key, []) for key in LVIS)
        if lvis:
            classes = sorted((present[image["id"]] | set(negative)) - set(partly))
        if not isinstance(classes, list | None) or not isinstance(complete, bool | None):
            found = f"annotated_classes {classes!r} and complete {complete!r}"
            raise ValueError(f"{where}: image {image['id']} has {found}, expected a list and true or false.")
        unknown = [name for name in classes or () if name not in names and name not in names.values()]
        if unknown:
            text = f"image {image['id']} has the annotated class {unknown[0]!r}, which is no category"
            raise ValueError(f"{where}: {text}.")
        listed = None if classes is None else [names.get(name, name) for name in classes]
        columns[image["id"]] = {key: {"annotated_classes": listed, "complete": complete}[key] for key in given}
    return columns


def stated_columns(column_names: Collection[str]) -> list[str]:
    """Those of `COLUMNS` that a table has."""
    return [name for name in COLUMNS if name in column_names]


def columns_of(segments: Segments, labels: Labels) -> dict:
    """The columns of an image that was read."""
    annotated = segments.annotated
    names = None if annotated is None else [n for n, known in zip(labels.names, annotated, strict=True) if known]
    return {"annotated_classes": names, "complete": segments.complete}


def ids_of(names: Sequence[str | int], labels: Labels, where: str) -> list[int]:
    """Class ids of names or category ids. Classes of `labels.before_ignoring` that are ignored are left out.

    Raises:
        ValueError: there is no such class.
    """
    ids = {name: label for label, name in enumerate(labels.names)}
    categories = labels.category_to_class
    found = []
    for name in names:
        label = ids.get(name) if isinstance(name, str) else categories.get(name)
        ignored = labels.before_ignoring is not None and (
            name in labels.before_ignoring.names or name in labels.before_ignoring.category_to_class
        )
        if label is None and not ignored:
            raise ValueError(f"{where} has {name!r}, which is not a class; the classes are {', '.join(labels.names)}")
        found += [label] if label is not None else []
    return found


def without_classes(labels: Labels, ignored: Sequence[str]) -> Labels:
    """Labels without some classes, whose pixels are void.

    Raises:
        ValueError: there is no such class, or no other one.
    """
    if not ignored:
        return labels
    left = [label for label in range(len(labels.names)) if label not in ids_of(ignored, labels, "ignore_labels")]
    if not left:
        raise ValueError("ignore_labels has all classes of the dataset.")
    new = {label: index for index, label in enumerate(left)}
    kept = {category: new[label] for category, label in labels.category_to_class.items() if label in new}
    return Labels(
        names=[labels.names[label] for label in left],
        category_to_class=kept,
        things={new[label] for label in labels.things if label in new},
        ignored_categories=labels.ignored_categories | (set(labels.category_to_class) - set(kept)),
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
    new = {label: labels.names.index(name) for label, name in enumerate(full.names) if name in labels.names}
    of_all = ids_of(args.annotated_classes, labels, "annotated_classes")

    def with_completeness(row: dict) -> Segments:
        segments = read(row)
        if len(new) < len(full.names):
            known = segments.classes | segments.crowds
            hidden = frozenset(segment for segment, label in known.items() if label not in new)
            parts = ({i: new[c] for i, c in x.items() if c in new} for x in (segments.classes, segments.crowds))
            classes, crowds = parts
            segments = replace(segments, classes=classes, crowds=crowds, ignored_objects=hidden)
        given = row.get("annotated_classes")
        listed = of_all if given is None else ids_of(given, labels, "annotated_classes")
        if given is not None or args.annotated_classes:
            segments.annotated = tuple(label in listed for label in range(len(labels.names)))
        complete = row.get("complete")
        segments.complete = not args.incomplete if complete is None else bool(complete)
        return segments

    return with_completeness
