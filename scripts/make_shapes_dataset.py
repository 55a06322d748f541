"""Generate a small panoptic dataset: overlapping shapes on textured backgrounds.

python -m scripts.make_shapes_dataset data/shapes --train 600 --validation 60 --test 100

Written in the Hub's parquet layout: `image`, `label` (RGB map, segment id = R + 256 G + 65536 B, 0 = void),
`segments_info`; class names in id2label.json and panoptic_categories.json. Things: disc, square, triangle, star. Stuff:
grass, water, sand, brick. About one image in twelve has no thing. The same seed gives the same files.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from PIL import ImageDraw

from mpformer_hf.cli.main import run_command
from mpformer_hf.files import check_new_folder, write_json

NAMES = ["disc", "square", "triangle", "star", "grass", "water", "sand", "brick"]
NUM_THINGS = 4
CORNERS = {1: 4, 2: 3, 3: 10}  # class -> corners; a disc has none
BACKGROUND_COLORS = {4: (70, 130, 60), 5: (60, 100, 165), 6: (200, 180, 125), 7: (150, 80, 65)}
EMPTY_SHARE = 1 / 12
SUPERSAMPLING = 4
CARD = """---
license: apache-2.0
task_categories:
- image-segmentation
pretty_name: Overlapping shapes on textured backgrounds
---

# Overlapping shapes on textured backgrounds

Generated images of {size}x{size} pixels with panoptic labels: {counts}. Things: {things}. Stuff: {stuff}.

`image`, `label` (RGB, segment id = R + 256 G + 65536 B, 0 = void), `segments_info` (`id`, `category_id`, `isthing`,
`area`, `bbox` = x, y, width, height, `iscrowd`).
"""


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise in [0, 1], float `[size, size]`, with a period of about `size / cells` pixels."""
    coarse = PILImage.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), PILImage.Resampling.BICUBIC), dtype=np.float32) / 255


def texture(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """Texture of a ground class, float `[size, size, 3]`: blades, waves, grains or bricks."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    if label == 4:
        pattern = smooth_noise(rng, size, size // 3)
    elif label == 5:
        pattern = 0.5 + 0.5 * np.sin(y * 0.9 + 4 * smooth_noise(rng, size, 6))
    elif label == 6:
        pattern = rng.random((size, size), dtype=np.float32)
    else:
        row = y // 8
        joint = (y % 8 < 1.5) | ((x + 8 * (row % 2)) % 16 < 1.5)
        pattern = np.where(joint, 1.0, 0.3 + 0.2 * smooth_noise(rng, size, size // 8))
    color = np.array(BACKGROUND_COLORS[label], dtype=np.float32) * rng.uniform(0.85, 1.15)
    return color * (0.75 + 0.5 * pattern[..., None])


def outline(label: int, x: float, y: float, radius: float, angle: float) -> list[tuple[float, float]]:
    """Corners (x, y) of a square, triangle or star."""
    count = CORNERS[label]
    radii = [radius * (0.45 if label == 3 and i % 2 else 1.0) for i in range(count)]
    turns = [angle + 2 * np.pi * i / count for i in range(count)]
    return [(x + r * np.cos(t), y + r * np.sin(t)) for r, t in zip(radii, turns, strict=True)]


def shape_mask(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """Antialiased coverage of a random shape, float `[size, size]` in [0, 1]."""
    scale = SUPERSAMPLING
    canvas = PILImage.new("L", (size * scale, size * scale))
    x, y = rng.uniform(0.05, 0.95, 2) * size * scale
    radius = rng.uniform(0.07, 0.2) * size * scale
    pen = ImageDraw.Draw(canvas)
    if label == 0:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        pen.polygon(outline(label, x, y, radius, rng.uniform(0, 2 * np.pi)), fill=255)
    return np.asarray(canvas.resize((size, size), PILImage.Resampling.BOX), dtype=np.float32) / 255


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
    """One image uint8 `[size, size, 3]`, its id map int32 `[size, size]`, and the class of each id."""
    first, second = rng.choice([4, 5, 6, 7], 2, replace=False)
    image = texture(rng, first, size)
    ids = np.full((size, size), 1, dtype=np.int32)
    classes = {1: int(first)}
    if rng.random() < 0.7:  # a second ground beyond a wavy border
        border = rng.uniform(0.25, 0.75) + 0.25 * (smooth_noise(rng, size, 4) - 0.5)
        y, x = np.mgrid[:size, :size] / size
        beyond = (x if rng.random() < 0.5 else y) > border
        image[beyond] = texture(rng, second, size)[beyond]
        ids[beyond] = 2
        classes[2] = int(second)
    count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, 9))
    for index in range(count):
        label = int(rng.integers(NUM_THINGS))
        coverage = shape_mask(rng, label, size)
        color = rng.uniform(30, 235, 3) * (0.9 + 0.2 * smooth_noise(rng, size, 5)[..., None])
        image = image * (1 - coverage[..., None]) + color * coverage[..., None]
        ids[coverage > 0.5] = index + 3
        classes[index + 3] = label
    image += rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8), ids, classes


def as_row(image: np.ndarray, ids: np.ndarray, classes: dict[int, int]) -> dict:
    """A dataset row; segments that are completely covered are left out."""
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
                "isthing": int(label < NUM_THINGS),
                "area": len(rows),
                "bbox": [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1],
                "iscrowd": 0,
            }
        )
    label = np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8)
    return {"image": PILImage.fromarray(image), "label": PILImage.fromarray(label), "segments_info": segments}


def write_dataset(folder: Path, counts: dict[str, int], size: int, seed: int) -> None:
    """Write all splits, class files and a card.

    Raises:
        ValueError: the folder is not empty.
    """
    check_new_folder(folder)
    integer = Value("int64")
    segment = dict.fromkeys(("id", "category_id", "isthing", "area", "iscrowd"), integer) | {"bbox": [integer]}
    features = Features({"image": Image(), "label": Image(), "segments_info": [segment]})
    (folder / "data").mkdir(parents=True)
    for number, (split, count) in enumerate(counts.items()):
        scenes = (draw_scene(np.random.default_rng((seed, number, index)), size) for index in range(count))
        rows = Dataset.from_list([as_row(*scene) for scene in scenes], features=features)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    write_json(dict(enumerate(NAMES)), folder / "id2label.json")
    categories = [{"id": i, "name": name, "isthing": int(i < NUM_THINGS)} for i, name in enumerate(NAMES)]
    write_json(categories, folder / "panoptic_categories.json")
    card = CARD.format(
        size=size,
        counts=", ".join(f"{count} {split}" for split, count in counts.items()),
        things=", ".join(NAMES[:NUM_THINGS]),
        stuff=", ".join(NAMES[NUM_THINGS:]),
    )
    (folder / "README.md").write_text(card)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty folder")
    for split, count in (("train", 600), ("validation", 60), ("test", 100)):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images in the {split} split")
    parser.add_argument("--size", type=int, default=128, help="side of the images, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images")
    args = parser.parse_args(argv)
    counts = {"train": args.train, "validation": args.validation, "test": args.test}
    write_dataset(args.folder, counts, args.size, args.seed)


if __name__ == "__main__":
    run_command(main)
