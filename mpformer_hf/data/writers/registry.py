"""All prediction formats by name."""

from .ade20k import Ade20k
from .cityscapes import Cityscapes
from .coco import CocoInstances, CocoPanoptic, Cvat
from .format import PredictionFormat
from .label_studio import LabelStudio
from .labelme import Labelme
from .yolo import Yolo

FORMATS: dict[str, type[PredictionFormat]] = {
    format_.name: format_
    for format_ in (CocoInstances, CocoPanoptic, Cityscapes, Ade20k, Yolo, Cvat, Labelme, LabelStudio)
}
DEFAULTS = {"semantic": [], "instance": ["coco"], "panoptic": ["coco_panoptic"]}  # of `mpformer predict`
