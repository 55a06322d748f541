"""COCO's results of instances and of panoptic segmentation, and annotations that CVAT imports."""

from pathlib import Path

from ...utils.files import write_json
from ..coco_masks import decode_segmentation
from ..result_names import path_inside
from .format import ImageRecord, PredictionFormat, panoptic_png, write_png
from .polygons import mask_polygons

ANNOTATION_FIELDS = ("segmentation", "area", "bbox", "score", "attributes")


def image_rows(records: list[ImageRecord]) -> list[dict]:
    """`images` of a JSON."""
    return [
        {"id": record.image_id, "file_name": record.file_name, "height": record.height, "width": record.width}
        for record in records
    ]


class CocoInstances(PredictionFormat):
    """`predictions.json`: a list of results without `bbox`, since pycocotools would take areas from it. Images and
    categories are in `images.json`."""

    name = "coco"
    tasks = ("instance",)

    def finish(self, records: list[ImageRecord]) -> list[Path]:
        results = [
            {
                "image_id": record.image_id,
                "category_id": self.categories[segment["label_id"]].id,
                "segmentation": segment["segmentation"],
                "score": segment["score"],
            }
            for record in records
            for segment in record.segments
        ]
        categories = [category.as_dict() for category in self.categories]
        write_json({"images": image_rows(records), "categories": categories}, self.folder / "images.json", indent=None)
        write_json(results, self.folder / "predictions.json", indent=None)
        return [self.folder / "predictions.json"]


class CocoPanoptic(PredictionFormat):
    """`predictions.json` and PNG maps in `predictions/`."""

    name = "coco_panoptic"
    tasks = ("panoptic",)

    def file_of(self, record: ImageRecord) -> Path:
        return path_inside(self.folder, "predictions", f"{record.name}.png")

    def write(self, record: ImageRecord, result: dict) -> None:
        write_png(panoptic_png(result), self.file_of(record))

    def finish(self, records: list[ImageRecord]) -> list[Path]:
        annotations = [
            {
                "image_id": record.image_id,
                "file_name": f"{record.name}.png",
                "segments_info": [
                    {
                        "id": segment["id"],
                        "category_id": self.categories[segment["label_id"]].id,
                        "iscrowd": 0,
                        **{key: segment[key] for key in ("area", "bbox", "score")},
                    }
                    for segment in record.segments
                ],
            }
            for record in records
        ]
        categories = [category.as_dict() for category in self.categories]
        content = {"images": image_rows(records), "annotations": annotations, "categories": categories}
        write_json(content, self.folder / "predictions.json", indent=None)
        return [self.folder / "predictions.json"]


class Cvat(PredictionFormat):
    """`annotations/instances_default.json`: COCO annotations of the instances above the threshold, with masks (RLE) and
    boxes, for import into CVAT, FiftyOne and other tools; with polygons, without holes, if `tolerance` is set."""

    name = "cvat"
    tasks = ("instance",)

    def shape_of(self, segment: dict, record: ImageRecord) -> dict:
        """Polygons instead of RLE, if they are asked for."""
        if self.tolerance is None:
            return {}
        mask = decode_segmentation(segment["segmentation"], record.height, record.width)
        return {"segmentation": mask_polygons(mask, self.tolerance)}

    def finish(self, records: list[ImageRecord]) -> list[Path]:
        own = all(isinstance(record.image_id, int) for record in records)
        numbers = {record.name: record.image_id if own else n for n, record in enumerate(records, start=1)}
        images = [{**row, "id": number} for row, number in zip(image_rows(records), numbers.values(), strict=True)]
        first = 0 if all(category.id > 0 for category in self.categories) else 1 - min(c.id for c in self.categories)
        ids = [category.id + first for category in self.categories]  # 0 is the background of some tools
        annotations = [
            {
                "image_id": numbers[record.name],
                "category_id": ids[segment["label_id"]],
                "iscrowd": 0,
                **{key: segment[key] for key in ANNOTATION_FIELDS if key in segment},
                **self.shape_of(segment, record),
            }
            for record in records
            for segment, wanted in zip(record.segments, self.is_exported(record.segments), strict=True)
            if wanted
        ]
        annotations = [{"id": number, **row} for number, row in enumerate(annotations, start=1)]
        categories = [{"id": i, "name": category.name} for i, category in zip(ids, self.categories, strict=True)]
        file = self.folder / "annotations" / "instances_default.json"
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(content, file, indent=None)
        return [file]
