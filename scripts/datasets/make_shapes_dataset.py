"""Generate a small panoptic dataset: overlapping shapes on textured backgrounds.

python -m scripts.datasets.make_shapes_dataset data/shapes --train 600 --validation 60 --test 100

Things: disc, square, triangle, star. Stuff: grass, water, sand, brick. About one image in twelve has no thing. The
layout is that of scripts/datasets/panoptic_parquet.py; the same seed gives the same files.
"""

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from mpformer_hf.utils.command import run_command

from .generated_dataset import beyond_border, parse_arguments, smooth_noise, write_dataset
from .panoptic_parquet import Scene

TITLE = "Overlapping shapes on textured backgrounds"
NAMES = ["disc", "square", "triangle", "star", "grass", "water", "sand", "brick"]
NUM_THINGS = 4
CORNERS = {1: 4, 2: 3, 3: 10}  # class -> corners; a disc has none
BACKGROUND_COLORS = {4: (70, 130, 60), 5: (60, 100, 165), 6: (200, 180, 125), 7: (150, 80, 65)}
EMPTY_SHARE = 1 / 12
SUPERSAMPLING = 4


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


def draw_scene(rng: np.random.Generator, size: int, split: str) -> Scene:
    """A scene; those of all splits are alike."""
    first, second = rng.choice([4, 5, 6, 7], 2, replace=False)
    image = texture(rng, first, size)
    ids = np.full((size, size), 1, dtype=np.int32)
    classes = {1: int(first)}
    if rng.random() < 0.7:  # a second ground beyond a wavy border
        beyond = beyond_border(rng, size)
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


def main(argv: list[str] | None = None) -> None:
    folder, counts, size, seed = parse_arguments(__doc__, argv)
    write_dataset(folder, draw_scene, NAMES, NUM_THINGS, TITLE, counts, size, seed)


if __name__ == "__main__":
    run_command(main)
