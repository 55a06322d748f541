"""What is in a split, before anyone trains on it: objects, classes, sizes; and what looks wrong."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import find_objects

from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.image_sizes import check_shape
from ..model.images import SIXTEEN_BITS, open_header, orientation_of
from ..model.label_maps import count_ids
from ..utils.progress import progress
from .segments import Segments, among

logger = logging.getLogger(__name__)
SAMPLED = 24  # images of a split that are read for the table, unless all are asked for
BATCH = 64  # images whose figures are in memory at once
SMALL = 4  # pixels: most objects below are a sign of wrong coordinates
LONG = 20  # sides of an image in this ratio are a sign of a wrong size
LISTED = 20  # classes in the table
LISTS = {"segments_info", "objects", "instances", "masks", "text"}  # columns that say which segments an image has
TWELVE_BITS = 4096


def number(count: int, one: str, many: str) -> str:
    """A count with the singular or the plural of a noun, and perhaps of its verb."""
    return f"{count:,} {one if count == 1 else many}"


@dataclass
class ImageFacts:
    """Figures of one image.

    Attributes:
        size: (height, width), turned as the EXIF data say.
        mode: of Pillow.
        turned: whether the EXIF data turn it.
        largest: largest value of an image of 16 bits, else None.
        areas: (class id, area in pixels) of each object, or of each class of a semantic map.
        crowds: number of crowds.
        empty: number of objects without a pixel.
        void: share of pixels without a class.
        not_exhaustive: number of classes whose objects may not all be labelled.
        pages: number of pages of the file; the first is used.
        cut: number of objects that reach beyond the image.
        repeated: number of objects that have the pixels and the class of another one.
    """

    size: tuple[int, int]
    mode: str
    turned: bool
    largest: int | None
    areas: list[tuple[int, int]]
    crowds: int
    empty: int
    void: float
    not_exhaustive: int
    pages: int = 1
    cut: int = 0
    repeated: int = 0


@dataclass
class Census:
    """Figures of a split.

    Attributes:
        images: number of its images.
        facts: figures of the images that were read.
        names: class names.
        objects: whether segments are objects that the dataset lists, so that other pixels are background.
        semantic: whether segments are the classes of semantic maps.
    """

    images: int
    names: list[str]
    objects: bool
    semantic: bool
    facts: list[ImageFacts] = field(default_factory=list)

    def table(self) -> Iterator[str]:
        """Lines of the table, without what looks wrong."""
        facts = self.facts
        sizes = sorted({fact.size for fact in facts}, key=lambda size: size[0] * size[1])
        size = " to ".join(dict.fromkeys(f"{width}x{height}" for height, width in (sizes[0], sizes[-1])))
        modes = ", ".join(f"{mode} ({n})" for mode, n in Counter(fact.mode for fact in facts).most_common())
        turned = sum(fact.turned for fact in facts)
        yield f"images    {self.images:,}, {len(facts):,} read; {size} pixels; {modes}; {turned} turned by EXIF"
        if not self.semantic:
            counts = [len(fact.areas) for fact in facts]
            crowds, empty = sum(fact.crowds for fact in facts), sum(fact.empty for fact in facts)
            mean = sum(counts) / len(counts)
            others = f"{number(crowds, 'crowd', 'crowds')}, {empty} without pixels"
            yield f"objects   {sum(counts):,}, {mean:.1f} an image ({min(counts)} to {max(counts)}); {others}"
        if not self.objects:
            yield f"void      {100 * np.mean([fact.void for fact in facts]):.1f} % of the pixels"
        partly = [fact.not_exhaustive for fact in facts if fact.not_exhaustive]
        if partly:
            classes = f"{min(partly)} to {max(partly)} classes"
            yield f"incomplete {number(len(partly), 'image', 'images')} may have unlabelled objects (of {classes})"
        counts_of_class, images_of_class, pixels = (Counter[int]() for _ in range(3))
        for fact in facts:
            counts_of_class.update(label for label, _ in fact.areas)
            images_of_class.update({label for label, _ in fact.areas})
            for label, area in fact.areas:
                pixels[label] += area
        total = sum(height * width for height, width in (fact.size for fact in facts))
        for label, name in list(enumerate(self.names))[:LISTED]:
            share = f"{100 * pixels[label] / total:.1f} % of the pixels"
            images = number(images_of_class[label], "image", "images")
            objects = "" if self.semantic else f"{number(counts_of_class[label], 'object', 'objects')}, "
            yield f"class {label:<4}{name}: {objects}{share}, {images}"
        if len(self.names) > LISTED:
            yield f"          and {len(self.names) - LISTED} more classes"

    def doubts(self) -> Iterator[str]:
        """What looks wrong, and what to do."""
        facts = self.facts
        areas = [area for fact in facts for _, area in fact.areas]
        if not self.semantic and areas and sum(area < SMALL for area in areas) > len(areas) / 2:
            yield f"most objects have fewer than {SMALL} pixels: are coordinates relative, or for another image size?"
        empty = sum(fact.empty for fact in facts)
        if empty:
            covers = number(empty, "object covers no pixel, and is", "objects cover no pixel, and are")
            yield f"{covers} not trained on: look at the coordinates"
        void = np.mean([fact.void for fact in facts])
        if not self.objects and void > 0.5:
            yield f"{100 * void:.0f} % of the pixels are void: is 255, or the void label, a class?"
        cut = sum(fact.cut for fact in facts)
        if cut:
            reach = number(cut, "object reaches beyond its image and is", "objects reach beyond their images and are")
            yield f"{reach} cut off: were the images resized after annotation?"
        repeated = sum(fact.repeated for fact in facts)
        if repeated:
            have = number(repeated, "object has", "objects have")
            yield f"{have} the pixels and the class of another one: were files joined twice?"
        plain = Counter(" ".join(name.split()).casefold() for name in self.names)
        alike = [name for name in self.names if plain[" ".join(name.split()).casefold()] > 1]
        if alike:
            yield f"class names differ only in spaces or capitals, and may be one class: {', '.join(map(repr, alike))}"
        crowds = sum(fact.crowds for fact in facts)
        if not self.semantic and crowds > len(areas):
            yield f"{crowds} of {crowds + len(areas)} objects are crowds (iscrowd 1), which are not trained on"
        long = [fact.size for fact in facts if max(fact.size) > LONG * min(fact.size)]
        if long:
            are = number(len(long), "image is", "images are")
            yield f"{are} long and narrow, such as {long[0][1]}x{long[0][0]}: cut them into tiles"
        turned = sum(fact.turned for fact in facts)
        if turned:
            are = number(turned, "image is", "images are")
            yield f"{are} turned by EXIF data: are the labels too? `mpformer check --output` draws them"
        pages = [fact.pages for fact in facts if fact.pages > 1]
        if pages:
            have = number(len(pages), "image has", "images have")
            yield f"{have} several pages or frames (up to {max(pages)}); the first is used"
        dark = [fact.largest for fact in facts if fact.largest is not None and fact.largest < TWELVE_BITS]
        if dark:
            have = number(len(dark), "16-bit image has", "16-bit images have")
            yield (
                f"{have} no value above {max(dark)} and would be nearly black, since the upper 8 bits are used: "
                "stretch the values to 0 to 65535"
            )
        found = {label for fact in facts for label, _ in fact.areas}
        if self.semantic and found == {0} and len(self.names) > 2 and void:
            yield f"all images have {self.names[0]} and void only, as masks of 0 and 255 do: 255 is void, not a class"
        absent = set(range(len(self.names))) - found
        if absent and len(facts) == self.images:
            shown = ", ".join(self.names[label] for label in sorted(absent)[:5])
            do = number(len(absent), "class does", "classes do")
            yield f"{do} not occur: {shown}{', ...' if len(absent) > 5 else ''}"

    @property
    def incomplete(self) -> int:
        """Number of images that may have unlabelled objects."""
        return sum(fact.not_exhaustive > 0 for fact in self.facts)

    def check_shapes(self, processor: MPFormerImageProcessor, name: str) -> None:
        """Check that the images can be resized.

        Raises:
            ValueError: one is too narrow; the message begins with the name of the split.
        """
        for fact in self.facts if processor.do_resize else ():
            try:
                check_shape(fact.size, dict(processor.size).get("longest_edge"))
            except ValueError as error:
                raise ValueError(f"{name}: {error}; cut it into tiles.") from error

    def crowding(self, queries: int) -> str | None:
        """A sentence, if images have more objects than a model has queries."""
        crowded = [len(fact.areas) for fact in self.facts if not self.semantic and len(fact.areas) > queries]
        if not crowded:
            return None
        return (
            f"{len(crowded)} of {len(self.facts)} images have more objects (up to {max(crowded)}) than the model has "
            f"queries ({queries}): give --model_fields '{{\"num_queries\": N}}' and --max_detections N, or cut the "
            "images into tiles."
        )


def facts_of(dataset, index: int) -> ImageFacts:
    """Figures of an image of an opened split.

    Raises:
        ValueError: the row is invalid.
    """
    row = dataset.rows[index]
    image, segments = dataset.decode(row, index)
    with open_header(dataset.source(row[dataset.image_column])) as file:
        mode, pages, turned = file.mode, getattr(file, "n_frames", 1), orientation_of(file) != 1
        largest = int(np.array(file).max()) if mode in SIXTEEN_BITS else None
    height, width = image.shape[1:]
    found = count_ids(segments.map)
    areas = [(label, found.get(segment, 0)) for segment, label in segments.classes.items()]
    areas = [(label, area) for label, area in areas if area]
    void = 1 - covered(segments) / (height * width)
    not_exhaustive = sum(segments.not_exhaustive(label) for label in range(len(dataset.labels.names)))
    counts = (
        len(segments.crowds),
        segments.empty,
        void,
        not_exhaustive,
        pages,
        segments.cut,
        repeated(segments, found),
    )
    return ImageFacts((height, width), mode, turned, largest, areas, *counts)


def repeated(segments: Segments, areas: dict[int, int]) -> int:
    """Number of objects that have the class, the box and the area of an earlier one, which is in another layer."""
    layers: Iterable = segments.map.numpy() if segments.map.ndim == 3 else ()
    boxes = ((i, box) for layer in layers for i, box in enumerate(find_objects(layer), start=1) if box is not None)
    seen = Counter((segments.classes[i], areas[i], str(box)) for i, box in boxes if i in segments.classes)
    return seen.total() - len(seen)


def covered(segments: Segments) -> int:
    """Number of pixels that have a class."""
    return int(among(segments.map.view(-1, *segments.map.shape[-2:]), segments.classes | segments.crowds).sum())


def take_census(dataset, task: str, sample: int | None = SAMPLED) -> Census:
    """Read images spread over a split. If they have no object, or only class 0 and void, read more until one differs.

    Args:
        dataset: an opened split (`SegmentationDataset`), not streamed.
        task: semantic, instance or panoptic.
        sample: number of images; None: all.

    Raises:
        ValueError: a row is invalid; no image has an object, or all have the class 0 and void only, as masks of 0 and
            255 do.
    """
    number = len(dataset)
    listed = task == "instance" or (task != "semantic" and not LISTS.isdisjoint(dataset.rows.column_names))
    census = Census(number, dataset.labels.names, listed, task == "semantic")
    first = list(range(0, number, -(-number // min(sample or number, number))))
    order = [*first, *sorted(set(range(number)) - set(first))]

    def suspicious() -> bool:
        found = {label for fact in census.facts for label, _ in fact.areas}
        ignores = dataset.labels.before_ignoring is not None
        one_class = not listed and not ignores and found == {0} and len(dataset.labels.names) == 2
        return not found or (one_class and any(fact.void for fact in census.facts))

    with ThreadPoolExecutor() as pool, progress(total=len(first), desc="read", unit="image", leave=False) as bar:
        for start in [0, *range(len(first), number, BATCH)]:
            part = order[start : max(len(first), start + BATCH)] if start else first
            for facts in pool.map(lambda index: facts_of(dataset, index), part):
                census.facts.append(facts)
                bar.update()
            if not suspicious():
                return census
    if listed:
        crowds = sum(fact.crowds for fact in census.facts)
        why = f": {crowds} are crowds (iscrowd 1), which are not trained on" if crowds else ""
        raise ValueError(f"None of the {number} images has an object that is trained on{why}.")
    found = any(fact.areas for fact in census.facts)
    only = f"have only {dataset.labels.names[0]!r} and void" if found else "have no class"
    raise ValueError(f"All {number} images {only}; 255 is void: divide masks of 0 and 255 by 255, or add other images.")


def ended(sentence: str) -> str:
    """A sentence with its full stop, or its question mark."""
    return sentence if sentence.endswith("?") else f"{sentence}."


def log_census(dataset, task: str, name: str) -> Census:
    """Take the census of a split, and log its table and what looks wrong; returns it.

    Raises:
        ValueError: see `take_census`.
    """
    census = take_census(dataset, task)
    logger.info("%s\n%s", name, "\n".join(f"  {line}" for line in census.table()))
    for doubt in census.doubts():
        logger.warning("%s: %s", name, ended(doubt))
    return census
