"""Drawing a segmentation result on its image."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..model.images import to_eight_bits, to_rgb_image
from ..model.postprocessing import segments_of
from .captions import add_legend, write_captions
from .mask_parts import MaskPart, contour, part_of, touches

# Okabe and Ito (2008), "Color Universal Design": distinguishable with all common kinds of colour blindness.
PALETTE = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0)),
    (204, 121, 167),
)
SHADES = (0.0, -0.4, 0.45, -0.2, 0.25, -0.55)  # towards black and white; touching instances have different ones
READABLE = 480  # smaller images are enlarged, so that captions can be read,
LARGEST = 1600  # up to this side
Palette = Sequence[Sequence[int]]
MOST_CAPTIONS = 60  # with more segments the legend counts them
MARKED = (215, 0, 40)  # contour of marked segments


def shaded(color: tuple[int, int, int], shade: float) -> tuple[int, int, int]:
    """A colour moved towards black (-1) or white (1)."""
    target = 255 if shade > 0 else 0
    red, green, blue = (round(channel + abs(shade) * (target - channel)) for channel in color)
    return red, green, blue


def class_color(label_id: int, palette: Palette | None = None) -> tuple[int, int, int]:
    """RGB colour of a class: that of a dataset's palette, or else a stable one. The first seven classes have the
    colours of `PALETTE`, others shades of them, and from the 43rd on shades of colours between two of them.

    Raises:
        ValueError: the dataset's palette has no colour for the class.
    """
    if palette is not None:
        if label_id >= len(palette):
            raise ValueError(f"The palette has {len(palette)} colours, but there is a class {label_id}.")
        red, green, blue = palette[label_id]
        return red, green, blue
    shade, between = label_id // len(PALETTE) % len(SHADES), label_id // (len(PALETTE) * len(SHADES)) % 4 / 4
    one, other = (np.array(PALETTE[(label_id + step) % len(PALETTE)]) for step in (0, 1))
    return shaded(tuple(((1 - between) * one + between * other).round().astype(int).tolist()), SHADES[shade])


def instance_shades(parts: list[MaskPart]) -> list[int]:
    """Positions in `SHADES`, so that masks that touch or overlap have different ones, if there are enough."""
    shades: list[int] = []
    for index, part in enumerate(parts):
        used = [shades[other] for other in range(index) if touches(part, parts[other])]
        shades.append(min(range(len(SHADES)), key=lambda shade: (used.count(shade), shade)))
    return shades


@dataclass
class DrawnSegment:
    """A segment of a result.

    Attributes:
        label_id: class.
        mask: bool `[H, W]`.
        score: None if it has none.
        mark: text that is written beside a marked segment.
    """

    label_id: int
    mask: np.ndarray
    score: float | None = None
    mark: str | None = None

    def caption(self, name: str) -> str:
        """Class name, score and mark, where there are any."""
        score = "" if self.score is None else f"{self.score:.2f}"
        text = " ".join(part for part in (name, score) if part)
        return ": ".join(part for part in (text, self.mark) if part)


def result_segments(result, id2label: Mapping[int, str]) -> list[DrawnSegment]:
    """Segments of a post-processed result, or of the pipeline's; classes of a semantic map that have no name are left
    out.

    Raises:
        ValueError: the pipeline's result has a class that has no id.
    """
    if isinstance(result, (list, tuple)):
        ids = {name: label for label, name in id2label.items()}
        unknown = next((row["label"] for row in result if row["label"] not in ids), None)
        if unknown is not None:
            raise ValueError(f"id2label has no class {unknown!r}.")
        return [DrawnSegment(ids[row["label"]], np.asarray(row["mask"]) > 0, row["score"]) for row in result]
    return [
        DrawnSegment(row["label_id"], mask.cpu().numpy(), row.get("score"), row.get("mark"))
        for row, mask in segments_of(result)
        if "id" in row or row["label_id"] in id2label
    ]


def draw_segmentation(
    image: Image.Image,
    result,
    id2label: Mapping[int, str],
    opacity: float = 0.55,
    legend: bool = True,
    palette: Palette | None = None,
) -> Image.Image:
    """Draw colours, contours, names and a legend on an image. Small images are enlarged.

    Args:
        image: with 8 or 16 bits, see `to_rgb`. For the pipeline's result it is turned as its EXIF data say.
        result: semantic map `[H, W]` of class ids (ids without a name are not drawn), or the result of instance or
            panoptic post-processing, or of the pipeline; of the image's size. A segment whose row of `segments_info`
            has a text `mark` gets a red contour and this text.
        id2label: class names.
        opacity: opacity of the colours, 0 to 1.
        legend: append a legend on the right.
        palette: RGB colour of each class, 0 to 255; default: those of `class_color`.

    Returns:
        RGB image.

    Raises:
        ValueError: the result's size is not the image's, or the image has values of 32 bits or floats.
    """
    segments = result_segments(result, id2label)
    of_pipeline = isinstance(result, (list, tuple))  # which turns images as their EXIF data say
    image = to_rgb_image(image) if of_pipeline else to_eight_bits(image)
    for segment in segments:
        if segment.mask.shape != image.size[::-1]:
            height, width = segment.mask.shape
            raise ValueError(f"The result is {height}x{width}, the image {image.height}x{image.width}.")
    factor = max(1, -(-READABLE // max(1, min(image.size)))) if min(image.size) < READABLE / 2 else 1
    factor = max(1, min(factor, LARGEST // max(image.size)))
    if factor > 1:
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.BILINEAR)
    width = max(1, min(image.size) // 400)
    pairs = [(segment, part_of(segment.mask, 3 * max(width, 1), factor)) for segment in segments]
    pairs = sorted(pairs, key=lambda pair: -pair[1].mask.sum())
    canvas = np.asarray(image).astype(np.float32)
    counts = Counter(segment.label_id for segment in segments)
    things = {segment.label_id for segment in segments if segment.score is not None or counts[segment.label_id] > 1}
    shades: dict[int, Iterator[int]] = {label: iter(()) for label in counts}
    for label in things:
        shades[label] = iter(instance_shades([part for segment, part in pairs if segment.label_id == label]))
    for segment, part in pairs:
        label, area = segment.label_id, canvas[part.window]
        color = np.array(shaded(class_color(label, palette), SHADES[next(shades[label], 0)]), dtype=np.float32)
        area[part.mask] = (1 - opacity) * area[part.mask] + opacity * color
        line = 255.0 if color.mean() < 128 else 20.0
        area[contour(part, width)] = 0.3 * color + 0.7 * line if label in things else color
    for part in (part for segment, part in pairs if segment.mark):
        canvas[part.window][contour(part, 3 * width)] = MARKED
        canvas[part.window][contour(part, width)] = 255.0
    drawn = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    font = ImageFont.load_default(size=max(11, min(drawn.size) // 40))
    named = len(id2label) > 1 and (len(counts) > 1 or not legend)
    id2label = {label: one_line(id2label[label]) for label in counts}
    names = {label: id2label[label] if named else "" for label in counts}
    captioned = [(part, segment) for segment, part in pairs if segment.score is not None or segment.mark]
    captions = [(part, segment.caption(names[segment.label_id])) for part, segment in captioned]
    if len(captions) <= MOST_CAPTIONS:
        write_captions(ImageDraw.Draw(drawn), captions, drawn.size, font)
    if not legend or not segments:
        return drawn
    entries = [(class_color(label, palette), id2label[label], counts[label]) for label in sorted(counts)]
    return add_legend(drawn, entries, font)


def one_line(name: str) -> str:
    """A class name without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())
