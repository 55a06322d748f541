"""Write generated scenes as a panoptic dataset in the Hub's parquet layout, with class files and a card.

Columns: `image`, `label` (RGB map, segment id = R + 256 G + 65536 B, 0 = void), `segments_info`; class names in
id2label.json and panoptic_categories.json.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from mpformer_hf.files import check_new_folder, write_json

# Image uint8 `[S, S, 3]`, map of segment ids int32 `[S, S]` with ids from 1, and the class of each id.
Scene = tuple[np.ndarray, np.ndarray, dict[int, int]]

CARD = """---
license: apache-2.0
task_categories:
- image-segmentation
pretty_name: {title}
---

# {title}

Generated images of {size}x{size} pixels with panoptic labels: {counts}. Things: {things}. Stuff: {stuff}.

`image`, `label` (RGB, segment id = R + 256 G + 65536 B, 0 = void), `segments_info` (`id`, `category_id`, `isthing`,
`area`, `bbox` = x, y, width, height, `iscrowd`).
"""


def as_row(scene: Scene, num_things: int) -> dict:
    """A dataset row; segments that are completely covered are left out."""
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
                "isthing": int(label < num_things),
                "area": len(rows),
                "bbox": [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1],
                "iscrowd": 0,
            }
        )
    label = np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8)
    return {"image": PILImage.fromarray(image), "label": PILImage.fromarray(label), "segments_info": segments}


def write_dataset(
    folder: Path,
    draw_scene: Callable[[np.random.Generator, int, str], Scene],
    names: list[str],
    num_things: int,
    title: str,
    counts: dict[str, int],
    size: int,
    seed: int,
) -> None:
    """Write all splits, class files and a card. The same seed gives the same files.

    Args:
        folder: new or empty.
        draw_scene: makes a scene from a generator, the side of the image and the name of the split.
        names: of the classes, things first.
        num_things: number of thing classes.
        title: of the card.
        counts: number of images of each split.
        size: side of the images, in pixels.
        seed: of the images.

    Raises:
        ValueError: the folder is not empty.
    """
    check_new_folder(folder)
    integer = Value("int64")
    segment = dict.fromkeys(("id", "category_id", "isthing", "area", "iscrowd"), integer) | {"bbox": [integer]}
    features = Features({"image": Image(), "label": Image(), "segments_info": [segment]})
    (folder / "data").mkdir(parents=True)
    for number, (split, count) in enumerate(counts.items()):
        scenes = (draw_scene(np.random.default_rng((seed, number, index)), size, split) for index in range(count))
        rows = Dataset.from_list([as_row(scene, num_things) for scene in scenes], features=features)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    write_json(dict(enumerate(names)), folder / "id2label.json")
    categories = [{"id": i, "name": name, "isthing": int(i < num_things)} for i, name in enumerate(names)]
    write_json(categories, folder / "panoptic_categories.json")
    card = CARD.format(
        title=title,
        size=size,
        counts=", ".join(f"{count} {split}" for split, count in counts.items()),
        things=", ".join(names[:num_things]),
        stuff=", ".join(names[num_things:]),
    )
    (folder / "README.md").write_text(card)


def parse_arguments(description: str, argv: list[str] | None) -> tuple[Path, dict[str, int], int, int]:
    """Folder, number of images of each split, side of the images and seed, from the command line of a generator."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty folder")
    for split, count in (("train", 600), ("validation", 60), ("test", 100)):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images in the {split} split")
    parser.add_argument("--size", type=int, default=128, help="side of the images, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images")
    args = parser.parse_args(argv)
    return args.folder, {"train": args.train, "validation": args.validation, "test": args.test}, args.size, args.seed


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise in [0, 1], float `[size, size]`, with a period of about `size / cells` pixels."""
    coarse = PILImage.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), PILImage.Resampling.BICUBIC), dtype=np.float32) / 255


def beyond_border(rng: np.random.Generator, size: int) -> np.ndarray:
    """Part of an image beyond a wavy vertical or horizontal border, bool `[size, size]`."""
    border = rng.uniform(0.25, 0.75) + 0.25 * (smooth_noise(rng, size, 4) - 0.5)
    y, x = np.mgrid[:size, :size] / size
    return (x if rng.random() < 0.5 else y) > border
