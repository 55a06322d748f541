"""What the generators of datasets share: command line, splits, card, noise."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from mpformer_hf.model.ranges import check_range

from .panoptic_parquet import Scene, write_splits

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

    def scenes(number: int, split: str, count: int) -> Iterator[Scene]:
        return (draw_scene(np.random.default_rng((seed, number, index)), size, split) for index in range(count))

    splits = {split: scenes(number, split, count) for number, (split, count) in enumerate(counts.items())}
    write_splits(folder, splits, names, set(range(num_things)))
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
    for name in ("train", "validation", "test", "size"):
        check_range(f"--{name}", getattr(args, name), "[1, inf)")
    check_range("--seed", args.seed, "[0, inf)")
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
