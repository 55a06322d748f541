"""All prediction formats by name."""

from .ade20k import Ade20k
from .cityscapes import Cityscapes
from .coco import CocoInstances, CocoPanoptic, Cvat
from .format import PredictionFormat
from .yolo import Yolo

FORMATS: dict[str, type[PredictionFormat]] = {
    format_.name: format_ for format_ in (CocoInstances, CocoPanoptic, Cityscapes, Ade20k, Yolo, Cvat)
}
DEFAULTS = {"semantic": [], "instance": ["coco"], "panoptic": ["coco_panoptic"]}  # of `mpformer predict`


def check_formats(names: list[str]) -> None:
    """Check names of formats.

    Raises:
        ValueError: one is unknown.
    """
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise ValueError(f"Unknown format {unknown[0]!r}; the formats are {', '.join(FORMATS)}.")
