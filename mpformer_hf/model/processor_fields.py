"""Checks of the fields of an image processor, and their plain forms."""

from numbers import Integral

from .ranges import check_range, is_color

TASKS = ("semantic", "instance", "panoptic")
FLAGS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels", "stretch_to_divisor")
RESAMPLINGS = 6
LARGEST_SIDE = 65536  # of images, in pixels; `longest_edge` may be larger, as it only limits


def check_fields(processor) -> None:
    """Check all fields of an `MPFormerImageProcessor`; lists of ids and colours become lists of `int`.

    Raises:
        ValueError: one is invalid; the message names it.
    """
    if processor.task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {processor.task!r}.")
    fused: list = list(processor.label_ids_to_fuse or ())
    if isinstance(processor.label_ids_to_fuse, str) or not all(isinstance(label, Integral) for label in fused):
        raise ValueError(f"label_ids_to_fuse must be a list of class ids, got {processor.label_ids_to_fuse!r}.")
    processor.label_ids_to_fuse = sorted(int(label) for label in fused)
    ids, palette = processor.category_ids, processor.palette
    if ids is not None:
        if not isinstance(ids, (list, tuple)) or not all(isinstance(x, Integral) for x in ids):
            raise ValueError(f"category_ids must be a list of the dataset's ids, got {ids!r}.")
        processor.category_ids = [int(category) for category in ids]
    if palette is not None:
        if not isinstance(palette, (list, tuple)) or not palette or not all(is_color(color) for color in palette):
            raise ValueError(f"palette must be a list of RGB colours, 0 to 255, got {palette!r}.")
        processor.palette = [[int(channel) for channel in color] for color in palette]
    for name in FLAGS:
        if not isinstance(getattr(processor, name), (bool, type(None))):
            raise ValueError(f"{name} must be true or false, got {getattr(processor, name)!r}.")
    for name, interval in (("size_divisor", f"[0, {LARGEST_SIDE}]"), ("rescale_factor", f"(0, {LARGEST_SIDE}]")):
        check_range(name, getattr(processor, name), interval)
    if processor.resample not in range(RESAMPLINGS) and (processor.resample is not None or processor.do_resize):
        raise ValueError(f"resample must be one of Pillow's numbers 0 to 5, got {processor.resample!r}.")
    if not isinstance(processor.ignore_index, (Integral, type(None))):
        raise ValueError(f"ignore_index must be an integer, got {processor.ignore_index!r}.")
    for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
        check_threshold(name, getattr(processor, name))
    for name, interval in (("image_mean", "(-inf, inf)"), ("image_std", "(0, inf)")):
        values = getattr(processor, name)
        if values is None and not processor.do_normalize:
            continue
        if not isinstance(values, (list, tuple)) or not values or None in values:
            raise ValueError(f"{name} must be a list of numbers, got {values!r}.")
        check_range(name, values, interval)
    for side, value in dict(processor.size).items():
        check_range(f"size: {side}", value, "[1, inf)" if side == "longest_edge" else f"[1, {LARGEST_SIDE}]")


def check_threshold(name: str, value) -> None:
    """Check a threshold.

    Raises:
        ValueError: it is not a number in [0, 1].
    """
    if value is None or isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a number, got {value}.")
    check_range(name, value, "[0, 1]")
