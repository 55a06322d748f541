"""Write images with segments as a panoptic dataset in the Hub's parquet layout.

Columns: `image`, `label` (RGB map, segment id = R + 256 G + 65536 B, 0 = void), `segments_info`; class names in
id2label.json and panoptic_categories.json.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from mpformer_hf.utils.files import check_new_folder, write_json, write_new_folder

# Image uint8 `[H, W, 3]`, map of segment ids int32 `[H, W]`, and the class of each id; other ids are void.
Scene = tuple[np.ndarray, np.ndarray, dict[int, int]]
INTEGER = Value("int64")
SEGMENT = dict.fromkeys(("id", "category_id", "isthing", "area", "iscrowd"), INTEGER) | {"bbox": [INTEGER]}
FEATURES = Features({"image": Image(), "label": Image(), "segments_info": [SEGMENT]})


def as_row(scene: Scene, things: set[int]) -> dict:
    """A dataset row; segments without pixels are left out, and pixels without a class are 0."""
    image, ids, classes = scene
    segments = []
    for segment, label in classes.items():
        rows, columns = np.nonzero(ids == segment)
        if len(rows) == 0:
            continue
        x, y = int(columns.min()), int(rows.min())
        segments.append(
            {
                "id": segment,
                "category_id": label,
                "isthing": int(label in things),
                "area": len(rows),
                "bbox": [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1],
                "iscrowd": 0,
            }
        )
    ids = np.where(np.isin(ids, list(classes)), ids, 0)
    label = np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8)
    return {"image": PILImage.fromarray(image), "label": PILImage.fromarray(label), "segments_info": segments}


def write_splits(
    folder: Path, splits: dict[str, Iterable[Scene]], names: list[str], things: set[int]
) -> dict[str, tuple[int, int]]:
    """Write all splits and the class files.

    Args:
        folder: new or empty.
        splits: scenes by name of the split.
        names: of the classes.
        things: ids of the thing classes.

    Returns:
        number of images and of segments of each split.

    Raises:
        ValueError: the folder is not empty.
    """
    check_new_folder(folder)
    counts = {}
    with write_new_folder(folder) as temporary:
        for split, scenes in splits.items():
            rows = [as_row(scene, things) for scene in scenes]
            write_split(rows, FEATURES, temporary, split)
            counts[split] = (len(rows), sum(len(row["segments_info"]) for row in rows))
        write_json(dict(enumerate(names)), temporary / "id2label.json")
        categories = [{"id": i, "name": name, "isthing": int(i in things)} for i, name in enumerate(names)]
        write_json(categories, temporary / "panoptic_categories.json")
    return counts


def write_split(rows: list[dict], features: Features, folder: Path, split: str) -> None:
    """Write rows as the only file of a split.

    Raises:
        ValueError: there are none.
    """
    if not rows:
        raise ValueError(f"Split {split} has no images.")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
