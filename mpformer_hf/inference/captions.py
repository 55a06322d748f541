"""Texts on a picture: captions that cover nothing, and a legend."""

import numpy as np
from PIL import Image, ImageDraw

from .mask_parts import MaskPart


def write_captions(pen: ImageDraw.ImageDraw, captions: list[tuple[MaskPart, str]], size: tuple, font) -> None:
    """Write each text in a dark box at its mask, where it covers no other text; a line leads to the mask if the place
    is outside of it. A text for which there is no place is left out."""
    placed: list[tuple[int, int, int, int]] = []
    for part, text in captions:
        rows, columns = np.nonzero(part.mask)
        if not len(rows):
            continue
        rows, columns = rows + part.top, columns + part.left
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
