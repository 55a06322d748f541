"""Images and label images in two folders, or one mask file per instance."""

import logging
from pathlib import Path

from datasets import Value

from ...model.images import displayed_size, is_not_black, open_image
from ..labels import Labels
from ..segments import ObjectMask, Reader, Segments, from_objects
from ..tables import semantic_reader
from .folder import (
    ALL_SPLITS,
    FolderLayout,
    FolderSplit,
    folder_of_split,
    images_in,
    make_rows,
    pair_by_stem,
    row_of,
    words_of,
)

IMAGES = ("images", "imgs", "img_dir", "image", "img")
MASKS = ("masks", "annotations", "ann_dir", "labels", "mask", "label")
logger = logging.getLogger(__name__)


def has_splits(folder: Path) -> bool:
    """Whether a folder has folders that are named after splits."""
    return folder.is_dir() and any(words_of(path.name) & ALL_SPLITS for path in folder.iterdir() if path.is_dir())


class MaskImages(FolderLayout):
    """A folder of images and one of label images of class ids with the same names, such as `images` and `masks`, or
    `img_dir` and `ann_dir`. Splits are folders in these, or folders that have these. Class names: `id2label.json` or
    `--id2label`."""

    name = "label images (images, masks)"
    tasks = ("semantic",)

    def parts(self, folder: Path) -> dict[str, bool]:
        below = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        masks = [path for place in below if (path := first_folder(place, MASKS)) is not None]
        files = any(images_in(path) or any(images_in(p) for p in path.iterdir() if p.is_dir()) for path in masks)
        return {"images/": any(first_folder(place, IMAGES) is not None for place in below), "masks/ with images": files}

    def source(self, folder: Path, split: str, task: str) -> Path:
        images = first_folder(folder, IMAGES)
        if images is not None:
            return folder_of_split(images, split) if has_splits(images) else images
        of_split = folder_of_split(folder, split)
        return first_folder(of_split, IMAGES) or of_split / IMAGES[0]

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        images = self.source(folder, split, task)
        divided = images.parent != folder and images.name not in IMAGES  # folders of splits in the folder of images
        root = images.parent.parent if divided else images.parent
        masks = first_folder(root, MASKS)
        if masks is None:
            raise ValueError(f"{root} has no {' or '.join(MASKS)}/.")
        masks = folder_of_split(masks, split) if divided else masks
        endings = ("", "_mask", "_seg", "_label")
        stems = {path.stem for path in images_in(masks)}
        ending = next((e for e in endings if any(path.stem + e in stems for path in images_in(images))), "")
        rows = [row_of(image, label=label) for image, label in pair_by_stem(images, masks, ending)]
        return FolderSplit(make_rows(rows), None, lambda labels: semantic_reader("label", labels, False))


def first_folder(place: Path, names: tuple[str, ...]) -> Path | None:
    """The first of several names that is a folder in `place`."""
    return next((place / name for name in names if (place / name).is_dir()), None)


def files_reader(labels: Labels) -> Reader:
    """One mask file per instance, not 0 = instance.

    Raises:
        ValueError: there is more than one class.
    """
    if len(labels.names) != 1:
        raise ValueError(f"one mask file per instance has no classes, but there are {len(labels.names)} names.")

    def read(row: dict) -> Segments:
        masks = [is_not_black(open_image(file)) for file in row["masks"]]
        shapes = {mask.shape for mask in masks}
        if len(shapes) > 1:
            raise ValueError(f"the masks beside {row['masks'][0]} are of different sizes")
        height, width = shapes.pop() if shapes else displayed_size(row["image"])[::-1]
        return from_objects((ObjectMask(mask, 0) for mask in masks), height, width)

    return read


class InstanceFiles(FolderLayout):
    """A folder for each image, `ID/images/*` and `ID/masks/*.png`, as in the Data Science Bowl 2018, in folders of
    splits or without splits; without masks there is no object. There is one class: the first of `id2label.json`, else
    `object`."""

    name = "one mask file per instance (ID/images, ID/masks)"
    tasks = ("instance",)

    def folders(self, folder: Path) -> list[Path]:
        """Folders of images."""
        return sorted(path.parent for path in folder.glob("*/images") if not path.parent.name.startswith("."))

    def parts(self, folder: Path) -> dict[str, bool]:
        places = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        own = [path for place in places for path in self.folders(place) if (path / "masks").is_dir()]
        return {
            "*/images/ with one image each, and */masks/": any(len(images_in(path / "images")) == 1 for path in own)
        }

    def source(self, folder: Path, split: str, task: str) -> Path:
        return folder_of_split(folder, split) if has_splits(folder) else folder

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        rows = []
        for path in self.folders(self.source(folder, split, task)):
            images = images_in(path / "images")
            if len(images) != 1:
                raise ValueError(f"{path}/images has {len(images)} images, expected one.")
            if not (path / "masks").is_dir():
                logger.warning("%s has no masks/: an image without objects.", path)
            masks = [str(mask) for mask in images_in(path / "masks")] if (path / "masks").is_dir() else []
            rows.append({**row_of(images[0]), "masks": masks})
        if not rows:
            raise ValueError(f"{self.source(folder, split, task)} has no folders ID/images and ID/masks.")
        categories = None if (folder / "id2label.json").is_file() else [{"id": 0, "name": "object", "isthing": 1}]
        return FolderSplit(make_rows(rows, masks=[Value("string")]), categories, files_reader)
