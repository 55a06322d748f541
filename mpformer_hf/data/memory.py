"""Datasets in memory, given to `mpformer_hf.train` and `evaluate` instead of a name."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PilImage

from ..model.images import orientation_of, to_image_tensor
from ..model.label_maps import compress_counts, encode_rle
from .arguments import MEMORY
from .segments import as_png
from .split_names import names_of_split

SPLITS: dict[str, Mapping[str, Dataset]] = {}


def name_of(data: Any, train_split: str = "train") -> str:
    """A name by which `open_dataset` finds a dataset of this process.

    Args:
        data: name of a dataset, which is returned; or a `DatasetDict`, or a mapping of the names of splits to splits. A
            split, which may be given alone, is a `datasets.Dataset` in a layout of the Hub, or a sequence of tuples
            (image, label map) or (image, masks, labels), such as a torch `Dataset`. Images: see `to_image_tensor`;
            label map: class ids `[H, W]`, 255 is void; masks: bool `[N, H, W]`; labels: N class ids.
        train_split: name of a split that is given alone.

    Raises:
        ValueError: an example is of another form; the message has its number.
    """
    if isinstance(data, str):
        return data
    splits = data if isinstance(data, (Mapping, DatasetDict)) else {train_split: data}
    name = f"{MEMORY}{len(SPLITS)}"
    SPLITS[name] = {key: as_dataset(split, key) for key, split in splits.items()}
    return name


def find_split(name: str, split: str) -> Dataset:
    """A split of a dataset in memory.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in SPLITS:
        raise ValueError(f"{name} was a dataset in the memory of another process.")
    others = [key for key in SPLITS[name] if key in names_of_split(split)]
    if split not in SPLITS[name] and len(others) == 1:
        return SPLITS[name][others[0]]
    if split not in SPLITS[name]:
        known = ", ".join(SPLITS[name])
        hint = "give validation_share=0.2, or a mapping of splits" if len(SPLITS[name]) == 1 else "see eval_split"
        raise ValueError(f"The dataset in memory has no split {split!r}, only {known}; {hint}.")
    return SPLITS[name][split]


def as_dataset(split: Any, name: str) -> Dataset:
    """A split as rows of the Hub's layouts, see `name_of`."""
    if isinstance(split, Dataset):
        return split
    if not hasattr(split, "__len__") or not hasattr(split, "__getitem__"):
        raise ValueError(f"{name} is a {type(split).__name__}, expected a datasets.Dataset or a sequence of examples.")
    rows = []
    for index in range(len(split)):
        example = split[index]
        if not isinstance(example, (tuple, list)) or len(example) not in (2, 3):
            raise ValueError(f"{name}[{index}] must be (image, label map) or (image, masks, labels).")
        try:
            rows.append(as_row(*example))
        except ValueError as error:
            raise ValueError(f"{name}[{index}]: {error}.") from error
    kinds = {"image": Image(), "label": Image(), "objects": Value("string")}
    return Dataset.from_list(rows, features=Features({key: kinds[key] for key in rows[0]}) if rows else None)


def as_row(image: Any, target: Any, labels: Any = None) -> dict:
    """A row of an image and its label map or masks, compressed without loss."""
    if isinstance(image, PilImage.Image) and orientation_of(image) != 1:
        remedy = "give ImageOps.exif_transpose(image), and labels of the turned image"
        raise ValueError(f"the image is turned by its EXIF data, and arrays made of it are not: {remedy}")
    pixels = to_image_tensor(image).permute(1, 2, 0).numpy()
    values = np.asarray(target if not isinstance(target, PilImage.Image) else np.array(target))
    if labels is None:
        if values.shape != pixels.shape[:2] or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"the label map is {values.dtype} {values.shape}, expected integers {pixels.shape[:2]}")
        if values.size and not 0 <= values.min() <= values.max() < 65536:
            raise ValueError(f"the label map has values from {values.min()} to {values.max()}, expected 0 to 65535")
        return {"image": as_png(pixels), "label": as_png(values.astype(np.uint8 if values.max() < 256 else np.uint16))}
    given = np.asarray(labels)
    if given.ndim != 1 or not (np.issubdtype(given.dtype, np.integer) or given.size == 0):
        raise ValueError(f"labels are {given.dtype} {given.shape}, expected a list of integers")
    ids = given.tolist()
    if values.shape != (len(ids), *pixels.shape[:2]):
        raise ValueError(f"masks are {values.shape}, expected {(len(ids), *pixels.shape[:2])} for {len(ids)} labels")
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise ValueError(f"masks have values from {values.min()} to {values.max()}, expected booleans, or 0 and 1")
    objects = []
    for mask, label in zip(values, ids, strict=True):
        rle = encode_rle(mask != 0)
        rle["counts"] = compress_counts(rle["counts"])
        objects.append({"category_id": int(label), "segmentation": rle, "iscrowd": 0})
    return {"image": as_png(pixels), "objects": json.dumps(objects)}
