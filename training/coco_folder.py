"""Folders as COCO distributes them: a JSON of annotations, the images, and for panoptic labels PNG maps."""

import json
from pathlib import Path

from datasets import Dataset, Features, Image, Value

OBJECT = ("category_id", "segmentation", "iscrowd")
SEGMENT = {"id": Value("int64"), "category_id": Value("int64"), "iscrowd": Value("int64")}


def is_coco_folder(folder: Path) -> bool:
    """Whether a folder holds COCO annotations and no parquet files."""
    if not folder.is_dir() or next(folder.rglob("*.parquet"), None) is not None:
        return False
    return any(annotation_files(folder))


def annotation_files(folder: Path) -> list[Path]:
    """JSON files that are larger than a list of class names."""
    files = [*folder.glob("*.json"), *folder.glob("annotations/*.json")]
    return sorted(file for file in files if file.name not in ("id2label.json", "panoptic_categories.json"))


def read_coco_folder(folder: Path, split: str, task: str) -> tuple[Dataset, list[dict]]:
    """Rows with `image` and `objects` (instance) or `label` and `segments_info` (panoptic), and the categories.

    Args:
        folder: holds the JSON files, or a folder `annotations` of them; images anywhere below.
        split: picks the JSON whose name contains it, where there are several.
        task: instance or panoptic.

    Raises:
        ValueError: no annotations of the task and split, or files are missing.
    """
    contents = {}
    for file in annotation_files(folder):
        content = json.loads(file.read_text())
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content):
            panoptic = any("segments_info" in row for row in content["annotations"])
            if panoptic == (task == "panoptic"):
                contents[file] = content
    fitting = {file: content for file, content in contents.items() if split in file.stem} or contents
    if len(fitting) != 1:
        names = ", ".join(file.name for file in fitting) or "none"
        raise ValueError(f"{folder} must have one JSON of {task} annotations for split {split!r}, found {names}.")
    file, content = next(iter(fitting.items()))
    below = {path.name: path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
    photos = {path.name: path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")}

    def find(name: str, files: dict[str, Path]) -> str:
        path = files.get(Path(name).name)
        if path is None:
            raise ValueError(f"{file} names the file {name}, which is not in {folder}.")
        return str(path)

    images = {image["id"]: image for image in content["images"]}
    if task == "panoptic":
        maps = {path.name: path for path in folder.rglob("*.png")}
        rows = [
            {
                "image": find(images[row["image_id"]]["file_name"], photos or below),
                "label": find(row["file_name"], maps),
                "segments_info": [
                    {key: int(segment.get(key, 0)) for key in SEGMENT} for segment in row["segments_info"]
                ],
            }
            for row in content["annotations"]
        ]
        features = {"image": Image(), "label": Image(), "segments_info": [SEGMENT]}
    else:
        objects: dict[int, list] = {key: [] for key in images}
        for row in content["annotations"]:
            objects[row["image_id"]].append(
                {key: row.get(key, 0) for key in ("category_id", "segmentation", "iscrowd")}
            )
        rows = [
            {"image": find(image["file_name"], below), "objects": json.dumps(objects[key])}
            for key, image in images.items()
        ]
        features = {"image": Image(), "objects": Value("string")}
    return Dataset.from_list(rows, features=Features(features)), content["categories"]
