"""Augmentation of images and segment maps with torchvision v2 (the transforms of the official recipes)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers.image_utils import SizeDict

from ..data.segments import PADDING
from ..model.label_maps import count_ids
from .arguments import TransformArguments

IMAGE_FILL = 128
LONG_RUN = 50  # epochs


class AtLeastOnePixel(v2.Transform):
    """No side of a long image disappears."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = super().make_params(flat_inputs)
        return {**params, "size": tuple(max(1, side) for side in params["size"])}


class ScaleJitter(AtLeastOnePixel, v2.ScaleJitter):
    """torchvision's, for images of any shape."""


class RandomShortestSize(AtLeastOnePixel, v2.RandomShortestSize):
    """torchvision's, for images of any shape."""


class CategoryCappedCrop(v2.Transform):
    """Random crop in which no class covers more than a share of the labelled pixels; after ten tries any crop.

    Images smaller than the crop are padded.

    Args:
        size: (height, width).
        max_share: in (0, 1]; 1 accepts every crop.
    """

    def __init__(self, size: tuple[int, int], max_share: float):
        super().__init__()
        self.max_share = max_share
        fill = {tv_tensors.Image: IMAGE_FILL, tv_tensors.Mask: PADDING}
        self.crop = v2.RandomCrop(size, pad_if_needed=True, fill=fill)

    def forward(self, image: Tensor, segments: Tensor, classes: dict[int, int]):
        for _ in range(10):
            cropped = self.crop(image, segments)
            if self.max_share >= 1 or largest_share(cropped[1], classes) <= self.max_share:
                break
        return *cropped, classes


def largest_share(segments: Tensor, classes: dict[int, int]) -> float:
    """Share of the most frequent class among the labelled pixels of a map of segment ids; 0 if there are none."""
    areas: dict[int, int] = {}
    for segment, area in count_ids(segments).items():
        if segment in classes:
            areas[classes[segment]] = areas.get(classes[segment], 0) + area
    return max(areas.values()) / sum(areas.values()) if areas else 0.0


def choose_augmentation(args: TransformArguments, epochs: float, size: SizeDict) -> TransformArguments:
    """Replace `auto`: large-scale jitter for `LONG_RUN` epochs and more; for shorter runs images of the evaluation
    size, cropped and flipped. In short runs jitter and photometric distortion cost AP (nuclei study in
    `training/results`); where they begin to pay was not measured.

    Args:
        args: as given.
        epochs: of the run.
        size: evaluation size of the image processor.

    Raises:
        ValueError: the size has no shortest edge.
    """
    if args.augmentation != "auto":
        return args
    if epochs >= LONG_RUN:
        return replace(args, augmentation="lsj")
    sides = [size.height or size.max_height, size.width or size.max_width]
    shortest, longest = (size.shortest_edge, size.longest_edge) if None in sides else sorted(sides)
    if shortest is None:
        raise ValueError(
            "augmentation auto: the checkpoint's image size has no shortest edge; give --eval_shortest_edge and "
            "--eval_longest_edge."
        )
    sizes: dict[str, Any] = {"shortest_edges": [shortest], "longest_edge": longest or args.longest_edge}
    return replace(args, augmentation="crop", color_jitter=False, **sizes)


def build_transform(args: TransformArguments, own: Callable | None = None) -> v2.Compose:
    """Augmentation of `(image, segments, classes)`: uint8 image `[3, H, W]`, int32 map of segment ids `[L, H, W]`, and
    the classes of the ids, which are returned unchanged; `own` comes last.
    """
    height, width = args.crop_size
    size = height, width
    steps: list = []
    if args.augmentation == "lsj":
        steps = [ScaleJitter(size, tuple(args.scale_range), antialias=True), CategoryCappedCrop(size, 1.0)]
    elif args.augmentation == "crop":
        edges = args.shortest_edges or [int(size[0] * factor / 10) for factor in range(5, 21)]
        steps = [
            RandomShortestSize(edges, max_size=args.longest_edge, antialias=True),
            CategoryCappedCrop(size, args.max_category_share),
        ]
    if args.color_jitter:
        steps.append(v2.RandomPhotometricDistort(p=0.5))
    if args.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += [own] if own is not None else []
    return v2.Compose(steps or [v2.Identity()])


def augment(transform: v2.Compose, image: Tensor, segments: Tensor, classes: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Apply a transform of `build_transform`.

    Args:
        image: uint8 `[3, H, W]`.
        segments: int32 `[H, W]` or `[L, H, W]`.
        classes: classes of the segment ids.

    Returns:
        uint8 `[3, h, w]` and int32 `[h, w]` or `[L, h, w]`; padding is `PADDING`.
    """
    shape = segments.shape
    layers = tv_tensors.Mask(segments.view(-1, *shape[-2:]))
    image, layers, _ = transform(tv_tensors.Image(image), layers, classes)
    layers = layers.as_subclass(torch.Tensor)
    if image.dtype != torch.uint8 or image.ndim != 3 or layers.shape[1:] != image.shape[1:]:
        found = f"an image of {image.dtype} {tuple(image.shape)} and a map of {tuple(layers.shape)}"
        raise ValueError(f"The transform returned {found}, expected uint8 [3, H, W] and [L, H, W].")
    return image.as_subclass(torch.Tensor), layers.view(*shape[:-2], *layers.shape[-2:])
