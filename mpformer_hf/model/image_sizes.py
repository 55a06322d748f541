"""Sizes of images: as older processors name them, after resizing, after padding."""

import logging

from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import SizeDict

logger = logging.getLogger(__name__)


def size_of(x) -> tuple[int, int]:
    """(height, width) of a tensor or an array `[..., H, W]`."""
    height, width = x.shape[-2:]
    return height, width


def rename_old_fields(fields: dict, default_size: dict) -> dict:
    """Fields as they are named today, of processors that were saved by earlier versions of transformers:
    `size=800, max_size=1333` is `{"shortest_edge": 800, "longest_edge": 1333}`, `reduce_labels` is `do_reduce_labels`.

    Args:
        fields: of a processor.
        default_size: its `shortest_edge` is used where `max_size` comes alone; in pixels.

    Returns:
        the fields without old names.

    Raises:
        ValueError: `max_size` is given besides another `longest_edge`.
    """
    fields = dict(fields)
    if fields.get("do_pad") is False:
        logger.warning("do_pad False has no effect: the images of a batch are always padded to one size.")
        del fields["do_pad"]
    if "reduce_labels" in fields:
        fields.setdefault("do_reduce_labels", fields.pop("reduce_labels"))
    saved, max_size = fields.pop("_max_size", None), fields.pop("max_size", None)
    size = fields.get("size")
    if isinstance(size, dict) and max_size is not None and size.get("longest_edge", max_size) != max_size:
        raise ValueError(f"max_size is the longest_edge of size; give one of them, got {max_size} and {size}.")
    if max_size is not None and size is not None and not isinstance(size, int) and "shortest_edge" not in size:
        logger.warning("max_size %s has no effect, since size has height and width.", max_size)
        return fields
    max_size = saved if max_size is None else max_size
    if max_size is not None and (size is None or isinstance(size, int) or set(size) == {"shortest_edge"}):
        shortest = size["shortest_edge"] if isinstance(size, dict) else size or default_size["shortest_edge"]
        fields["size"] = {"shortest_edge": shortest, "longest_edge": max_size}
    return fields


def stretched_size(image: tuple[int, int], size: SizeDict, divisor: int | None) -> SizeDict:
    """Size (height, width) that an image is resized to, rounded up to multiples of `divisor`.

    Args:
        image: its (height, width) in pixels.
        size: of the processor.
        divisor: None is 1.

    Raises:
        ValueError: `size` is neither shortest and longest edge nor height and width.
    """
    if size.shortest_edge and size.longest_edge:
        height, width = get_size_with_aspect_ratio(tuple(image), size.shortest_edge, size.longest_edge)
    elif size.height and size.width:
        height, width = size.height, size.width
    else:
        raise ValueError("stretch_to_divisor needs a size of shortest_edge and longest_edge, or of height and width.")
    height, width = (-(-side // (divisor or 1)) * (divisor or 1) for side in (height, width))
    return SizeDict(height=height, width=width)


def check_shape(size: tuple[int, int], longest_edge: int | None) -> None:
    """Check that an image has pixels after it is resized.

    Raises:
        ValueError: it is empty, or its shorter side would have none.
    """
    height, width = size
    if not height or not width:
        raise ValueError(f"the image is empty ({width}x{height} pixels)")
    if longest_edge and max(size) > longest_edge * min(size):
        raise ValueError(f"the image is {width}x{height} pixels, too narrow for a longest edge of {longest_edge}")


def padded_size(sizes: list[tuple[int, int]], divisor: int, pad_size=None) -> tuple[int, int]:
    """(height, width) of the batch: the largest sides, or `pad_size`, rounded up to multiples of `divisor`."""
    largest = [max(side) for side in zip(*sizes, strict=True)]
    if pad_size is not None:
        if pad_size.height < largest[0] or pad_size.width < largest[1]:
            raise ValueError(
                f"pad_size {pad_size.height}x{pad_size.width} is smaller than an image of {largest[0]}x{largest[1]}."
            )
        largest = [pad_size.height, pad_size.width]
    return tuple(-(-side // divisor) * divisor for side in largest)
