"""Images and label images in two folders, or one mask file per instance."""

import contextlib
import logging
from pathlib import Path

import numpy as np
import torch
from datasets import Value

from ...model.images import PHOTOMETRIC, displayed_size, is_not_black, open_image
from ...model.label_maps import count_ids
from ..labels import Labels
from ..segments import LOSSY, ObjectMask, Segments, from_objects, read_map
from ..split_names import ALL_SPLITS, words_of
from ..tables import read_semantic
from .class_tables import COLORS, VALUES, find_table, read_colored, read_colors, read_values
from .folder import (
    FolderLayout,
    FolderSplit,
    folder_of_split,
    images_in,
    make_rows,
    pair_by_stem,
    path_of_split,
    row_of,
)

IMAGES = ("images", "imgs", "img_dir", "image", "img")
MASKS = ("masks", "annotations", "ann_dir", "labels", "mask", "label")
INSTANCES = ("instances", "instance_masks", "instance_maps", "instance_ids", "instance_labels")
ENDINGS = ("", "_mask", "_seg", "_label", "_labels", "-mask", "_gt", "_L", "_masks", "_cp_masks")  # of label images
UNNAMED = "default"  # the subset of CVAT's images that have none
BESIDE = ("_labels", "_masks", "_label", "_mask", "_annot", "annot")  # of the names of folders of label images
SOFT = 8  # a map with more ids whose objects are mostly 255 or 65535 is a mask with a soft edge
OBJECT = [{"id": 0, "name": "object", "isthing": 1}]
logger = logging.getLogger(__name__)


def has_splits(folder: Path) -> bool:
    """Whether a folder has folders that are named after splits."""
    return folder.is_dir() and any(words_of(path.name) & ALL_SPLITS for path in folder.iterdir() if path.is_dir())


class MaskImages(FolderLayout):
    """A folder of images and one of label images with the same names, such as `images` and `masks`, or `img_dir` and
    `ann_dir`. Splits are folders in these, or folders that have these. Class names and colours: a table beside them
    (`class_dict.csv`, `labelmap.txt`, `_classes.csv`, ...), `id2label.json` or `--id2label`."""

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

    def pairs(self, folder: Path, split: str, task: str, names: tuple[str, ...] = MASKS) -> list[dict]:
        """Rows of the images of a split and their label images in a folder of one of several names."""
        images = self.source(folder, split, task)
        divided = images.parent != folder and images.name.lower() not in IMAGES  # it has folders of splits
        root = images.parent.parent if divided else images.parent
        masks = first_folder(root, names)
        if masks is None:
            raise ValueError(f"{root} has no {' or '.join(names)}/.")
        masks = folder_of_split(masks, split) if divided else masks
        return rows_of(images, masks)

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        return with_table(folder, self.pairs(folder, split, task))


def rows_of(images: Path, masks: Path) -> list[dict]:
    """Rows of the images in a folder and their label images in another one, or in folders of the same names in both."""
    if not images_in(images):
        names = [path.name for path in sorted(images.iterdir()) if path.is_dir() and (masks / path.name).is_dir()]
        if names:
            return [row for name in names for row in rows_of(images / name, masks / name)]
    stems = {path.stem for path in images_in(masks)}
    ending = next((e for e in ENDINGS if any(path.stem + e in stems for path in images_in(images))), "")
    return [row_of(image, label=label) for image, label in pair_by_stem(images, masks, ending)]


def with_table(folder: Path, rows: list[dict]) -> FolderSplit:
    """Rows of label images, of the colours or values of a table in the folder, if there is one."""
    colors, values = find_table(folder, COLORS), find_table(folder, VALUES)
    if colors is not None:
        return FolderSplit(make_rows(rows), read_colors(colors), read_colored)
    given = values is not None and not (folder / "id2label.json").is_file()
    categories = read_values(values) if given and values is not None else None
    return FolderSplit(make_rows(rows), categories, read_semantic)


class MaskFiles(MaskImages):
    """Label images beside the images, `x.jpg` and `x_mask.png`, in one folder or in folders of splits; names and
    colours as for `MaskImages`. So does Roboflow export masks."""

    name = "label images beside the images (x.jpg, x_mask.png)"

    def parts(self, folder: Path) -> dict[str, bool]:
        places = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        return {"x_mask.png beside x.jpg": any(split_pairs(place)[0] for place in places)}

    def source(self, folder: Path, split: str, task: str) -> Path:
        return folder_of_split(folder, split) if has_splits(folder) else folder

    def pairs(self, folder: Path, split: str, task: str, names: tuple[str, ...] = MASKS) -> list[dict]:
        found, without = split_pairs(self.source(folder, split, task))
        if without or not found:
            missing = without[0] if without else self.source(folder, split, task)
            raise ValueError(f"{missing} has no label image NAME{' or NAME'.join(ENDINGS[1:])}.png beside it.")
        return [row_of(image, label=label) for image, label in found]


def split_pairs(folder: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Images in a folder with their label images, and images without."""
    files = {path.stem: path for path in images_in(folder)}
    labels = {stem: path for stem, path in files.items() if any(base_of(stem, e) in files for e in ENDINGS[1:])}
    images = [(stem, path) for stem, path in files.items() if stem not in labels]
    pairs = [(path, next((labels[stem + e] for e in ENDINGS[1:] if stem + e in labels), None)) for stem, path in images]
    return [(image, label) for image, label in pairs if label], [image for image, label in pairs if label is None]


def base_of(stem: str, ending: str) -> str | None:
    """Name of the image that a label image belongs to, if it has the ending."""
    return stem.removesuffix(ending) if stem.endswith(ending) else None


class SplitPairs(MaskImages):
    """Folders of images that are named after splits, each with a folder of label images beside it: `train` and
    `train_labels`, as CamVid is often shared. Names and colours as for `MaskImages`."""

    name = "label images beside folders of splits (train, train_labels)"

    def folders(self, folder: Path) -> dict[Path, Path]:
        """Folders of label images by those of their images."""
        places = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
        bases = {path: name.removesuffix("_images") for name, path in places.items()}
        pairs = ((path, places.get(base + end)) for path, base in bases.items() for end in BESIDE)
        found = {path: labels for path, labels in pairs if labels and images_in(labels)}
        return {path: labels for path, labels in found.items() if words_of(path.name) & {*ALL_SPLITS, UNNAMED}}

    def parts(self, folder: Path) -> dict[str, bool]:
        return {"train/ beside train_labels/": bool(self.folders(folder))}

    def source(self, folder: Path, split: str, task: str) -> Path:
        if [path.name for path in self.folders(folder)] == [UNNAMED]:
            return folder / UNNAMED
        requirement = f"{folder} must have one pair of folders such as train and train_labels"
        return path_of_split(list(self.folders(folder)), split, requirement)

    def pairs(self, folder: Path, split: str, task: str, names: tuple[str, ...] = MASKS) -> list[dict]:
        images = self.source(folder, split, task)
        return rows_of(images, self.folders(folder)[images])


class InstanceMaps(MaskImages):
    """Images, and maps of instance ids (of 8 or 16 bits or RGB; 0 = no object) with the same names in `instances` or a
    folder of a similar name. There is one class: that of `id2label.json`, else `object`."""

    name = "maps of instance ids (images, instances)"
    tasks = ("instance",)

    def parts(self, folder: Path) -> dict[str, bool]:
        below = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        found = {names: any(first_folder(place, names) for place in below) for names in (IMAGES, INSTANCES)}
        return {"images/": found[IMAGES], "instances/": found[INSTANCES]}

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        rows = self.pairs(folder, split, task, INSTANCES)
        categories = None if (folder / "id2label.json").is_file() else OBJECT
        warn_of_mask(Path(rows[0]["label"]))
        return FolderSplit(make_rows(rows), categories, read_ids)


def warn_of_mask(file: Path) -> None:
    """Warn if a map of instance ids looks like a mask of all objects."""
    with contextlib.suppress(ValueError):  # is raised when the row is read
        ids = sorted(count_ids(read_map(open_image(file))))
        if ids in ([0, 255], [0, 65535]):
            logger.warning("%s has 0 and %d only: as a mask, all its objects would be one.", file, ids[1])


def read_ids(row: dict, labels: Labels) -> Segments:
    """Maps of instance ids, 0 = no object.

    Raises:
        ValueError: there is more than one class.
    """
    check_one_class(labels)
    map_ = read_map(row["label"])
    areas = {i: area for i, area in count_ids(map_).items() if i != 0}
    ids = list(areas)
    if len(ids) > SOFT and ids[-1] in (255, 65535) and 2 * areas[ids[-1]] > sum(areas.values()):
        raise ValueError(f"the label is a soft mask of up to {ids[-1]}, expected ids of objects, 1, 2, ...")
    return Segments(torch.from_numpy(map_), dict.fromkeys(ids, 0))


def check_one_class(labels: Labels) -> None:
    """
    Raises:
        ValueError: there is more than one class.
    """
    if len(labels.names) != 1:
        raise ValueError(f"masks of instances have no classes here, but there are {len(labels.names)} names.")


def first_folder(place: Path, names: tuple[str, ...]) -> Path | None:
    """The first of several names, in letters of any case, that is a folder in `place`."""
    found = {path.name.lower(): path for path in sorted(place.iterdir(), reverse=True) if path.is_dir()}
    return next((found[name] for name in names if name in found), None)


def mask_of_one_object(file: Path) -> np.ndarray:
    """Mask of a file, bool `[H, W]`: what is not black, or not transparent if all has one colour.

    Raises:
        ValueError: it has more than one other value, or may have, since it is compressed with losses.
    """
    image = open_image(file)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        raise ValueError(f"{file} is a TIFF in which 0 is white, so it may be inverted; save it with 0 as black")
    if image.format in LOSSY:
        raise ValueError(f"{file} is a {image.format}, whose compression blurs masks; masks must be PNG or TIFF")
    mask = is_not_black(image)
    if mask.all() and "A" in image.getbands():
        mask = np.array(image.getchannel("A")) > 127
    values = np.unique(np.array(image.convert("RGB") if image.mode in ("P", "RGBA", "LA") else image)[mask], axis=0)
    if len(values) > 1:
        raise ValueError(
            f"{file} has {len(values)} values that are not black, expected one: put maps of ids into instances/, "
            "beside images/; if the edge is soft, write 0 and 255 only"
        )
    return mask


def read_mask_files(row: dict, labels: Labels) -> Segments:
    """One mask file per instance, not 0 = instance.

    Raises:
        ValueError: there is more than one class.
    """
    check_one_class(labels)
    masks = [mask_of_one_object(Path(file)) for file in row["masks"]]
    shapes = {mask.shape for mask in masks}
    if len(shapes) > 1:
        raise ValueError(f"the masks beside {row['masks'][0]} are of different sizes")
    height, width = shapes.pop() if shapes else displayed_size(row["image"])[::-1]
    return from_objects((ObjectMask(mask, 0) for mask in masks), height, width)


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
        categories = None if (folder / "id2label.json").is_file() else OBJECT
        return FolderSplit(make_rows(rows, masks=[Value("string")]), categories, read_mask_files)
