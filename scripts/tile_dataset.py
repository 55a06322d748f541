"""Cut the images of an instance dataset into square tiles.

python -m scripts.tile_dataset path/to/nuclei data/nuclei_tiles --tile 128 --splits train val test

All tiles of an image are in its split. Tiles do not overlap, except those of the last row and column, which end at the
image border. Objects are cut at the borders of tiles; parts of fewer than `--min_area` pixels become background. The
output is a dataset in the Hub's parquet layout: `image`, `label` (RGB map, segment id = R + 256 G + 65536 B, 0 =
background) and `segments_info`. Where objects overlap, the later annotation is on top.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.files import check_new_folder, write_json


def tile_corners(size: tuple[int, int], tile: int) -> list[tuple[int, int]]:
    """(top, left) of the tiles of an image of (height, width), row by row.

    Raises:
        ValueError: the image is smaller than a tile.
    """
    if min(size) < tile:
        raise ValueError(f"An image of {size[0]}x{size[1]} pixels has no tile of {tile}x{tile}.")
    rows, columns = ([*range(0, side - tile, tile), side - tile] for side in size)
    return [(top, left) for top in rows for left in columns]


def tile_rows(dataset, tile: int, min_area: int):
    """Rows of all tiles of a `SegmentationDataset`."""
    for index in range(len(dataset)):
        image, segments = dataset[index]
        layers = segments.map.view(-1, *segments.map.shape[-2:])
        ids = layers[0].clone()
        for layer in layers[1:]:
            ids[layer > 0] = layer[layer > 0]
        for top, left in tile_corners(tuple(ids.shape), tile):
            part = ids[top : top + tile, left : left + tile].numpy()
            present, areas = np.unique(part, return_counts=True)
            kept = [
                (int(i), int(a))
                for i, a in zip(present, areas, strict=True)
                if int(i) in segments.classes and a >= min_area
            ]
            part = np.where(np.isin(part, [i for i, _ in kept]), part, 0)
            label = np.stack((part % 256, part // 256 % 256, part // 65536), -1).astype(np.uint8)
            pixels = image[:, top : top + tile, left : left + tile].permute(1, 2, 0).numpy()
            infos = [{"id": i, "category_id": segments.classes[i], "isthing": 1, "iscrowd": 0} for i, _ in kept]
            yield {"image": PILImage.fromarray(pixels), "label": PILImage.fromarray(label), "segments_info": infos}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="dataset: Hub name, or local folder")
    parser.add_argument("output", type=Path, help="new or empty folder")
    parser.add_argument("--tile", type=int, default=128, help="side of the tiles, in pixels")
    parser.add_argument("--min_area", type=int, default=8, help="smallest part of an object that is kept, in pixels")
    parser.add_argument("--splits", nargs="+", default=["train", "val", "test"], help="splits of the source")
    args = parser.parse_args(argv)
    segment = {name: Value("int64") for name in ("id", "category_id", "isthing", "iscrowd")}
    features = Features({"image": Image(), "label": Image(), "segments_info": [segment]})
    data = DataArguments(dataset_name=args.source, task="instance")
    check_new_folder(args.output)
    for split in args.splits:
        dataset = open_dataset(data, split)
        rows = Dataset.from_list(list(tile_rows(dataset, args.tile, args.min_area)), features=features)
        name = {"val": "validation"}.get(split, split)
        rows.to_parquet(args.output / "data" / f"{name}-00000-of-00001.parquet")
        objects = sum(len(row) for row in rows["segments_info"])
        print(f"{name}: {len(dataset)} images, {len(rows)} tiles, {objects} objects")
    write_json(dataset.labels.id2label, args.output / "id2label.json")


if __name__ == "__main__":
    run_command(main)
