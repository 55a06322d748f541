"""Drawing a segmentation result on its image."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from ..model.postprocessing import segments_of

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


def instance_shades(masks: list[np.ndarray]) -> list[int]:
    """Positions in `SHADES`, so that masks that touch or overlap have different ones, if there are enough."""
    shades: list[int] = []
    boxes = [bounding_box(mask) for mask in masks]
    for index, mask in enumerate(masks):
        near = [other for other in range(index) if touches(mask, boxes[index], masks[other], boxes[other])]
        used = [shades[other] for other in near]
        shades.append(min(range(len(SHADES)), key=lambda shade: (used.count(shade), shade)))
    return shades


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a mask; zeros if it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) if len(rows) else (0, 0, 0, 0)


def touches(mask: np.ndarray, box: tuple, other: np.ndarray, other_box: tuple, reach: int = 3) -> bool:
    """Whether a mask has a pixel within `reach` pixels of another one."""
    top, bottom = max(box[0], other_box[0]) - reach, min(box[1], other_box[1]) + reach
    left, right = max(box[2], other_box[2]) - reach, min(box[3], other_box[3]) + reach
    if top >= bottom or left >= right or not any(box) or not any(other_box):
        return False
    part = slice(max(top, 0), bottom), slice(max(left, 0), right)
    grown = F.max_pool2d(torch.from_numpy(mask[part])[None, None].float(), 2 * reach + 1, 1, reach)[0, 0].bool().numpy()
    return bool((grown & other[part]).any())


def contour(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a bool `[H, W]` mask within `width` pixels of its outside; the image border is not outside."""
    inverse = torch.from_numpy(~mask)[None, None].float()
    return mask & (F.max_pool2d(inverse, 2 * width + 1, stride=1, padding=width)[0, 0] > 0).numpy()


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
        image: of any mode.
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
        ValueError: the result's size is not the image's.
    """
    segments = result_segments(result, id2label)
    for segment in segments:
        if segment.mask.shape != image.size[::-1]:
            height, width = segment.mask.shape
            raise ValueError(f"The result is {height}x{width}, the image {image.height}x{image.width}.")
    segments = sorted(segments, key=lambda segment: -segment.mask.sum())
    factor = max(1, -(-READABLE // max(1, min(image.size)))) if min(image.size) < READABLE / 2 else 1
    factor = max(1, min(factor, LARGEST // max(image.size)))
    image = image.convert("RGB").resize((factor * image.width, factor * image.height), Image.Resampling.BILINEAR)
    segments = [replace(segment, mask=segment.mask.repeat(factor, 0).repeat(factor, 1)) for segment in segments]
    canvas = np.asarray(image).astype(np.float32)
    width = max(1, min(image.size) // 400)
    counts = Counter(segment.label_id for segment in segments)
    things = {segment.label_id for segment in segments if segment.score is not None or counts[segment.label_id] > 1}
    shades: dict[int, Iterator[int]] = {label: iter(()) for label in counts}
    for label in things:
        shades[label] = iter(instance_shades([segment.mask for segment in segments if segment.label_id == label]))
    for segment in segments:
        label, mask = segment.label_id, segment.mask
        color = np.array(shaded(class_color(label, palette), SHADES[next(shades[label], 0)]), dtype=np.float32)
        canvas[mask] = (1 - opacity) * canvas[mask] + opacity * color
        line = 255.0 if color.mean() < 128 else 20.0
        canvas[contour(mask, width)] = 0.3 * color + 0.7 * line if label in things else color
    for mask in (segment.mask for segment in segments if segment.mark):
        canvas[contour(mask, 3 * width)] = MARKED
        canvas[contour(mask, width)] = 255.0
    drawn = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    font = ImageFont.load_default(size=max(11, min(drawn.size) // 40))
    named = len(id2label) > 1 and (len(counts) > 1 or not legend)
    id2label = {label: one_line(id2label[label]) for label in counts}
    names = {label: id2label[label] if named else "" for label in counts}
    captioned = [segment for segment in segments if segment.score is not None or segment.mark]
    captions = [(segment.mask, segment.caption(names[segment.label_id])) for segment in captioned]
    if len(captions) <= MOST_CAPTIONS:
        write_captions(ImageDraw.Draw(drawn), captions, drawn.size, font)
    if not legend or not segments:
        return drawn
    entries = [(class_color(label, palette), id2label[label], counts[label]) for label in sorted(counts)]
    return add_legend(drawn, entries, font)


def one_line(name: str) -> str:
    """A class name without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def write_captions(pen: ImageDraw.ImageDraw, captions: list[tuple[np.ndarray, str]], size: tuple, font) -> None:
    """Write each text in a dark box at its mask, where it covers no other text; a line leads to the mask if the place
    is outside of it. A text for which there is no place is left out."""
    placed: list[tuple[int, int, int, int]] = []
    for mask, text in captions:
        if not mask.any():
            continue
        rows, columns = np.nonzero(mask)
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        anchor = int(columns[nearest]), int(rows[nearest])
        left, top, right, bottom = (round(side) for side in pen.textbbox((0, 0), text, font=font))
        width, height = right - left + 4, bottom - top + 4
        covers = len(rows) < 3 * width * height  # then beside the mask
        place = free_place(anchor, (width, height), size, placed, nearest=1 if covers else 0)
        if place is None:
            continue
        x, y = place
        placed.append((x, y, x + width, y + height))
        if not (x <= anchor[0] <= x + width and y <= anchor[1] <= y + height):
            pen.line((*anchor, x + width // 2, y + height // 2), fill=(20, 20, 20), width=1)
        pen.rectangle(placed[-1], fill=(20, 20, 20))
        pen.text((x + 2 - left, y + 2 - top), text, fill=(255, 255, 255), font=font)


def free_place(
    anchor: tuple[int, int], box: tuple[int, int], size: tuple, placed: list[tuple], nearest: int
) -> tuple[int, int] | None:
    """Upper left corner of a box in the image, near a point, that overlaps no box placed before; None if there is none
    near enough. `nearest` is 0 for places at the point too, 1 for places beside it."""
    (width, height), (image_width, image_height) = box, size
    if width > image_width or height > image_height:
        return None
    for ring in range(nearest, 6):
        for dy in range(-ring, ring + 1):
            for dx in (-ring, 0, ring) if abs(dy) == ring else (-ring, ring):
                x = min(max(anchor[0] - width // 2 + dx * (width // 2 + height), 0), image_width - width)
                y = min(max(anchor[1] - height // 2 + dy * (height + 1), 0), image_height - height)
                if all(
                    x >= right or x + width <= left or y >= bottom or y + height <= top
                    for left, top, right, bottom in placed
                ):
                    return x, y
    return None


def add_legend(image: Image.Image, entries: list[tuple[tuple, str, int]], font) -> Image.Image:
    """Append a legend on the right, in as many columns as it needs: colour, class name and, if it is above one, number
    of segments."""
    texts = [name if count == 1 else f"{name} ({count})" for _, name, count in entries]
    line = int(font.size * 1.5)
    pen = ImageDraw.Draw(image)
    width = int(max(pen.textlength(text, font=font) for text in texts)) + 2 * line + 8
    lines = max(1, image.height // line - 1)
    columns = -(-len(texts) // lines)
    height = max(image.height, line * (min(len(texts), lines) + 1))
    canvas = Image.new("RGB", (image.width + columns * width, height), "white")
    canvas.paste(image, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for index, ((color, _, _), text) in enumerate(zip(entries, texts, strict=True)):
        x = image.width + index // lines * width + line // 2
        y = line // 2 + index % lines * line
        pen.rectangle((x, y, x + font.size, y + font.size), fill=color, outline=(60, 60, 60))
        pen.text((x + line, y), text, fill=(20, 20, 20), font=font)
    return canvas
