"""Training batches in few bytes: 8-bit images and one map of targets an image travel to the device, where images are
normalised and maps are split into masks, with the values of the image processor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.segments import COMPLETENESS, VOID, Segments, completeness_inputs
from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.label_maps import split_ids

LARGEST_BYTE = 255


def number_targets(map_: Tensor, table: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Segment ids to numbers.

    Args:
        map_: int `[H, W]` or `[L, H, W]`, segment ids.
        table: classes of the ids; other ids are void.

    Returns:
        `[L, H, W]`, target t + 1 of each pixel, 0 where there is none, uint8 or, with more than 255 targets, int16;
        and int64 `[T]`, classes of the targets, by ascending id.
    """
    ids, classes = split_ids(map_, table, False, VOID)
    layers = map_.reshape(-1, *map_.shape[-2:]).contiguous()
    kind = torch.uint8 if len(ids) <= LARGEST_BYTE else torch.int16
    if not len(ids):
        return torch.zeros(layers.shape, dtype=kind), classes
    place = torch.searchsorted(ids, layers).clamp(max=len(ids) - 1)
    return torch.where(ids[place] == layers, place + 1, 0).to(kind), classes


def pack(
    images: Sequence[Tensor], maps: Sequence[Tensor], segments: Sequence[Segments], divisor: int, task: str = "panoptic"
) -> dict:
    """A batch in few bytes.

    Args:
        images: uint8 `[3, H, W]` each.
        maps: of each image, int `[H, W]` or `[L, H, W]`, segment ids, after the augmentation.
        segments: of each image, before the augmentation.
        divisor: height and width are padded to multiples of it.
        task: decides which pixels are void.

    Returns:
        `images` uint8 `[B, 3, H, W]` and `maps` `[B, L, H, W]`, padded by zeros at the right and bottom; `sizes` int64
        `[B, 2]`, (height, width) of the images; `classes` int64 `[T]`; `counts`, the targets of each image; and
        `void_mask`, `annotated_classes` and `complete` as the model takes them, if labels are missing.
    """
    numbered, classes = zip(
        *(number_targets(map_, part.classes) for map_, part in zip(maps, segments, strict=True)), strict=True
    )
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = (-(-int(side) // divisor) * divisor for side in sizes.amax(0))
    kind = max((map_.dtype for map_ in numbered), key=lambda dtype: dtype.itemsize)
    padded = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    layers = torch.zeros(len(images), max(len(map_) for map_ in numbered), height, width, dtype=kind)
    voids = [part.void(task, map_) for map_, part in zip(maps, segments, strict=True)]
    for index, (image, map_) in enumerate(zip(images, numbered, strict=True)):
        padded[index, :, : image.shape[1], : image.shape[2]] = image
        layers[index, : len(map_), : image.shape[1], : image.shape[2]] = map_
    counts = [len(labels) for labels in classes]
    known = completeness_inputs(segments)
    if any(void is not None and void.any() for void in voids):
        known["void_mask"] = torch.zeros(len(images), height, width, dtype=torch.uint8)
        for padded_void, void in zip(known["void_mask"], voids, strict=True):
            if void is not None:
                padded_void[: void.shape[0], : void.shape[1]] = void
    return {"images": padded, "maps": layers, "sizes": sizes, "classes": torch.cat(classes), "counts": counts} | known


class Unpacker:
    """Makes model inputs of batches of `pack`, on a device.

    Args:
        processor: its rescaling and normalisation.
        device: of the batches.
    """

    def __init__(self, processor: MPFormerImageProcessor, device: torch.device):
        self.scale, self.normalised = processor.rescale_factor if processor.do_rescale else 1.0, processor.do_normalize
        self.mean, self.std = (  # of pixels that are not rescaled
            (torch.tensor(values) * (1.0 / self.scale))[:, None, None].to(device)
            for values in (processor.image_mean, processor.image_std)
        )

    def __call__(self, batch: dict) -> dict:
        """`pixel_values` float32 `[B, 3, H, W]`, 0 in the padding; lists `mask_labels`, bool `[T, H, W]`, and
        `class_labels`, int64 `[T]`; and what `pack` says of missing labels."""
        images, maps, sizes = batch["images"], batch["maps"], batch["sizes"]
        values = (images.float() - self.mean) / self.std if self.normalised else images * self.scale
        inside = [
            torch.arange(length, device=images.device) < sizes[:, axis, None]
            for axis, length in enumerate(images.shape[2:])
        ]
        values = torch.where(inside[0][:, None, :, None] & inside[1][:, None, None], values, 0.0)
        numbers = [torch.arange(1, count + 1, device=maps.device) for count in batch["counts"]]
        masks = [(map_[:, None] == number[:, None, None]).any(0) for map_, number in zip(maps, numbers, strict=True)]
        return {
            "pixel_values": values,
            "mask_labels": masks,
            "class_labels": list(batch["classes"].split(batch["counts"])),
            **{name: batch[name] for name in ("void_mask", *COMPLETENESS) if name in batch},
        }
