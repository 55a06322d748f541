"""Several datasets as one: classes are joined by name, and an image is complete for the classes of its own dataset."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.files import read_json
from .arguments import DataArguments
from .dataset import SegmentationDataset
from .labels import Labels
from .names import check_texts
from .segments import Segments

logger = logging.getLogger(__name__)


@dataclass
class JoinedRows:
    """Rows of all parts, one part after the other, with their images in the column `image`."""

    parts: Sequence[SegmentationDataset]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def column_names(self) -> list[str]:
        """Columns of all parts together."""
        return [*dict.fromkeys(["image", *(name for part in self.parts for name in part.rows.column_names)])]

    def place(self, index: int) -> tuple[int, int]:
        """The part of a row, and its number there."""
        for number, part in enumerate(self.parts):
            if index < len(part):
                return number, index
            index -= len(part)
        raise IndexError("row out of range")

    def __getitem__(self, index: int) -> dict:
        number, own = self.place(index)
        row = self.parts[number].rows[own]
        return {**row, "image": row[self.parts[number].image_column]}


@dataclass
class JoinedDataset(SegmentationDataset):
    """Parts with their classes in those of all.

    Attributes:
        rows: of all parts.
        classes: for each part, the class of all that each of its classes is.
    """

    rows: Any
    classes: tuple[tuple[int, ...], ...] = ()

    def source_of(self, index: int) -> str:
        return self.sources[self.rows.place(index)[0]]

    def image_size(self, index: int) -> tuple[int, int]:
        number, own = self.rows.place(index)
        return self.rows.parts[number].image_size(own)

    def identity(self, index: int) -> tuple[int | str, str, str]:
        """See `SegmentationDataset.identity`; the number of the dataset makes ids and names of files different."""
        number, own = self.rows.place(index)
        image_id, file, name = self.rows.parts[number].identity(own)
        return f"{number}/{image_id}", file, f"{number}_{name}"

    def decode(self, row: dict, index: int) -> tuple[Tensor, Segments]:
        number, own = self.rows.place(index)
        try:
            image, segments = self.rows.parts[number].decode(row, own)
        except ValueError as error:
            raise ValueError(f"{self.sources[number]}: {error}") from error
        new = self.classes[number]
        known = {new[label] for label in range(len(new)) if segments.annotated is None or segments.annotated[label]}
        annotated = tuple(label in known for label in range(len(self.labels.names)))
        classes, crowds = ({i: new[label] for i, label in x.items()} for x in (segments.classes, segments.crowds))
        known_all = all(annotated)
        return image, replace(segments, classes=classes, crowds=crowds, annotated=None if known_all else annotated)

    def row_weights(self, weights: Sequence[float]) -> Tensor | None:
        """How often each row is drawn, float32 `[rows]`, if the parts are drawn in proportion to their weights; None if
        none are given."""
        if not weights:
            return None
        parts = zip(self.rows.parts, weights, strict=True)
        return torch.cat([torch.full((len(part),), weight / len(part)) for part, weight in parts])


def join_labels(parts: Sequence[Labels], synonyms: dict[str, str], sources: Sequence[str], task: str) -> Labels:
    """Classes of several datasets, joined by name, in the order in which they occur first.

    Args:
        parts: classes of each dataset.
        synonyms: other names of classes.
        sources: names of the datasets.
        task: semantic, instance or panoptic.

    Raises:
        ValueError: a class is of things in one dataset and of stuff in another, or two classes of one become the same.
    """
    names: dict[str, bool] = {}
    for labels, source in zip(parts, sources, strict=True):
        own = [synonyms.get(name, name) for name in labels.names]
        twice = sorted({name for name in own if own.count(name) > 1})
        if twice:
            raise ValueError(f"synonyms make two classes of {source} the same: {twice[0]}.")
        for label, name in enumerate(own):
            is_thing = label in labels.things and task != "semantic"  # which does not distinguish them
            if names.setdefault(name, is_thing) != is_thing:
                raise ValueError(f"{name} is a thing in one dataset and stuff in another; {source} is one of them.")
    things = {label for label, is_thing in enumerate(names.values()) if is_thing}
    return Labels([*names], {label: label for label in range(len(names))}, things)


def join(parts: Sequence[SegmentationDataset], args: DataArguments) -> JoinedDataset:
    """Datasets as one, see `JoinedDataset`.

    Raises:
        ValueError: their classes do not fit, see `join_labels`, or `synonyms` is no file of names of theirs.
    """
    sources = (args.dataset_name, *args.join)
    synonyms = check_texts(read_json(Path(args.synonyms)), args.synonyms) if args.synonyms else {}
    labels = join_labels([part.labels for part in parts], synonyms, sources, args.task)
    known = {name for part in parts for name in part.labels.names}
    if unknown := sorted(set(synonyms) - known):
        raise ValueError(f"synonyms has the name {unknown[0]!r}, which no dataset has.")
    names = [[synonyms.get(name, name) for name in part.labels.names] for part in parts]
    classes = tuple(tuple(labels.names.index(name) for name in own) for own in names)
    for label, name in enumerate(labels.names):
        having = ", ".join(source for source, own in zip(sources, classes, strict=True) if label in own)
        logger.info("class %d %s: %s", label, name, having)
    scores, skipped = {part.score for part in parts}, [error for part in parts for error in part.skipped]
    score = scores.pop() if len(scores) == 1 else "coco"
    roots = None if None in [part.roots for part in parts] else tuple(r for part in parts for r in part.roots or ())
    return JoinedDataset(
        JoinedRows(parts),
        "image",
        parts[0].read,
        labels,
        score,
        skipped=skipped,
        roots=roots,
        sources=sources,
        classes=classes,
    )
