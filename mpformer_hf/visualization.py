"""Drawing a segmentation result on its image."""

import colorsys
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F


def class_color(label_id: int) -> tuple[int, int, int]:
    """Stable RGB colour of a class: hues in golden-ratio steps, with varying saturation and brightness."""
    hue = (0.11 + label_id * 0.618034) % 1
    saturation, brightness = ((0.85, 1.0), (0.6, 0.75), (1.0, 0.55), (0.4, 1.0))[label_id // 5 % 4]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def instance_color(label_id: int, position: int) -> tuple[int, int, int]:
    """Stable colour of the `position`-th instance of a class: a shade of the class colour."""
    shade = 1 - 0.16 * (position % 4)
    return tuple(round(shade * channel) for channel in class_color(label_id))


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels of a bool `[H, W]` mask within two pixels of its outside; the image border is not outside."""
    inverse = torch.from_numpy(~mask)[None, None].float()
    return mask & (F.max_pool2d(inverse, 5, stride=1, padding=2)[0, 0] > 0).numpy()


def result_segments(result, id2label: Mapping[int, str]) -> list[tuple[int, float | None, np.ndarray]]:
    """(label id, score, bool `[H, W]` mask) of each segment of a post-processed result."""
    if not isinstance(result, Mapping):  # a semantic map
        labels = np.asarray(result)
        return [(int(label), None, labels == label) for label in np.unique(labels) if int(label) in id2label]
    maps = result["segmentation"]
    maps = maps.cpu().numpy() if torch.is_tensor(maps) else np.asarray(maps)
    if "segments_info" not in result:
        return result_segments(maps, id2label)
    masks = maps if maps.ndim == 3 else [maps == segment["id"] for segment in result["segments_info"]]
    return [
        (segment["label_id"], segment.get("score"), np.asarray(mask, dtype=bool))
        for segment, mask in zip(result["segments_info"], masks, strict=True)
    ]


def draw_segmentation(
    image: Image.Image, result, id2label: Mapping[int, str], opacity: float = 0.55, legend: bool = True
) -> Image.Image:
    """Draw colours, contours, names and a legend on an image.

    Args:
        image: of any mode.
        result: semantic map `[H, W]` of class ids (ids without a name are not drawn), or the result of instance or
            panoptic post-processing; of the image's size.
        id2label: class names.
        opacity: opacity of the colours, 0 to 1.
        legend: append a legend on the right.

    Returns:
        RGB image.

    Raises:
        ValueError: the result's size is not the image's.
    """
    canvas = np.asarray(image.convert("RGB")).astype(np.float32)
    segments = result_segments(result, id2label)
    counts: dict[int, int] = {}
    captions = []
    for label, score, mask in sorted(segments, key=lambda segment: -segment[2].sum()):
        if mask.shape != canvas.shape[:2]:
            raise ValueError(f"The result is {mask.shape[0]}x{mask.shape[1]}, the image {canvas.shape[:2]}.")
        position = counts.get(label, 0)
        counts[label] = position + 1
        color = np.array(instance_color(label, position), dtype=np.float32)
        canvas[mask] = (1 - opacity) * canvas[mask] + opacity * color
        edge = contour(mask)
        canvas[edge] = 0.25 * canvas[edge] + 0.75 * color
        if score is not None and mask.any():
            captions.append((mask, f"{id2label[label]} {score:.2f}"))
    drawn = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    font = ImageFont.load_default(size=max(10, min(drawn.size) // 36))
    pen = ImageDraw.Draw(drawn)
    for mask, text in captions:
        write_caption(pen, mask, text, font)
    if not legend or not segments:
        return drawn
    return add_legend(drawn, [(label, id2label[label], counts[label]) for label in sorted(counts)], font)


def write_caption(pen: ImageDraw.ImageDraw, mask: np.ndarray, text: str, font) -> None:
    """Write text in a dark box at the pixel of the mask nearest to its centre, inside the image."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    image_height, image_width = mask.shape
    if width > image_width or height > image_height or mask.sum() < width * height / 4:
        return  # the caption would cover the segment
    x = int(np.clip(columns[nearest] - width // 2, 0, image_width - width))
    y = int(np.clip(rows[nearest] - height // 2, 0, image_height - height))
    pen.rectangle((x, y, x + width, y + height), fill=(20, 20, 20))
    pen.text((x + 2 - left, y + 2 - top), text, fill=(255, 255, 255), font=font)


def add_legend(image: Image.Image, entries: list[tuple[int, str, int]], font) -> Image.Image:
    """Append a legend: colour, class name and, if it is above one, number of segments."""
    texts = [name if count == 1 else f"{name} ({count})" for _, name, count in entries]
    line = int(font.size * 1.5)
    pen = ImageDraw.Draw(image)
    width = int(max(pen.textlength(text, font=font) for text in texts)) + 2 * line + 8
    canvas = Image.new("RGB", (image.width + width, max(image.height, line * (len(texts) + 1))), "white")
    canvas.paste(image, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for index, ((label, _, _), text) in enumerate(zip(entries, texts, strict=True)):
        x, y = image.width + line // 2, line // 2 + index * line
        pen.rectangle((x, y, x + font.size, y + font.size), fill=class_color(label), outline=(60, 60, 60))
        pen.text((x + line, y), text, fill=(20, 20, 20), font=font)
    return canvas
