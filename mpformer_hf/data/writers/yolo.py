"""Labels of YOLO segmentation: polygons relative to the image."""

from pathlib import Path

import numpy as np
import yaml

from ...utils.files import write_text
from .format import Category, ImageRecord, PredictionFormat
from .polygons import mask_outlines, require_polygons


class Yolo(PredictionFormat):
    """`labels/PATH.txt`, by the path of the image: a line `class x1 y1 x2 y2 ...` for each instance above the
    threshold; and `data.yaml` with the names, which expects the images in `images/`. The format has no holes and no
    parts: holes are filled, and parts joined by lines of no width.

    Raises:
        ValueError: scikit-image is missing.
    """

    name = "yolo"
    tasks = ("instance",)

    def __init__(self, folder: Path, task: str, categories: list[Category], threshold: float):
        super().__init__(folder, task, categories, threshold)
        require_polygons()

    def file_of(self, record: ImageRecord) -> Path:
        return self.label_file(record, "labels", ".txt")

    def write(self, record: ImageRecord, result: dict) -> None:
        lines = []
        rows = record.segments or result["segments_info"]
        for segment, mask, wanted in zip(rows, result["segmentation"].numpy(), self.is_exported(rows), strict=True):
            if wanted and mask.any():
                points = self.outline(mask) / (record.width, record.height)
                lines.append(f"{segment['label_id']} {' '.join(f'{value:.6f}' for value in points.flatten())}\n")
        write_text("".join(lines), self.file_of(record))

    def finish(self, records: list[ImageRecord]) -> list[Path]:
        self.warn_of_renamed(records)
        names = {i: category.name for i, category in enumerate(self.categories)}
        content = {"path": ".", "train": "images", "val": "images", "names": names}
        write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), self.folder / "data.yaml")
        return [self.folder / "labels"]

    def outline(self, mask: np.ndarray) -> np.ndarray:
        """Outlines of the parts of a mask, bool `[H, W]`, as one polygon, `[points, 2]`: (x, y) in pixels."""
        path, *others = mask_outlines(mask)
        for ring in others:  # there and back again between the first points
            path = np.concatenate((path, ring, path[:1]))
        return path[:-1]
