"""Tables of classes that lie beside label images: names and colours, or names and values."""

import csv
from pathlib import Path

import numpy as np
import torch

from ..labels import Labels
from ..segments import Segments
from .folder import read_lines

COLORS = ("labelmap.txt", "class_dict.csv", "label_colors.txt")  # of CVAT; name, r, g, b; r g b name
VALUES = ("_classes.csv", "class_names.txt", "labels.txt", "classes.txt")  # of Roboflow; labelme2voc; a name a line


def find_table(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of several files that lies in a folder, or else in folders of it.

    Raises:
        ValueError: those in folders of it differ.
    """
    own = [folder / name for name in names if (folder / name).is_file()]
    below = [file for name in names for file in sorted(folder.glob(f"*/{name}"))]
    other = next(
        (file for file in below if file.name == below[0].name and read_lines(file) != read_lines(below[0])), None
    )
    if other is not None and not own:
        raise ValueError(
            f"{below[0]} and {other} differ: one table must be right for all splits; put it into {folder}."
        )
    return next(iter(own or below), None)


def read_values(file: Path) -> list[dict]:
    """Categories of a table of names by value of the label images. labelme's `__ignore__` has no value.

    Raises:
        ValueError: a line of `_classes.csv` is not a number and a name.
    """
    if file.name != "_classes.csv":
        names = [name for name in read_lines(file) if name != "__ignore__"]
        return [{"id": i, "name": name, "isthing": int(i > 0)} for i, name in enumerate(names)]
    rows = [[cell.strip() for cell in row] for row in csv.reader(read_lines(file)) if row]
    wrong = next((row for row in rows[1:] if len(row) != 2 or not row[0].isdecimal()), None)
    if wrong or len(rows) < 2:
        raise ValueError(f"{file} has the line {wrong}, expected a value and a name after a line of titles.")
    return [{"id": int(value), "name": name, "isthing": int(name != "background")} for value, name in rows[1:]]


def read_colors(file: Path) -> list[dict]:
    """Categories of a table of colours. Ids are R + 256 G + 65536 B.

    Args:
        file: `labelmap.txt` of CVAT and Datumaro (`name:red,green,blue:...`; without a colour that of Pascal VOC),
            CamVid's `label_colors.txt` (`red green blue name`), or a csv of `name,r,g,b`, perhaps with titles.

    Raises:
        ValueError: a line has no colour.
    """
    lines = [line for line in read_lines(file) if not line.startswith("#")]
    if file.name == "label_colors.txt":
        rows = [[*words[3:], *words[:3]] for words in (line.split(maxsplit=3) for line in lines)]
    elif file.suffix == ".txt":
        pairs = [f"{line}::".split(":")[:2] for line in lines]
        colors = [color.split(",") if color else map(str, voc_color(i)) for i, (_, color) in enumerate(pairs)]
        rows = [[name, *color] for (name, _), color in zip(pairs, colors, strict=True)]
    else:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
        rows = rows if rows and is_color_row(rows[0]) else rows[1:]  # without the line of titles
    categories = []
    for row, line in zip(rows, lines[len(lines) - len(rows) :], strict=True):
        if not is_color_row(row):
            forms = {"labelmap.txt": "name:red,green,blue", "label_colors.txt": "red green blue name"}
            form = forms.get(file.name, "name,red,green,blue")
            raise ValueError(f"{file} has the line {line!r}, expected {form}.")
        red, green, blue = (int(value) for value in row[1:4])
        code, name = red + 256 * green + 65536 * blue, row[0].strip()
        thing = int(name != "background")
        color = (red, green, blue)
        categories.append({"id": code, "name": name, "isthing": thing, "color": color, "by_name": True})
    return categories


def voc_color(label_id: int) -> tuple[int, int, int]:
    """RGB of a class in Pascal VOC's palette: bits 0, 3, 6 of the id are the highest bits of red, from the highest on;
    bits 1, 4, 7 those of green, and bits 2, 5 those of blue."""
    red, green, blue = (
        sum((label_id >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
    )
    return red, green, blue


def is_color_row(row: list[str]) -> bool:
    """Whether a row is a name and three numbers from 0 to 255."""
    return len(row) >= 4 and all(value.strip().isdecimal() and int(value) < 256 for value in row[1:4])


def codes_of(image) -> np.ndarray:
    """Colours of an image, which may have a palette, as R + 256 G + 65536 B, int32 `[H, W]`."""
    values = np.array(image.convert("RGB")).astype(np.int32)
    return values[..., 0] + 256 * values[..., 1] + 65536 * values[..., 2]


def read_colored(row: dict, labels: Labels) -> Segments:
    """Label images whose colours are those of a table; black is void, unless it is in the table."""
    codes = codes_of(row["label"])
    present = set(np.unique(codes).tolist()) - ({0} - set(labels.category_to_class))
    unknown = sorted(present - set(labels.category_to_class) - set(labels.ignored_categories))
    if unknown:
        raise ValueError(f"label has the colour {rgb_of(unknown[0])}, which the table of colours does not have")
    classes = {code: labels.category_to_class[code] for code in present & set(labels.category_to_class)}
    return Segments(torch.from_numpy(codes), classes)


def rgb_of(code: int) -> tuple[int, int, int]:
    """Red, green and blue of a code."""
    return code & 255, code >> 8 & 255, code >> 16
