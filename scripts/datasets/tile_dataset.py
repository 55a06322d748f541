"""Cut the images of an instance dataset into square tiles.

python -m scripts.datasets.tile_dataset path/to/nuclei data/nuclei_tiles --tile 128 --splits train val test

All tiles of an image are in its split. Tiles do not overlap, except those of the last row and column, which end at the
image border. Objects are cut at the borders of tiles; parts of fewer than `--min_area` pixels become background. The
output is a dataset as `panoptic_parquet` writes it. Where objects overlap, the later annotation is on top.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import SegmentationDataset
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.utils.command import run_command

from .panoptic_parquet import Scene, write_splits


def tile_corners(size: tuple[int, int], tile: int) -> list[tuple[int, int]]:
    """(top, left) of the tiles of an image of (height, width), row by row.

    Raises:
        ValueError: the image is smaller than a tile.
    """
    if min(size) < tile:
        raise ValueError(f"An image of {size[0]}x{size[1]} pixels has no tile of {tile}x{tile}.")
    rows, columns = ([*range(0, side - tile, tile), side - tile] for side in size)
    return [(top, left) for top in rows for left in columns]


def tile_scenes(dataset: SegmentationDataset, tile: int, min_area: int) -> Iterator[Scene]:
    """All tiles of a dataset."""
    for index in range(len(dataset)):
        image, segments = dataset[index]
        layers = segments.map.view(-1, *segments.map.shape[-2:])
        ids = layers[0].clone()
        for layer in layers[1:]:
            ids[layer > 0] = layer[layer > 0]
        for top, left in tile_corners(tuple(ids.shape), tile):
            part = ids[top : top + tile, left : left + tile].numpy()
            pixels = image[:, top : top + tile, left : left + tile].permute(1, 2, 0).numpy()
            areas = zip(*(x.tolist() for x in np.unique(part, return_counts=True)), strict=True)
            kept = [segment for segment, area in areas if segment in segments.classes and area >= min_area]
            yield pixels, part, {segment: segments.classes[segment] for segment in kept}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="dataset: Hub name, or local folder")
    parser.add_argument("output", type=Path, help="new or empty folder")
    parser.add_argument("--tile", type=int, default=128, help="side of the tiles, in pixels")
    parser.add_argument("--min_area", type=int, default=8, help="smallest part of an object that is kept, in pixels")
    parser.add_argument("--splits", nargs="+", default=["train", "val", "test"], help="splits of the source")
    args = parser.parse_args(argv)
    data = DataArguments(dataset_name=args.source, task="instance")
    datasets = {{"val": "validation"}.get(split, split): open_dataset(data, split) for split in args.splits}
    splits = {name: tile_scenes(dataset, args.tile, args.min_area) for name, dataset in datasets.items()}
    names = next(iter(datasets.values())).labels.names
    for name, (tiles, objects) in write_splits(args.output, splits, names, set(range(len(names)))).items():
        print(f"{name}: {len(datasets[name])} images, {tiles} tiles, {objects} objects")


if __name__ == "__main__":
    run_command(main)
