"""labelme's JSON, one file an image."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ...model.boxes import mask_boxes
from ...model.postprocessing import segments_of
from ...utils.files import write_json
from .format import ImageRecord, PredictionFormat


def labelme_content(
    segments: Iterable[tuple[str, float | None, np.ndarray, tuple[int, ...]]], image_path: str, size: tuple[int, int]
) -> dict:
    """Content of labelme's JSON (version 5.3 or newer), with shapes of type `mask`.

    Args:
        segments: label, score, mask, bool `[H, W]`, and box (x0, y0, x1, y1), x1 and y1 exclusive.
        image_path: of the image, relative to the JSON.
        size: (height, width).
    """
    shapes: list[dict] = []
    for label, score, mask, (x0, y0, x1, y1) in segments:
        if x0 == x1:  # no pixels
            continue
        buffer = io.BytesIO()
        Image.fromarray(mask[y0:y1, x0:x1].astype(np.uint8) * 255).convert("1").save(buffer, format="PNG")
        encoded = base64.b64encode(buffer.getvalue()).decode()
        shape = {"label": label, "points": [[x0, y0], [x1 - 1, y1 - 1]], "shape_type": "mask", "mask": encoded}
        text = "" if score is None else f"score {score:.3f}"
        shapes.append({**shape, "group_id": None, "description": text, "flags": {}})
    content: dict = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image_path, "imageData": None}
    return {**content, "imageHeight": size[0], "imageWidth": size[1]}


class Labelme(PredictionFormat):
    """`labelme/PATH.json`, by the path of the image, with a mask for each instance above the threshold; labelme expects
    the images beside them."""

    name = "labelme"
    tasks = ("instance",)

    def file_of(self, record: ImageRecord) -> Path:
        return self.label_file(record, "labelme", ".json")

    def write(self, record: ImageRecord, result: dict) -> None:
        wanted = self.is_exported(record.segments)
        found = [(row, mask) for (row, mask), keep in zip(segments_of(result), wanted, strict=True) if keep]
        boxes = [mask_boxes(mask[None])[0].tolist() for _, mask in found]
        segments = (
            (self.categories[row["label_id"]].name, row["score"], mask.numpy(), tuple(box))
            for (row, mask), box in zip(found, boxes, strict=True)
        )
        path = record.path.name if record.has_own_path else record.file_name
        content = labelme_content(segments, path, (record.height, record.width))
        write_json(content, self.file_of(record), indent=None)

    def finish(self, records: list[ImageRecord]) -> list[Path]:
        self.warn_of_renamed(records)
        return [self.folder / "labelme"]
