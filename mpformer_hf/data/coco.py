"""COCO folders: a JSON of annotations, the images and, for panoptic labels, PNG maps."""

import json
import logging
import re
import unicodedata
from pathlib import Path, PurePosixPath

from datasets import Dataset, Features, Image, Value

from ..files import IMAGE_SUFFIXES, TABLE_SUFFIXES, files_below, read_json
from .coco_checks import check_coco

logger = logging.getLogger(__name__)
SEGMENT = {"id": Value("int64"), "category_id": Value("int64"), "iscrowd": Value("int64")}
OBJECT = ("category_id", "segmentation", "iscrowd")
COCO = ("instances", "panoptic", "person_keypoints", "captions", "stuff", "image_info")
SPLITS = {"train": {"train"}, "validation": {"val", "valid", "validation"}, "val": {"val"}, "test": {"test"}}
ALL_SPLITS = set.union(*SPLITS.values())


def is_coco_folder(folder: Path) -> bool:
    """Whether a folder has JSON annotations and no parquet, arrow or metadata file. Archives (the downloads), logs and
    tables are allowed beside images."""
    if not folder.is_dir() or not annotation_files(folder):
        return False
    files = list(files_below(folder))
    if any(file.suffix in (".parquet", ".arrow") or file.stem == "metadata" for file in files):
        return False
    suffixes = {file.suffix.lower() for file in files}
    return suffixes.isdisjoint(TABLE_SUFFIXES) or not suffixes.isdisjoint(IMAGE_SUFFIXES)


def annotation_files(folder: Path) -> list[Path]:
    """JSON files other than those of class names."""
    files = [*folder.glob("*.json"), *folder.glob("annotations/*.json")]
    return sorted(file for file in files if file.name not in ("id2label.json", "panoptic_categories.json"))


def words_of(name: str) -> set[str]:
    """Words of a file or folder name: `instances_val2017` -> instances, val."""
    return set(re.findall("[a-z]+", name.lower()))


def choose_annotations(folder: Path, split: str, task: str) -> Path:
    """The JSON file of a task and split: one whose name contains the split's name, or no split's name. If there are
    several, the one that is named as in COCO (`instances_*`, `panoptic_*`). Instances may also be read from panoptic
    annotations.

    Raises:
        ValueError: there is none, or more than one.
    """
    files = annotation_files(folder)
    words = SPLITS.get(split, words_of(split))
    of_split = [file for file in files if words_of(file.stem) & words]
    if not of_split and split in SPLITS:  # a file for all splits
        of_split = [file for file in files if not words_of(file.stem) & ALL_SPLITS]
    instances, panoptic = ([f for f in of_split if f.stem.startswith(kind)] for kind in ("instances", "panoptic"))
    other = [file for file in of_split if not file.stem.startswith(COCO)]
    candidates = {"panoptic": panoptic or other, "instance": instances or other or panoptic}.get(task, [])
    if len(candidates) != 1:
        names = ", ".join(file.name for file in candidates) or "none"
        raise ValueError(f"{folder} must have one JSON of {task} annotations for split {split!r}, found {names}.")
    return candidates[0]


def plain(name: str) -> str:
    """A path with `/` and composed characters, as it may be written on another system."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


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
    below: dict[tuple[str, ...], list[Path]] = {}
    for path in files_below(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            below.setdefault((plain(path.name),), []).append(path.relative_to(folder))

    of_split = words_of(file.stem) & ALL_SPLITS

    def find(name: str, is_map: bool) -> str:
        """Path of an image or a map by the name in the JSON; maps are in folders with "panoptic" in their names."""
        parts = tuple(part for part in PurePosixPath(plain(name)).parts if part not in ("..", "/"))
        found = [path for path in below.get(parts[-1:], []) if Path(plain(str(path))).parts[-len(parts) :] == parts]
        found = [path for path in found if is_map or not any("panoptic" in part for part in path.parts[:-1])]
        if is_map:
            found = [path for path in found if any("panoptic" in part for part in path.parts[:-1])] or found
        if of_split and len(parts) == 1:  # a name alone may be in the folders of several splits
            splits = [words_of(str(path.parent)) & ALL_SPLITS for path in found]
            found = [path for path, other in zip(found, splits, strict=True) if not other or other & of_split]
            found = [path for path in found if words_of(str(path.parent)) & of_split] or found
        if len(found) != 1:
            raise ValueError(f"{file} refers to {name}, which was found {len(found)} times in {folder}.")
        return str(folder / found[0])

    def image_columns(image: dict) -> dict:
        """Path of the image, and its size [height, width] in the JSON, which is compared with the file's."""
        size = [image["height"], image["width"]] if "height" in image and "width" in image else None
        return {"image": find(image["file_name"], is_map=False), "size": size}

    images = {image["id"]: image for image in content["images"]}
    if not images:
        raise ValueError(f"{file} has no images.")
    without = len(set(images) - {row["image_id"] for row in content["annotations"]})
    if panoptic and without:
        logger.warning("%s: %d images have no annotation and are left out.", file, without)
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
