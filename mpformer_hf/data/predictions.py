"""Files of predictions: overlays, label maps, one JSON per image, and COCO files of all images."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..boxes import mask_boxes
from ..files import read_json, write_atomically, write_json
from ..label_maps import encode_rle
from ..visualization import draw_segmentation

RESULT_FIELDS = {"name", "pixels_sha256", "height", "width", "task", "segments"}


def write_image(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically; its folder is created."""
    with write_atomically(path) as temporary:
        image.save(temporary, format="PNG")


def label_map(result, task: str) -> Image.Image:
    """Semantic result: class ids. Panoptic result: RGB with segment id = R + 256 G + 65536 B, 0 = no segment."""
    if task == "semantic":
        labels = result.numpy()
        return Image.fromarray(labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16))
    ids = result["segmentation"].numpy().astype(np.uint32)
    return Image.fromarray(np.stack((ids & 255, ids >> 8 & 255, ids >> 16 & 255), -1).astype(np.uint8))


def describe_segments(result, task: str, id2label: dict[int, str]) -> list[dict]:
    """Segments of a result as JSON: class, score, area in pixels, box (x, y, width, height), and for instances the
    mask as RLE."""
    if task == "semantic":
        labels, areas = result.unique(return_counts=True)
        rows = zip(labels.tolist(), areas.tolist(), strict=True)
        return [{"label_id": i, "label": id2label[i], "area": area} for i, area in rows]
    maps, segments = result["segmentation"], result["segments_info"]
    masks = maps if task == "instance" else torch.stack([maps == s["id"] for s in segments]) if segments else maps[:0]
    boxes = mask_boxes(masks).tolist() if len(segments) else []
    rows = []
    for segment, mask, (x0, y0, x1, y1) in zip(segments, masks, boxes, strict=True):
        row = {
            "id": segment["id"],
            "label_id": segment["label_id"],
            "label": id2label[segment["label_id"]],
            "score": segment["score"],
            "area": int(mask.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        rows.append(row | ({"segmentation": encode_rle(mask.numpy())} if task == "instance" else {}))
    return rows


def image_hash(image: Tensor) -> str:
    """SHA-256 of the pixels and the size of an image."""
    return hashlib.sha256(str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).hexdigest()


def is_complete(folder: Path, name: str, image: Tensor, pictures: list[str]) -> bool:
    """Whether the result of an image is of the same pixels, and its pictures exist."""
    try:
        result = read_json(folder / "results" / f"{name}.json")
    except ValueError:
        return False
    valid = isinstance(result, dict) and result.keys() >= RESULT_FIELDS and result["pixels_sha256"] == image_hash(image)
    return valid and all((folder / kind / f"{name}.png").is_file() for kind in pictures)


def write_result(
    folder: Path, name: str, image: Tensor, result, task: str, id2label: dict[int, str], pictures: list[str]
) -> None:
    """Write all files of one image: overlay and label map, if they are in `pictures`, and last the JSON."""
    if "overlays" in pictures:
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        write_image(draw_segmentation(photo, result, id2label), folder / "overlays" / f"{name}.png")
    if "maps" in pictures and task != "instance":
        write_image(label_map(result, task), folder / "maps" / f"{name}.png")
    size = {"height": image.shape[1], "width": image.shape[2]}
    segments = describe_segments(result, task, id2label)
    content = {"name": name, "pixels_sha256": image_hash(image), **size, "task": task, "segments": segments}
    write_json(content, folder / "results" / f"{name}.json", indent=None)


def write_coco(folder: Path, names: list[str], task: str, id2label: dict[int, str], stuff: set[int]) -> Path | None:
    """Combine the JSON files of images into `predictions.json`: for instances a COCO results list, with `images.json`
    for images and categories; for panoptic results a COCO panoptic file. Returns None for semantic results, for which
    COCO has no format."""
    if task == "semantic":
        return None
    results = [read_json(folder / "results" / f"{name}.json") for name in names]
    images = [
        {"id": index, "file_name": f"{image['name']}.png", "height": image["height"], "width": image["width"]}
        for index, image in enumerate(results)
    ]
    categories = [{"id": i, "name": name, "isthing": int(i not in stuff)} for i, name in id2label.items()]
    if task == "instance":
        content = [
            {"image_id": index, "category_id": s["label_id"], **{k: s[k] for k in ("segmentation", "score", "bbox")}}
            for index, image in enumerate(results)
            for s in image["segments"]
        ]
        write_json({"images": images, "categories": categories}, folder / "images.json", indent=None)
    else:
        annotations = [
            {
                "image_id": index,
                "file_name": f"{image['name']}.png",
                "segments_info": [
                    {"category_id": s["label_id"], "iscrowd": 0, **{k: s[k] for k in ("id", "area", "bbox", "score")}}
                    for s in image["segments"]
                ],
            }
            for index, image in enumerate(results)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(content, folder / "predictions.json", indent=None)
    return folder / "predictions.json"
