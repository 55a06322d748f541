"""The ground truth of one image, as all layouts are converted to it.

A map of segment ids and the class of each id. Pixels whose id has no class are void. Class ids are 0..K-1.
"""

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import find_objects
from torch import Tensor

from ..model.images import FACTOR, PHOTOMETRIC, SIXTEEN_BIT_RGB
from ..model.label_maps import count_ids, encode_part
from ..model.targets import CROWD
from .labels import Labels

PADDING = -2  # id of pixels around an augmented image, which are background
LOSSY = ("JPEG", "WEBP", "AVIF", "JPEG2000")  # formats whose compression may change values
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
        cut: number of objects whose polygons reach beyond the image.
        ignored_objects: ids of regions that are void for every task: objects of classes that the user ignores.
        annotated: for each class, whether all its objects in this image are labelled; None: so for all classes.
        complete: whether all objects are labelled, and not only some of them.
    """

    map: Tensor
    classes: dict[int, int]
    crowds: dict[int, int] = field(default_factory=dict)
    areas: dict[int, float] = field(default_factory=dict)
    ignored: frozenset[int] | None = None
    empty: int = 0
    cut: int = 0
    ignored_objects: frozenset[int] = frozenset()
    annotated: tuple[bool, ...] | None = None
    complete: bool = True

    def void(self, task: str, map_: Tensor | None = None) -> Tensor | None:
        """Pixels that are neither of a class nor background, uint8 `[H, W]`: 1 = void, 2 = `CROWD`, 0 = others; None if
        there can be none. In instance segmentation, pixels without a class are background unless the dataset states
        that they are ignored.

        Args:
            task: semantic, instance or panoptic.
            map_: the map after an augmentation; default: the map itself.
        """
        layers = self.map if map_ is None else map_
        layers = layers.reshape(-1, *layers.shape[-2:])
        ids = (self.ignored or frozenset()) | self.ignored_objects
        unlabelled = self.ignored is None and task != "instance"
        if not ids and not self.crowds and not unlabelled:
            return None
        void = (layers != PADDING).all(0).to(torch.uint8) * unlabelled
        void = void.masked_fill(among(layers, self.crowds), CROWD).masked_fill(among(layers, ids), 1)
        return void.masked_fill(among(layers, self.classes), 0)

    def rles(self, ids: Collection[int]) -> list[dict]:
        """COCO's RLE of some segments, in their order; each is searched on its bounding box only."""
        height, width = self.map.shape[-2:]
        order, found = np.array(sorted(ids), dtype=np.int64), {}
        for layer in self.map.reshape(-1, height, width).numpy() if len(order) else ():
            places = np.searchsorted(order, layer).clip(max=len(order) - 1)
            numbers = np.where(order[places] == layer, places + 1, 0)
            for number, box in enumerate(find_objects(numbers), start=1):
                if box is not None:
                    part = numbers[box] == number
                    found[int(order[number - 1])] = encode_part(part, box[0].start, box[1].start, height, width)
        empty = {"size": [height, width], "counts": [height * width]}
        return [found.get(segment, empty) for segment in ids]

    def not_exhaustive(self, label: int) -> bool:
        """Whether the image may have objects of a class that are not labelled."""
        return not self.complete or (self.annotated is not None and not self.annotated[label])


def among(layers: Tensor, ids: Collection[int]) -> Tensor:
    """Pixels `[H, W]` whose id in any of the layers `[L, H, W]` is one of `ids`."""
    return is_among(layers, ids).any(0)


def is_among(layers: Tensor, ids: Collection[int]) -> Tensor:
    """Which pixels of a map have one of some ids, bool of its shape. A table of the ids is many times faster than
    `torch.isin`, unless they are far apart."""
    known = torch.tensor(sorted(ids), dtype=torch.int64)
    if not len(known) or not layers.numel():
        return torch.zeros_like(layers, dtype=torch.bool)
    low, high = (int(value) for value in layers.aminmax())
    if high - low > max(1 << 16, layers.numel()):
        return torch.isin(layers, known.to(layers.dtype))
    table = torch.zeros(high - low + 1, dtype=torch.bool)
    table[known[(known >= low) & (known <= high)] - low] = True
    return table[layers - low]


COMPLETENESS = ("annotated_classes", "complete")


def completeness_inputs(segments: Sequence[Segments]) -> dict[str, Tensor]:
    """Which labels the images of a batch do not have, as the model takes it: bool `annotated_classes` `[B, K]` and
    `complete` `[B]`; without those that would say that all is labelled."""
    missing: dict[str, Tensor] = {}
    tables = [part.annotated for part in segments if part.annotated is not None]
    if not all(map(all, tables)):
        every = (True,) * len(tables[0])
        missing["annotated_classes"] = torch.tensor([every if p.annotated is None else p.annotated for p in segments])
    if not all(part.complete for part in segments):
        missing["complete"] = torch.tensor([part.complete for part in segments])
    return missing


class Reader(Protocol):
    """Makes `Segments` of a row with opened images, for the classes of the dataset."""

    def __call__(self, row: dict, labels: Labels) -> Segments: ...


def read_map(image) -> np.ndarray:
    """Label image to int32 ids `[H, W]`: one channel as it is, RGB as id = R + 256 G + 65536 B.

    Raises:
        ValueError: it has neither one nor three channels, is not of integers, or is a JPEG.
    """
    kind = getattr(image, "format", None)
    if kind in LOSSY:
        raise ValueError(f"the label is a {kind}, whose compression may change ids; label images must be PNG or TIFF")
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"the label has {image.n_frames} pages; label images must have one")
    if getattr(image, "info", {}).get(SIXTEEN_BIT_RGB):
        raise ValueError("the label is an RGB image of 16 bits, of which only the upper 8 can be read; write 8 bits")
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        raise ValueError("the label is a TIFF in which 0 is white, so its ids may be inverted; save it with 0 as black")
    check_palette(image)
    values = np.array(image)
    if factor := getattr(image, "info", {}).get(FACTOR):
        values //= factor
    if np.issubdtype(values.dtype, np.floating) and (values == values.astype(np.int32)).all():
        values = values.astype(np.int32)
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        raise ValueError(f"the label has values of type {values.dtype}, expected integers")
    if values.ndim == 3 and values.shape[2] >= 3:
        values = values.astype(np.int32)
        return values[..., 0] + 256 * values[..., 1] + 65536 * values[..., 2]
    if values.ndim != 2:
        raise ValueError(f"the label has shape {values.shape}, expected (height, width) or three channels")
    return values.astype(np.int32)


def check_palette(image) -> None:
    """
    Raises:
        ValueError: ids may be the greys of a palette, and not its indices.
    """
    if getattr(image, "mode", None) != "P":
        return
    colors = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    used = np.unique(np.array(image))
    greys = colors[used[used < len(colors)], 0]
    other = len(greys) != len(used) or (greys != used).any()
    if (colors == colors[:, :1]).all() and other and not set(greys.tolist()) <= {0, 255}:
        raise ValueError("the label has a palette of greys that are not its indices; save it as a grey image")


def as_png(values: np.ndarray) -> dict:
    """An array as PNG, as a column of images takes it."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@dataclass
class ObjectMask:
    """One object of an image.

    Attributes:
        mask: bool `[h, w]`, the image or a part of it, outside of which the object has no pixel.
        label: class id.
        crowd: whether it is a crowd.
        area: area in pixels as the dataset states it, or None.
        top, left: row and column of the image where `mask` begins.
    """

    mask: np.ndarray
    label: int
    crowd: bool = False
    area: float | None = None
    top: int = 0
    left: int = 0

    def joined(self, other: "ObjectMask") -> "ObjectMask":
        """This object with the pixels of another one."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        ends = [(item.top + item.mask.shape[0], item.left + item.mask.shape[1]) for item in (self, other)]
        mask = np.zeros((max(end[0] for end in ends) - top, max(end[1] for end in ends) - left), dtype=bool)
        for item, (bottom, right) in zip((self, other), ends, strict=True):
            mask[item.top - top : bottom - top, item.left - left : right - left] |= item.mask
        return replace(self, mask=mask, top=top, left=left)


def from_objects(objects: Iterable[ObjectMask], height: int, width: int) -> Segments:
    """Segments of objects that may overlap; segment ids are 1, 2, ... in their order. Each is in the first layer where
    it overlaps no other."""
    segments = Segments(torch.empty(0), {})
    layers: list[np.ndarray] = []
    for number, item in enumerate(objects, start=1):
        segments.empty += not item.mask.any()
        (segments.crowds if item.crowd else segments.classes)[number] = item.label
        if item.area is not None:
            segments.areas[number] = item.area
        place = np.s_[item.top : item.top + item.mask.shape[0], item.left : item.left + item.mask.shape[1]]
        layer = next((layer for layer in layers if not layer[place][item.mask].any()), None)
        if layer is None:
            layer = np.zeros((height, width), dtype=np.int32)
            layers.append(layer)
        layer[place][item.mask] = number
    layers = layers or [np.zeros((height, width), dtype=np.int32)]
    segments.map = torch.from_numpy(layers[0] if len(layers) == 1 else np.stack(layers))
    return segments


def merge_by_class(segments: Segments) -> Segments:
    """Segments of semantic segmentation: one segment per class, whose id is the class; where objects overlap, the later
    one is in front."""
    merged = torch.full(segments.map.shape[-2:], VOID, dtype=torch.int32)
    layers = segments.map.view(-1, *merged.shape)
    for segment, label in sorted((segments.classes | segments.crowds).items()):
        merged[(layers == segment).any(0)] = label
    return Segments(merged, {label: label for label in count_ids(merged) if label != VOID})
