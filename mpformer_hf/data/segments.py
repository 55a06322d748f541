"""The ground truth of one image, as all layouts are converted to it.

A map of segment ids and the class of each id. Pixels whose id has no class are void. Class ids are 0..K-1.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

VOID = -1  # class of pixels without a class; in files void is 255, unless the dataset has a class 255


@dataclass
class Segments:
    """One image's ground truth.

    Attributes:
        map: int32 `[H, W]`, segment ids; or `[L, H, W]` where segments overlap, each in one of L layers.
        classes: class of each segment id; other ids are void. A segment may have no pixel.
        crowds: class of each crowd segment; crowds are not trained on.
        areas: area in pixels of each segment as the dataset states it; where there is none, it is counted.
        ignored: ids, among those without a class, whose pixels official scores ignore; None: all of them.
        empty: number of segments that the dataset lists and that have no pixel.
    """

    map: Tensor
    classes: dict[int, int]
    crowds: dict[int, int] = field(default_factory=dict)
    areas: dict[int, float] = field(default_factory=dict)
    ignored: frozenset[int] | None = None
    empty: int = 0


Reader = Callable[[dict], Segments]  # from a row of the dataset, whose images are opened


def read_map(image) -> np.ndarray:
    """Label image to int32 ids `[H, W]`: one channel as it is, RGB as id = R + 256 G + 65536 B.

    Raises:
        ValueError: it has neither one nor three channels, is not of integers, or is a JPEG.
    """
    kind = getattr(image, "format", None)
    if kind in ("JPEG", "WEBP", "AVIF", "JPEG2000"):
        raise ValueError(f"the label is a {kind}, whose compression may change ids; label images must be PNG or TIFF")
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"the label has {image.n_frames} pages; label images must have one")
    values = np.array(image)
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        raise ValueError(f"the label has values of type {values.dtype}, expected integers")
    if values.ndim == 3 and values.shape[2] >= 3:
        values = values.astype(np.int32)
        return values[..., 0] + 256 * values[..., 1] + 65536 * values[..., 2]
    if values.ndim != 2:
        raise ValueError(f"the label has shape {values.shape}, expected (height, width) or three channels")
    return values.astype(np.int32)


def as_png(values: np.ndarray) -> dict:
    """An array as PNG, as a column of images takes it."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@dataclass
class ObjectMask:
    """One object of an image.

    Attributes:
        mask: bool `[H, W]`.
        label: class id.
        crowd: whether it is a crowd.
        area: area in pixels as the dataset states it, or None.
    """

    mask: np.ndarray
    label: int
    crowd: bool = False
    area: float | None = None


def from_objects(objects: Iterable[ObjectMask], height: int, width: int) -> Segments:
    """Segments of objects that may overlap; segment ids are 1, 2, ... in their order."""
    segments = Segments(torch.empty(0), {})
    layers: list[np.ndarray] = []
    for number, item in enumerate(objects, start=1):
        segments.empty += not item.mask.any()
        (segments.crowds if item.crowd else segments.classes)[number] = item.label
        if item.area is not None:
            segments.areas[number] = item.area
        add_to_layers(layers, item.mask, number)
    layers = layers or [np.zeros((height, width), dtype=np.int32)]
    segments.map = torch.from_numpy(layers[0] if len(layers) == 1 else np.stack(layers))
    return segments


def add_to_layers(layers: list[np.ndarray], mask: np.ndarray, number: int) -> None:
    """Write a segment into the first layer where it overlaps no other, or into a new layer."""
    for layer in layers:
        if not layer[mask].any():
            layer[mask] = number
            return
    layers.append(np.where(mask, np.int32(number), np.int32(0)))


def merge_by_class(segments: Segments) -> Segments:
    """Segments of semantic segmentation: one segment per class, whose id is the class; where objects overlap, the later
    one is in front."""
    merged = torch.full(segments.map.shape[-2:], VOID, dtype=torch.int32)
    layers = segments.map.view(-1, *merged.shape)
    for segment, label in sorted((segments.classes | segments.crowds).items()):
        merged[(layers == segment).any(0)] = label
    return Segments(merged, {int(label): int(label) for label in merged.unique() if label != VOID})
