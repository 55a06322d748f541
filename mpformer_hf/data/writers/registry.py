"""All prediction formats by name."""

from pathlib import Path

from .ade20k import Ade20k
from .cityscapes import Cityscapes
from .coco import CocoInstances, CocoPanoptic, Cvat
from .format import Category, PredictionFormat
from .label_studio import LabelStudio
from .labelme import Labelme
from .polygons import require_polygons
from .yolo import Yolo

FORMATS: dict[str, type[PredictionFormat]] = {
    format_.name: format_
    for format_ in (CocoInstances, CocoPanoptic, Cityscapes, Ade20k, Yolo, Cvat, Labelme, LabelStudio)
}
DEFAULTS = {"semantic": [], "instance": ["coco"], "panoptic": ["coco_panoptic"]}  # of `mpformer predict`


def make_writers(
    names: list[str],
    folder: Path,
    task: str,
    categories: list[Category],
    threshold: float = 0.0,
    polygons: float | None = None,
) -> list[PredictionFormat]:
    """Writers of formats; see `PredictionFormat`.

    Args:
        polygons: tolerance of `cvat` and `label_studio`, see `PredictionFormat.tolerance`.

    Raises:
        ValueError: a format is not for the task, or scikit-image is missing.
    """
    writers = [FORMATS[name](folder, task, categories, threshold) for name in names]
    if polygons is not None:
        require_polygons()
        for writer in writers:
            writer.tolerance = polygons
    return writers
