"""COCO folders: a JSON of annotations, the images and, for panoptic labels, PNG maps."""

import json
from pathlib import Path

from datasets import Dataset, Features, Image, Value

from ..files import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, TABLE_SUFFIXES, files_below, read_json
from .coco_checks import check_coco

SEGMENT = {"id": Value("int64"), "category_id": Value("int64"), "iscrowd": Value("int64")}
OBJECT = ("category_id", "segmentation", "iscrowd")
COCO = ("instances", "panoptic", "person_keypoints", "captions", "stuff", "image_info")
SPLITS = {"train": ("train",), "validation": ("val",), "val": ("val",), "test": ("test",)}


def is_coco_folder(folder: Path) -> bool:
    """Whether a folder has JSON annotations and none of the files that `datasets` reads as tables. Archives are allowed
    beside images: the downloads that were unpacked."""
    if not folder.is_dir() or not annotation_files(folder):
        return False
    suffixes = {file.suffix.lower() for file in files_below(folder)}
    tables = suffixes & set(TABLE_SUFFIXES)
    return not tables or (tables <= set(ARCHIVE_SUFFIXES) and not suffixes.isdisjoint(IMAGE_SUFFIXES))


def annotation_files(folder: Path) -> list[Path]:
    """JSON files other than those of class names."""
    files = [*folder.glob("*.json"), *folder.glob("annotations/*.json")]
    return sorted(file for file in files if file.name not in ("id2label.json", "panoptic_categories.json"))


def choose_annotations(folder: Path, split: str, task: str) -> Path:
    """The JSON file of a task and split: one whose name contains the split's name, or no split's name. If there are
    several, the one that is named as in COCO (`instances_*`, `panoptic_*`). Instances may also be read from panoptic
    annotations.

    Raises:
        ValueError: there is none, or more than one.
    """
    files = annotation_files(folder)
    words = SPLITS.get(split, (split,))
    of_split = [file for file in files if any(word in file.stem for word in words)]
    if not of_split:
        known = {word for words in SPLITS.values() for word in words}
        of_split = [file for file in files if not any(word in file.stem for word in known)]
    instances, panoptic = ([f for f in of_split if f.stem.startswith(kind)] for kind in ("instances", "panoptic"))
    other = [file for file in of_split if not file.stem.startswith(COCO)]
    candidates = {"panoptic": panoptic or other, "instance": instances or other or panoptic}.get(task, [])
    if len(candidates) != 1:
        names = ", ".join(file.name for file in candidates) or "none"
        raise ValueError(f"{folder} must have one JSON of {task} annotations for split {split!r}, found {names}.")
    return candidates[0]


def read_coco_folder(folder: Path, split: str, task: str) -> tuple[Dataset, list[dict]]:
    """Read a split.

    Args:
        folder: contains the JSON files, or a folder `annotations` of them, and the images at any depth.
        split: see `choose_annotations`.
        task: instance or panoptic.

    Returns:
        rows with `image` and `objects` (or, from panoptic annotations, `label` and `segments_info`), and the
        categories.

    Raises:
        ValueError: no annotations of the task and split, or files are missing or ambiguous.
    """
    file = choose_annotations(folder, split, task)
    content = read_json(file)
    check_coco(content, file)
    panoptic = any("segments_info" in row for row in content["annotations"])
    if task == "panoptic" and not panoptic:
        raise ValueError(f"{file} has no panoptic annotations.")
    below: dict[str, list[Path]] = {}
    for path in files_below(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            below.setdefault(path.name, []).append(path.relative_to(folder))

    def find(name: str, is_map: bool) -> str:
        """Path of an image or a map by the name in the JSON; maps are in folders with "panoptic" in their names."""
        parts = Path(name).parts
        found = [path for path in below.get(parts[-1], []) if path.parts[-len(parts) :] == parts]
        found = [path for path in found if any("panoptic" in part for part in path.parts[:-1]) == is_map] or found
        words = SPLITS.get(split, (split,))
        if len(found) > 1:
            found = [path for path in found if any(word in str(path.parent) for word in words)] or found
        if len(found) != 1:
            raise ValueError(f"{file} refers to {name}, which was found {len(found)} times in {folder}.")
        return str(folder / found[0])

    def image_columns(image: dict) -> dict:
        """Path of the image, and its size [height, width] in the JSON, which is compared with the file's."""
        size = [image["height"], image["width"]] if "height" in image and "width" in image else None
        return {"image": find(image["file_name"], is_map=False), "size": size}

    images = {image["id"]: image for image in content["images"]}
    if panoptic:
        rows = [
            {
                **image_columns(images[row["image_id"]]),
                "label": find(row["file_name"], is_map=True),
                "segments_info": [{key: int(info.get(key, 0)) for key in SEGMENT} for info in row["segments_info"]],
            }
            for row in content["annotations"]
        ]
        features = {"image": Image(), "size": [Value("int64")], "label": Image(), "segments_info": [SEGMENT]}
    else:
        objects: dict[int, list] = {key: [] for key in images}
        for row in content["annotations"]:
            objects[row["image_id"]].append({key: row.get(key, 0) for key in OBJECT})
        rows = [{**image_columns(image), "objects": json.dumps(objects[key])} for key, image in images.items()]
        features = {"image": Image(), "size": [Value("int64")], "objects": Value("string")}
    return Dataset.from_list(rows, features=Features(features)), content["categories"]
