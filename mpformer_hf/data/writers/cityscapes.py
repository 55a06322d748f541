"""Results as cityscapesScripts reads them: label maps, or a list and masks of instances of each image."""

from pathlib import Path, PurePosixPath

import numpy as np

from ...utils.files import write_text
from ..releases import categories_of
from ..result_names import path_inside
from .coco import CocoPanoptic
from .format import Category, ImageRecord, PredictionFormat, write_png

IMAGE = "_leftImg8bit"
LABEL_IDS = {row["id"] for row in categories_of("cityscapes")}


class Cityscapes(PredictionFormat):
    """Semantic: `NAME_pred.png` of the dataset's label ids. Instance: `NAME_pred.txt` with a line `mask label score`
    for each instance, and its mask in `masks/`. Panoptic: as `coco_panoptic`, which cityscapesScripts reads."""

    name = "cityscapes"
    tasks = ("semantic", "instance", "panoptic")

    def __init__(self, folder: Path, task: str, categories: list[Category], threshold: float):
        super().__init__(folder, task, categories, threshold)
        unknown = [category for category in categories if category.id not in LABEL_IDS]
        if unknown:
            raise ValueError(
                f"Format cityscapes needs label ids of Cityscapes; {unknown[0].name!r} has {unknown[0].id}. The image "
                "processor of a model that was trained on Cityscapes has them as category_ids."
            )
        self.written: dict[Path, str] = {}
        self.panoptic = CocoPanoptic(folder, task, categories, threshold) if task == "panoptic" else None

    def file_of(self, record: ImageRecord) -> Path:
        if self.panoptic:
            return self.panoptic.file_of(record)
        suffix = ".png" if self.task == "semantic" else ".txt"
        base = PurePosixPath(record.file_name).stem.removesuffix(IMAGE)  # by which the official scripts find it
        return path_inside(self.folder, "cityscapes", f"{base}_pred{suffix}")

    def write(self, record: ImageRecord, result) -> None:
        other = self.written.setdefault(self.file_of(record), record.name)
        if other != record.name:
            raise ValueError(f"{record.name} and {other} have one file name, by which the official scripts find them.")
        if self.panoptic:
            self.panoptic.write(record, result)
        elif self.task == "semantic":
            ids = np.array([category.id for category in self.categories], dtype=np.uint8)
            write_png(ids[result.numpy()], self.file_of(record))
        else:
            self.write_instances(record, result)

    def write_instances(self, record: ImageRecord, result: dict) -> None:
        """Write the masks, and last the list."""
        file, lines = self.file_of(record), []
        rows = zip(result["segments_info"], result["segmentation"].numpy(), strict=True)
        for number, (segment, mask) in enumerate(rows):
            path = Path("masks") / f"{file.stem}_{number:03d}.png"
            write_png(mask.astype(np.uint8) * 255, file.parent / path)
            lines.append(f"{path} {self.categories[segment['label_id']].id} {segment['score']!r}\n")
        write_text("".join(lines), file)

    def finish(self, records: list[ImageRecord]) -> list[Path]:
        return self.panoptic.finish(records) if self.panoptic else [self.folder / "cityscapes"]
