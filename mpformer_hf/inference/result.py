"""What a model found in an image, to look at, to count and to hand on."""

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.writers.format import ImageRecord
from ..data.writers.label_studio import LabelStudio
from ..data.writers.labelme import labelme_content
from ..model.boxes import mask_boxes
from ..model.cleaning import DUPLICATE_IOU, without_duplicates
from ..model.image_sizes import size_of
from ..model.label_maps import compress_counts, encode_rle
from ..model.postprocessing import segments_of
from ..utils.files import write_atomically, write_json
from .drawing import Palette, draw_segmentation


@dataclass(frozen=True)
class Segment:
    """One segment of an image.

    Attributes:
        label: class name.
        label_id: class id of the model.
        score: in [0, 1]; None for semantic segmentation.
        mask: bool `[H, W]`.
        box: (x0, y0, x1, y1) in pixels; x1 and y1 are exclusive.
        area: in pixels.
    """

    label: str
    label_id: int
    score: float | None
    mask: Tensor
    box: tuple[int, int, int, int]
    area: int

    def as_dict(self) -> dict:
        """As JSON: label, label_id, score, area, `bbox` (x, y, width, height) and `segmentation`, COCO's compressed
        RLE."""
        x0, y0, x1, y1 = self.box
        rle = encode_rle(self.mask.numpy())
        return {
            "label": self.label,
            "label_id": self.label_id,
            **({} if self.score is None else {"score": self.score}),
            "area": self.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": {"size": rle["size"], "counts": compress_counts(rle["counts"])},
        }


class Result:
    """Segments of an image: iterate over it, index it, draw it, save it. Notebooks show its drawing.

    Args:
        image: uint8 `[3, H, W]`.
        task: semantic, instance or panoptic.
        raw: post-processed result: for semantic segmentation class ids `[H, W]`, -1 where there is none; else a dict of
            `segmentation` and `segments_info`.
        id2label: class names.
        category_ids: the dataset's own id of each class; default: the class ids.
        palette: RGB of each class; default: colours of this package.
    """

    def __init__(
        self,
        image: Tensor,
        task: str,
        raw: Any,
        id2label: dict[int, str],
        category_ids: list[int] | None = None,
        palette: Palette | None = None,
    ):
        self.image, self.task, self.raw, self.id2label = image, task, raw, id2label
        self.category_ids, self.palette = category_ids, palette

    @cached_property
    def segments(self) -> list[Segment]:
        """All segments, those with the highest scores first; of semantic segmentation one for each class."""
        return sorted(self.in_order(), key=lambda segment: -(segment.score or 0.0))

    def in_order(self) -> list[Segment]:
        """All segments in the order of the model, that of refined masks in the order of the prompts."""
        found = []
        for row, mask in segments_of(self.raw):
            label = row["label_id"]
            x0, y0, x1, y1 = box = tuple(mask_boxes(mask[None])[0].tolist())
            area = int(mask[y0:y1, x0:x1].sum())
            found.append(Segment(self.id2label[label], label, row.get("score"), mask, box, area))
        return found

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> Segment:
        return self.segments[index]

    def __repr__(self) -> str:
        height, width = size_of(self.image)
        names = [segment.label for segment in self]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "no segment"
        return f"Result({self.task}, {height}x{width}: {counts})"

    @property
    def label_map(self) -> Tensor:
        """Class ids, int64 `[H, W]`; -1 where there is no segment. Where instances overlap, the one with the highest
        score is in front."""
        labels = torch.full(size_of(self.image), -1, dtype=torch.int64)
        for segment in reversed(self.segments):
            labels[segment.mask] = segment.label_id
        return labels

    def with_masks(self, masks: Tensor, label_ids: list[int]) -> "Result":
        """This result with further masks in front of what is there, with the score 1.0.

        Args:
            masks: bool `[n, H, W]`.
            label_ids: class of each.
        """
        if self.task == "semantic":
            raw = self.raw.clone()
            for mask, label in zip(masks, label_ids, strict=True):
                raw[mask] = label
        else:
            rows, before = self.raw["segments_info"], self.raw["segmentation"]
            first = 1 + max((row["id"] for row in rows), default=0)
            added = [{"id": first + i, "label_id": label, "score": 1.0} for i, label in enumerate(label_ids)]
            if self.task == "instance":
                after = torch.cat((masks, before.bool()))
            else:
                after = before.clone()
                for mask, row in zip(masks, added, strict=True):
                    after[mask] = row["id"]
            raw = {**self.raw, "segmentation": after, "segments_info": [*added, *rows]}
        return Result(self.image, self.task, raw, self.id2label, self.category_ids, self.palette)

    def without_duplicates(self, iou: float = DUPLICATE_IOU) -> "Result":
        """The result without instances whose mask has at least this IoU with a better one of their class."""
        raw = self.raw if self.task == "semantic" else without_duplicates(self.raw, iou)
        return Result(self.image, self.task, raw, self.id2label, self.category_ids, self.palette)

    def only(self, labels: Collection[int | str]) -> "Result":
        """The segments of these classes, by name or id.

        Raises:
            ValueError: the model does not have one.
        """
        ids = {name: label for label, name in self.id2label.items()}
        label_ids: list[Any] = [ids[label] if isinstance(label, str) and label in ids else label for label in labels]
        if unknown := [label for label in label_ids if label not in self.id2label]:
            raise ValueError(f"The model has no class {unknown[0]!r}.")
        if self.task == "semantic":
            raw: Any = torch.where(torch.isin(self.raw, torch.tensor(label_ids)), self.raw.long(), -1)
        else:
            rows, maps = self.raw["segments_info"], self.raw["segmentation"]
            kept = [index for index, row in enumerate(rows) if row["label_id"] in label_ids]
            if self.task == "instance":
                maps = maps[kept]
            else:
                left = torch.tensor([rows[index]["id"] for index in kept], dtype=maps.dtype)
                maps = torch.where(torch.isin(maps, left), maps, 0)
            raw = {**self.raw, "segmentation": maps, "segments_info": [rows[index] for index in kept]}
        return Result(self.image, self.task, raw, self.id2label, self.category_ids, self.palette)

    def draw(self, opacity: float = 0.55, legend: bool = True) -> Image.Image:
        """The image with colours, contours, names and scores, see `draw_segmentation`, without duplicates."""
        raw = self.without_duplicates().raw
        return draw_segmentation(self.as_image(), raw, self.id2label, opacity, legend, self.palette)

    def as_image(self) -> Image.Image:
        """The image alone."""
        return Image.fromarray(self.image.permute(1, 2, 0).numpy())

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.draw().save(buffer, format="PNG")
        return buffer.getvalue()

    def as_dict(self) -> dict:
        """As JSON: task, height, width and segments, see `Segment.as_dict`."""
        height, width = size_of(self.image)
        segments = [segment.as_dict() for segment in self]
        return {"task": self.task, "height": height, "width": width, "segments": segments}

    def save(self, path: str | Path) -> None:
        """Write `as_dict` as .json, `label_map` as .tif, or the drawing as .png, .jpg or .webp. -1 of the label map
        becomes 255, or 65535 if there are more than 255 classes.

        Raises:
            ValueError: the file is of another kind.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".json":
            write_json(self.as_dict(), path, indent=None)
        elif suffix in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"):
            kind: type = np.uint8 if len(self.id2label) <= 255 else np.uint16
            picture = Image.fromarray(self.label_map.numpy().astype(kind)) if suffix.startswith(".tif") else self.draw()
            with write_atomically(path) as temporary:
                picture.save(temporary)
        else:
            raise ValueError(f"{path} must be .json (segments), .tif (label map), or .png, .jpg or .webp (drawing).")

    def to_coco(self, image_id: int = 0) -> list[dict]:
        """Segments as COCO results: image_id, category_id (the dataset's own), segmentation (RLE), bbox, area, score
        (1.0 for semantic segmentation)."""
        rows = []
        for segment in self:
            row = segment.as_dict()
            ids = self.category_ids or range(len(self.id2label))
            fields = {name: row[name] for name in ("segmentation", "bbox", "area")}
            score = 1.0 if segment.score is None else segment.score
            rows.append({"image_id": image_id, "category_id": ids[segment.label_id], **fields, "score": score})
        return rows

    def to_labelme(self, image_path: str) -> dict:
        """Content of labelme's JSON (version 5.3 or newer), with shapes of type `mask`, without duplicates.

        Args:
            image_path: of the image, relative to the JSON.
        """
        segments = ((s.label, s.score, s.mask.numpy(), s.box) for s in self.without_duplicates())
        return labelme_content(segments, image_path, size_of(self.image))

    def to_label_studio(self, image: str) -> dict:
        """A task of Label Studio with predictions, see `LabelStudio`, without duplicates. Without scores (semantic
        segmentation), they are 1.0.

        Args:
            image: address of the image for Label Studio.
        """
        rows = [{"score": 1.0, **s.as_dict(), "id": i} for i, s in enumerate(self.without_duplicates(), start=1)]
        record = ImageRecord(0, image, "", *size_of(self.image), rows)
        return LabelStudio(Path(), "instance", [], threshold=0.0).task_of(record)

    def to_supervision(self):
        """`supervision.Detections`, with class names in `data["class_name"]`.

        Raises:
            ValueError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ValueError("to_supervision needs supervision: pip install supervision.") from error
        masks = [segment.mask.numpy() for segment in self]
        return supervision.Detections(
            xyxy=np.array([segment.box for segment in self], dtype=np.float32).reshape(-1, 4),
            mask=np.stack(masks) if masks else np.zeros((0, *size_of(self.image)), dtype=bool),
            confidence=np.array([1.0 if s.score is None else s.score for s in self], dtype=np.float32),
            class_id=np.array([segment.label_id for segment in self], dtype=int),
            data={"class_name": np.array([segment.label for segment in self], dtype=str)},
        )
