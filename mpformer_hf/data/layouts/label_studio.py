"""Label Studio: its own JSON of tasks, with brush masks."""

import base64
import re
import urllib.parse
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from ...model.label_maps import encode_rle
from ...utils.files import IMAGE_SUFFIXES, files_below, read_json
from .coco import tool_of
from .finding import FileFinder, plain
from .tools import NO_AREA, UNREADABLE, Collected, ToolLayout, ellipse, rectangle, turned, unreadable

UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files
SEVERAL = "tasks have several annotations; the ground truth is used, or else the first with regions"
MANY_LABELS = "regions have several labels, of which the first one is used"


class Bits:
    """Reads numbers of any number of bits from bytes.

    Args:
        values: bytes as numbers.
    """

    def __init__(self, values: list[int]):
        self.bits, self.at = np.unpackbits(np.array(values, dtype=np.uint8)), 0

    def read(self, size: int) -> int:
        part = self.bits[self.at : self.at + size]
        if len(part) < size:
            raise ValueError("the brush mask is truncated")
        self.at += size
        return int("".join(map(str, part.tolist())), 2)


def decode_brush(values: list[int], height: int, width: int) -> np.ndarray:
    """Mask of Label Studio's brush: RGBA values in runs; alpha is the mask.

    The header has the number of values (32 bits), the bits of a value - 1 (5), and the bits of the lengths of runs - 1
    (four of 4). A run begins with a bit that says whether its values are equal, and 2 bits that choose the bits of its
    length - 1.

    Returns:
        bool `[height, width]`.

    Raises:
        ValueError: it is of another size or truncated.
    """
    bits = Bits(values)
    number, word = bits.read(32), bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    if number != 4 * height * width:
        raise ValueError(f"the brush mask has {number} values, expected 4 x {height} x {width}")
    found, done = np.zeros(number, dtype=np.uint8), 0
    while done < number:
        equal, length = bits.read(1), bits.read(lengths[bits.read(2)]) + 1
        found[done : done + length] = bits.read(word) if equal else [bits.read(word) for _ in range(length)]
        done += length
    return found.reshape(height, width, 4)[..., 3] > 127


REGION = {"points", "rle", "radiusX", "width"}  # of the value of a result of Label Studio


def labels_of(result: dict) -> list[str]:
    """Labels of a result."""
    value = result.get("value") or {}
    return next((value[key] for key in value if key.endswith("labels") and value[key]), [])


def path_of(url: str) -> str:
    """Path of a file of a task: of a URL, perhaps signed, behind `?d=` of a local file, or in `fileuri=` of a proxy."""
    if "fileuri=" in url:  # the address in the storage, in base 64
        coded = url.partition("fileuri=")[2].partition("&")[0]
        url = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode(errors="replace")
    url, given, local = url.partition("?d=")
    plain_url = local if given else url.partition("?")[0] if "://" in url else url
    return urllib.parse.unquote(plain_url.partition("://")[2] or plain_url)


class LabelStudio(ToolLayout):
    """Label Studio's own JSON (an export of tasks): polygons, brushes, ellipses and rectangles. Of several annotations
    of a task that were not cancelled, the ground truth is used, or else the first that has regions."""

    name = "Label Studio (JSON of tasks)"
    needs = "a JSON of Label Studio"
    tool = "Label Studio"

    def files(self, folder: Path) -> list[Path]:
        return sorted(f for f in files_below(folder) if f.suffix == ".json" and tool_of(f) == self.tool)

    def collect(self, folder: Path, file: Path, split: str | None) -> Collected:
        content = read_json(file)
        tasks = content if isinstance(content, list) else []
        if not tasks or not all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tasks):
            raise ValueError(f"{file} is not an export of Label Studio: a list of tasks with data and annotations.")
        finder, collected = FileFinder(folder, file), Collected(file)
        for task in tasks:
            try:
                annotations = [row for row in task.get("annotations") or [] if not row.get("was_cancelled")]
                if not annotations:
                    collected.notes["tasks have no annotation and are left out"] += 1
                    continue
                collected.notes[SEVERAL] += len(annotations) > 1
                chosen = max(annotations, key=lambda row: (bool(row.get("ground_truth")), bool(row.get("result"))))
                results = chosen.get("result") or []
                sized = next((row for row in results if "original_width" in row), None)
                size = sized and (sized["original_height"], sized["original_width"])
                image = collected.add_image(self.file_name(task["data"], finder), size)
                real = self.size_of(finder, collected.images[image])
            except UNREADABLE as error:
                raise unreadable(file, f"task {task.get('id')}", error) from error
            try:
                labelled = {result.get("id") for result in results if labels_of(result)} - {None}
                self.check_size(real, collected.images[image])  # before brushes are decoded at the size that is stated
                count = Counter(result.get("id") for result in results if labels_of(result))
                added = set()
                for result in results:
                    region, labels = result.get("id"), labels_of(result)
                    if labels and real and region not in added:
                        collected.notes[MANY_LABELS] += len(labels) > 1 or (region is not None and count[region] > 1)
                        self.add(result, image, collected)
                        added |= {region} - {None}
                    elif not labels and REGION & set(result.get("value") or {}) and region not in labelled:
                        raise ValueError("a region has no label")
            except UNREADABLE as error:
                collected.mark_bad(image, error)
        return collected

    def file_name(self, data: dict, finder: FileFinder) -> str:
        """Path of the image of a task: the value `image`, or the only one that ends as an image. An upload may have got
        8 digits before its name, which the photo does not have."""
        paths = {key: path_of(str(value)) for key, value in data.items()}
        paths = {key: path for key, path in paths.items() if path.lower().endswith(IMAGE_SUFFIXES)}
        if "image" not in paths and len(paths) != 1:
            raise ValueError(f"data has {len(paths)} image files, and none is called image")
        path = paths.get("image") or next(iter(paths.values()))
        name = PurePosixPath(path).name
        if not path.lstrip("/").startswith("data/upload/"):
            return path.lstrip("/")
        return name if plain(name) in finder.below or not UPLOAD.match(name) else UPLOAD.sub("", name)

    def add(self, result: dict, image: int, collected: Collected) -> None:
        """Add an object. Coordinates are percents of the sides. A shape with separate labels has two results;
        that of the labels has everything."""
        value, labels = result["value"], labels_of(result)
        if "rle" in value:
            size = result["original_height"], result["original_width"]
            collected.add_object(image, labels[0], encode_rle(decode_brush(value["rle"], *size)))
            return
        sides = np.array([result["original_width"], result["original_height"]]) / 100
        if "points" in value:
            collected.add_object(image, labels[0], [(np.array(value["points"]) * sides).flatten().tolist()])
        elif "radiusX" in value or ("height" in value and "x" in value):
            names = ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
            numbers = (np.array([value[name] for name in names]).reshape(2, 2) * sides).flatten().tolist()
            make = ellipse if "radiusX" in value else rectangle
            polygon = turned(
                make(*numbers), value.get("rotation") or 0, *numbers[:2]
            )  # about the centre, or the corner
            collected.add_object(image, labels[0], [polygon], make is rectangle)
        else:
            collected.notes[NO_AREA] += 1
