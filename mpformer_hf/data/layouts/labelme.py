"""labelme: one JSON beside each image."""

import base64
import binascii
import contextlib
import io
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from datasets import Value

from ...model.images import displayed_size, open_image
from ...model.label_maps import count_ids
from ...utils.files import IMAGE_SUFFIXES, files_below, read_json
from ..coco_masks import decode_part
from ..labels import Labels
from ..segments import VOID, ObjectMask, Segments, from_objects
from ..split_names import ALL_SPLITS, names_of_split, words_of
from .coco import is_labelme
from .finding import FileFinder, plain
from .folder import FolderLayout, FolderSplit, make_rows, path_of_split, read_lines, row_of, warn_left_out

logger = logging.getLogger(__name__)
AREAS = ("polygon", "rectangle", "oriented_rectangle", "rotation", "circle", "mask")  # others have no area
CIRCLE = np.linspace(0, 2 * np.pi, 65)[:-1]
IGNORED, BACKGROUND = "__ignore__", "_background_"  # labelme's names of what is no class


def shape_part(shape: dict, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Mask of a shape, see `decode_part`.

    Raises:
        ValueError: it is invalid.
    """
    kind = shape.get("shape_type") or "polygon"
    points = np.array(shape["points"], dtype=float).reshape(-1, 2)
    if kind == "mask":
        return pasted_part(shape, points, height, width)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if kind == "circle" and len(points) == 2:
        radius = np.hypot(*(points[1] - points[0]))
        points = points[0] + radius * np.stack((np.cos(CIRCLE), np.sin(CIRCLE)), 1)
    return decode_part([points.flatten().tolist()], height, width)


def pasted_part(shape: dict, points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Mask of a shape of type `mask`: a PNG of the box whose corners are its two points."""
    try:
        part = np.array(open_image(io.BytesIO(base64.b64decode(shape["mask"], validate=True)))) > 0
    except (ValueError, TypeError, KeyError) as error:  # of base64 too
        raise ValueError("has a shape of type mask whose PNG cannot be read") from error
    x, y = points.min(0).round().astype(int).tolist()
    if part.ndim != 2 or x < 0 or y < 0 or y + part.shape[0] > height or x + part.shape[1] > width:
        raise ValueError(f"has a mask of {part.shape} at ({x}, {y}), which is not inside of the image")
    return part, y, x


def parts_of(row: dict, height: int, width: int) -> Iterator[tuple[dict, np.ndarray, int, int]]:
    """Each shape of a row that has an area, and its mask, see `decode_part`.

    Raises:
        ValueError: a shape is invalid; the message names it.
    """
    for number, shape in enumerate(read_json(Path(row["text"]))["shapes"]):
        if (shape.get("shape_type") or "polygon") in AREAS:
            try:
                yield shape, *shape_part(shape, height, width)
            except ValueError as error:
                raise ValueError(f"shape {number} of {row['text']} {error}") from error


def read_semantic_shapes(row: dict, labels: Labels, names: dict[str, int]) -> Segments:
    """Shapes painted in their order, as labelme's own export does. What no shape covers is `_background_` if there is
    such a class, else void; `__ignore__` is void."""
    classes = {name: labels.category_to_class[index] for name, index in names.items()}
    rest = classes.get(BACKGROUND, VOID)
    width, height = displayed_size(row["image"])
    map_ = np.full((height, width), rest, dtype=np.int32)
    for shape, mask, top, left in parts_of(row, height, width):
        place = map_[top : top + mask.shape[0], left : left + mask.shape[1]]
        place[mask] = VOID if shape["label"] == IGNORED else classes.get(shape["label"], rest)
    return Segments(torch.from_numpy(map_), {i: i for i in count_ids(map_) if i != VOID})


def read_object_shapes(row: dict, labels: Labels, names: dict[str, int]) -> Segments:
    """Shapes as objects; those of one label and `group_id` are one."""
    width, height = displayed_size(row["image"])
    objects: dict[object, ObjectMask] = {}
    for number, (shape, mask, top, left) in enumerate(parts_of(row, height, width)):
        if shape["label"] in (IGNORED, BACKGROUND):
            continue
        group = shape.get("group_id")
        key = number if group is None else (shape["label"], group)
        item = ObjectMask(mask, labels.category_to_class[names[shape["label"]]], top=top, left=left)
        objects[key] = objects[key].joined(item) if key in objects else item
    return from_objects(objects.values(), height, width)


def is_split(name: str) -> bool:
    """Whether a name is that of a split."""
    return bool(words_of(name) & ALL_SPLITS)


class Labelme(FolderLayout):
    """JSONs of labelme and their images, in one folder or in folders of splits. Class ids are those of the names in
    `labels.txt`, or else in alphabetical order."""

    name = "labelme (a JSON with shapes beside each image)"
    tasks = ("semantic", "instance")

    def annotations(self, folder: Path) -> list[Path]:
        """JSON files of labelme; others are left out."""
        return sorted(file for file in files_below(folder) if file.suffix == ".json" and is_labelme(file))

    def parts(self, folder: Path) -> dict[str, bool]:
        return {"*.json with shapes": any(file.suffix == ".json" and is_labelme(file) for file in files_below(folder))}

    def source(self, folder: Path, split: str, task: str) -> Path:
        parents = {file.parent.relative_to(folder) for file in self.annotations(folder)}
        of_splits = {folder / path for parent in parents for path in (parent, *parent.parents) if is_split(path.name)}
        if not of_splits:
            return folder
        return path_of_split(sorted(of_splits), split, f"{folder} must have one folder")

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        source, names = self.source(folder, split, task), set()
        files = self.annotations(folder)
        image_count = sum(
            file.suffix.lower() in IMAGE_SUFFIXES and source in file.parents for file in files_below(folder)
        )
        of_source = [file for file in files if source in file.parents]
        finder = FileFinder(folder, of_source[0]) if of_source else None
        if finder is not None:
            finder.of_split = frozenset(names_of_split(split)) if source != folder else frozenset()
        rows, ignored, boxes, problems = [], 0, 0, []
        named: dict[str, Path] = {}
        for file in files:
            content = read_json(file)
            shapes = content.get("shapes") if isinstance(content, dict) else None
            if not isinstance(shapes, list) or not all(
                isinstance(shape, dict)
                and isinstance(shape.get("label"), str)
                and isinstance(shape.get("points"), list)
                for shape in shapes
            ):
                raise ValueError(f"{file} has no list of shapes with label and points.")
            areas = [shape for shape in shapes if (shape.get("shape_type") or "polygon") in AREAS]
            names |= {shape["label"] for shape in areas}
            if finder is not None and source in file.parents:
                ignored += len(shapes) - len(areas)
                boxes += sum("rectangle" in str(shape.get("shape_type")) for shape in areas)
                stated = [content.get("imageHeight"), content.get("imageWidth")]
                size = {"size": stated if all(isinstance(side, int) for side in stated) else None}
                finder.file = file  # for messages
                try:
                    rows.append(row_of(file, text=file) | self.image_columns(file, content, finder) | size)
                except ValueError as error:
                    problems.append(str(error))
                    continue
                path = rows[-1]["image"]["path"]
                if path is not None and named.setdefault(path, file) != file:
                    raise ValueError(f"{named[path]} and {file} both name {path}; leave one of them.")
        if not rows:
            raise ValueError(problems[0] if problems else f"{source} has no JSON of labelme.")
        with_file = sum(row["image"]["path"] is not None for row in rows)
        warn_left_out(source, image_count, with_file)
        if ignored:
            logger.warning("%s: shapes without an area (points, lines) are ignored: %d.", source, ignored)
        if boxes:
            logger.warning("%s: rectangles are read as masks that fill them: %d.", source, boxes)
        given = folder / "labels.txt"
        listed = read_lines(given) if given.is_file() else sorted(names - {BACKGROUND})
        left_out = {IGNORED} if task == "semantic" else {IGNORED, BACKGROUND}
        listed = [name for name in listed if name not in left_out]
        if task == "semantic" and BACKGROUND not in listed:
            if given.is_file():
                logger.warning("%s has no %s, so what no shape covers is void.", given, BACKGROUND)
            else:
                listed = [BACKGROUND, *listed]
        unknown = names - {*listed, IGNORED, BACKGROUND}
        if unknown:
            raise ValueError(f"{given} has no label {min(unknown)!r}, which shapes have.")
        ids = {name: i for i, name in enumerate(listed)}
        categories = [{"id": i, "name": name, "isthing": 1, "by_name": True} for name, i in ids.items()]
        read = partial(read_semantic_shapes if task == "semantic" else read_object_shapes, names=ids)
        return FolderSplit(make_rows(rows, text=Value("string")), categories, read, problems=problems)

    def image_columns(self, file: Path, content: dict, finder: FileFinder) -> dict:
        """`image` and `file_name`: the file that `imagePath` names, or else the `imageData` in the JSON, or else a file
        of that name elsewhere.

        Raises:
            ValueError: there is neither.
        """
        name, data = plain(str(content.get("imagePath") or "")), content.get("imageData")
        beside = (file.parent / name, file.parent / PurePosixPath(name).name) if name else ()
        path = next((path for path in beside if path.is_file()), None)
        if path is None and name:
            with contextlib.suppress(ValueError) if data else contextlib.nullcontext():
                path = finder.find(f"{file.parent.relative_to(finder.root)}/{name}", is_map=False)
            path = path if path is not None and (path.parent == file.parent or not data) else None
        if path is not None and path.is_file() and (path.suffix.lower() in IMAGE_SUFFIXES or not data):
            return {"image": {"path": str(path), "bytes": None}, "file_name": path.name}
        if not isinstance(content.get("imageData"), str):
            raise ValueError(f"{file} refers to {name!r}, which does not exist, and has no imageData")
        try:
            data = base64.b64decode(content["imageData"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"{file} has imageData that is not base64") from error
        return {"image": {"bytes": data, "path": None}, "file_name": PurePosixPath(name).name or f"{file.stem}.png"}
