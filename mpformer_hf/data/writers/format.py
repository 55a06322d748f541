"""What all prediction formats have in common."""

import logging
from abc import ABC
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ...model.boxes import mask_boxes
from ...model.cleaning import DUPLICATE_IOU, find_duplicates
from ...model.label_maps import compress_counts, count_ids, encode_part
from ...model.postprocessing import segments_of
from ...utils.files import write_atomically
from ..result_names import path_inside, plain_parts, result_name

logger = logging.getLogger(__name__)


@dataclass
class ImageRecord:
    """An image and its segments.

    Attributes:
        image_id: the dataset's id of the image, or its number.
        file_name: as the dataset names the image.
        name: of result files, without suffix; unique.
        height, width: of the image in pixels.
        segments: `describe_segments` of the result.
    """

    image_id: int | str
    file_name: str
    name: str
    height: int
    width: int
    segments: list[dict] = field(default_factory=list)

    def as_dict(self) -> dict:
        """All fields by name."""
        return asdict(self)

    @property
    def path(self) -> PurePosixPath:
        """`file_name` as a path."""
        return PurePosixPath(self.file_name.replace("\\", "/"))

    @property
    def has_own_path(self) -> bool:
        """Whether `name` is the path: no other image has the same one without suffix, and it is not too long."""
        return self.name == result_name(self.file_name)


@dataclass
class Category:
    """A class of the model: the dataset's id, the name, and whether it is a thing."""

    id: int
    name: str
    isthing: bool

    def as_dict(self) -> dict:
        """As COCO writes it."""
        return {"id": self.id, "name": self.name, "isthing": int(self.isthing)}


class PredictionFormat(ABC):
    """Writes the predictions of one task into a folder.

    Args:
        folder: of all results.
        task: semantic, instance or panoptic.
        categories: by class id of the model.
        threshold: smallest score of instances, for formats of annotations.

    Raises:
        ValueError: the format is not for the task.
    """

    name: str
    tasks: tuple[str, ...]
    tolerance: float | None = None  # of polygons, in pixels; None: masks

    def __init__(self, folder: Path, task: str, categories: list[Category], threshold: float):
        if task not in self.tasks:
            raise ValueError(f"Format {self.name} is for task {' and '.join(self.tasks)}, not for task {task}.")
        self.folder, self.task, self.categories, self.threshold = folder, task, categories, threshold

    def write(self, record: ImageRecord, result) -> None:  # noqa: B027 - some formats have no file of one image
        """Write the files of one image.

        Args:
            record: the image.
            result: semantic: class ids, int `[H, W]`. Panoptic: `segmentation`, segment ids, int `[H, W]`, and
                `segments_info`. Instance: `segmentation`, bool `[N, H, W]`, and `segments_info`.
        """

    def finish(self, records: list[ImageRecord]) -> list[Path]:
        """Write the files of all images and return their paths; called once, by one process."""
        return []

    def is_exported(self, segments: list[dict]) -> list[bool]:
        """Which instances of a record annotation tools get: those with pixels, above the threshold, no duplicates."""
        return [
            row["score"] >= self.threshold and not row.get("duplicate") and row.get("area") != 0 for row in segments
        ]

    def file_of(self, record: ImageRecord) -> Path | None:
        """The last file of an image that `write` writes, or None."""
        return None

    def label_file(self, record: ImageRecord, folder: str, suffix: str) -> Path:
        """A file in the folder, where annotation tools look for it: by the path of the image, with another suffix."""
        *folders, name = plain_parts(record.file_name)
        if not record.has_own_path:
            folders, name = [], f"{record.name}."
        return path_inside(self.folder, folder, *folders, f"{name.rpartition('.')[0] or name}{suffix}")

    def warn_of_renamed(self, records: list[ImageRecord]) -> None:
        """Say how many files of labels are not named as their images."""
        plain = ("/".join(plain_parts(record.file_name)) for record in records)
        same = (record.has_own_path and str(record.path) == name for record, name in zip(records, plain, strict=True))
        if renamed := len(records) - sum(same):
            text = (
                "%s: %d files of %s are not named as their images (not unique, too long, or characters as in a:b); %s"
            )
            hint = "name the images as these files, or the tool does not find them."
            logger.warning(text, self.folder, renamed, self.name, hint)


def write_png(values: np.ndarray, path: Path) -> None:
    """Write an array as PNG, atomically; its folder is created."""
    with write_atomically(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")


def panoptic_png(result: dict) -> np.ndarray:
    """RGB, segment id = R + 256 G + 65536 B, 0 = no segment; uint8 `[H, W, 3]`."""
    ids = result["segmentation"].numpy().astype(np.uint32)
    return np.stack((ids & 255, ids >> 8 & 255, ids >> 16 & 255), -1).astype(np.uint8)


def describe_segments(result, task: str, id2label: dict[int, str], mark_duplicates: bool = True) -> list[dict]:
    """Segments of a result as JSON: class, score, area in pixels, box (x, y, width, height), and for instances the
    mask as COCO's compressed RLE and whether it is a duplicate, see `find_duplicates`; without `mark_duplicates` none
    is."""
    if task == "semantic":
        return [{"label_id": i, "label": id2label[i], "area": area} for i, area in count_ids(result).items() if i >= 0]
    found = segments_of(result)
    duplicates = [False] * len(found)
    if task == "instance" and mark_duplicates:
        labels, scores = [row["label_id"] for row, _ in found], [row["score"] for row, _ in found]
        duplicates = find_duplicates(result["segmentation"], labels, scores, DUPLICATE_IOU)
    described = []
    for (segment, mask), duplicate in zip(found, duplicates, strict=True):
        x0, y0, x1, y1 = mask_boxes(mask[None])[0].tolist()
        part = mask[y0:y1, x0:x1]
        row = {
            "id": segment["id"],
            "label_id": segment["label_id"],
            "label": id2label[segment["label_id"]],
            "score": segment["score"],
            "area": int(part.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        if task == "instance":
            rle = encode_part(part.numpy(), y0, x0, *mask.shape)
            row["segmentation"] = {"size": rle["size"], "counts": compress_counts(rle["counts"])}
            row["duplicate"] = duplicate
        described.append(row)
    return described
