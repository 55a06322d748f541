"""Label Studio's tasks with predictions: masks of its brush, or polygons."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...utils.files import write_json
from ..coco_masks import decode_segmentation
from .format import ImageRecord, PredictionFormat
from .polygons import mask_polygons

RUN_BITS = 16  # of the length of a run
CHANNELS = 4  # of the picture that Label Studio stores: RGBA


def brush_rle(mask: np.ndarray) -> list[int]:
    """The bytes of Label Studio's brush mask, 0 to 255 each: run lengths of an RGBA picture, packed into bits as by the
    JavaScript package rle-pack.

    Args:
        mask: bool `[H, W]`.
    """
    values = mask.ravel()
    edges = np.flatnonzero(np.diff(values)) + 1
    starts, stops = np.concatenate(([0], edges)), np.concatenate((edges, [values.size]))

    def bits() -> Iterator[str]:
        yield f"{CHANNELS * values.size:032b}"
        yield f"{8 - 1:05b}"  # bits of a value
        yield f"{RUN_BITS - 1:04b}" * 4  # bits of the length of a run, by its kind: all the same here
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            left, value = CHANNELS * (stop - start), 255 if values[start] else 0
            while left:
                length = min(left, 1 << RUN_BITS)
                yield f"111{length - 1:0{RUN_BITS}b}{value:08b}"  # a run, of the last kind
                left -= length

    text = "".join(bits())
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


class LabelStudio(PredictionFormat):
    """`label_studio.json`: a task for each image, with the instances above the threshold as brush masks. The project
    has `<BrushLabels name="label" toName="image">` and `<Image name="image" value="$image">`. If `tolerance` is set,
    each part of a mask is a polygon without holes, for `<PolygonLabels name="label" toName="image">`."""

    name = "label_studio"
    tasks = ("instance",)

    def finish(self, records: list[ImageRecord]) -> list[Path]:
        file = self.folder / "label_studio.json"
        write_json([self.task_of(record) for record in records], file, indent=None)
        return [file]

    def task_of(self, record: ImageRecord) -> dict:
        """The task of an image."""
        size = {"original_width": record.width, "original_height": record.height, "image_rotation": 0}
        kind = "brushlabels" if self.tolerance is None else "polygonlabels"
        names = {"from_name": "label", "to_name": "image", "type": kind}
        results: list[dict] = []
        for segment, wanted in zip(record.segments, self.is_exported(record.segments), strict=True):
            if wanted:
                for part, value in enumerate(self.values_of(segment, record)):
                    own = {"id": f"{segment['id']}" + f"-{part}" * (part > 0), "score": segment["score"]}
                    results.append({**own, **names, **size, "value": {**value, kind: [segment["label"]]}})
        score = min((row["score"] for row in results), default=0.0)
        prediction = {"model_version": "mpformer", "score": score, "result": results}
        return {"data": {"image": record.file_name}, "predictions": [prediction]}

    def values_of(self, segment: dict, record: ImageRecord) -> list[dict]:
        """The mask of a segment, or its polygons, whose coordinates are percents of the sides."""
        mask = decode_segmentation(segment["segmentation"], record.height, record.width)
        if self.tolerance is None:
            return [{"format": "rle", "rle": brush_rle(mask)}]
        percent = 100 / np.array([record.width, record.height])
        polygons = [np.reshape(polygon, (-1, 2)) for polygon in mask_polygons(mask, self.tolerance)]
        return [{"points": (polygon * percent).tolist(), "closed": True} for polygon in polygons]
