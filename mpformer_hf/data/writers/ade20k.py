"""Results for the server of the ADE20K scene parsing benchmark."""

from pathlib import Path

import numpy as np

from ..result_names import path_inside
from .format import Category, ImageRecord, PredictionFormat, write_png


class Ade20k(PredictionFormat):
    """`ade20k/NAME.png`: class + 1, as in the annotations, where 0 is "other"."""

    name = "ade20k"
    tasks = ("semantic",)

    def __init__(self, folder: Path, task: str, categories: list[Category], threshold: float):
        super().__init__(folder, task, categories, threshold)
        if len(categories) > 255:
            raise ValueError(f"Format ade20k has 8 bits, for 255 classes; there are {len(categories)}.")

    def file_of(self, record: ImageRecord) -> Path:
        return path_inside(self.folder, "ade20k", f"{record.name}.png")

    def write(self, record: ImageRecord, result) -> None:
        write_png((result.numpy() + 1).astype(np.uint8), self.file_of(record))

    def finish(self, records: list[ImageRecord]) -> list[Path]:
        return [self.folder / "ade20k"]
