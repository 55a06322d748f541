"""VGG Image Annotator: JSONs or CSVs of regions."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...utils.files import file_start, files_below, read_json, read_text
from .coco import tool_of
from .tools import NO_AREA, UNREADABLE, Collected, ToolLayout, ellipse, rectangle, unreadable

CLASS_ATTRIBUTES = ("class", "label", "category")  # of VIA, where regions have several; the first that is there
OTHER_CLASS_ATTRIBUTES = ("type", "name")  # if only one of them is there
CSV_START = "filename,file_size,file_attributes,region_count,"


class Via(ToolLayout):
    """`via_region_data.json`, the same as CSV, or a project of VIA 1 and 2. Classes are the values of one attribute of
    the regions: the only one, or the one that is called class, label or category, or else type or name."""

    name = "VIA (VGG Image Annotator, via_region_data.json)"
    needs = "a JSON or CSV of VIA"
    tool = "VGG Image Annotator"

    def files(self, folder: Path) -> list[Path]:
        files = list(files_below(folder))
        jsons = [file for file in files if file.suffix == ".json" and tool_of(file) == self.tool]
        tables = [f for f in files if f.suffix == ".csv" and file_start(f).lstrip("#\ufeff").startswith(CSV_START)]
        return sorted(jsons + tables)

    def regions(self, file: Path) -> tuple[dict, list[tuple[str, list[dict]]]]:
        """Content of a file, and the file name and the regions of each of its images.

        Raises:
            ValueError: it is not of VIA.
        """
        content = read_csv(file) if file.suffix == ".csv" else read_json(file)
        metadata = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
        rows = list(metadata.values()) if isinstance(metadata, dict) else []
        if not all(isinstance(row, dict) and isinstance(row.get("filename"), str) for row in rows):
            raise ValueError(f"{file} is not of VIA: its images must be mappings with filename and regions.")
        try:
            return content, [(row["filename"], list(regions_of(row))) for row in rows]
        except UNREADABLE as error:
            raise unreadable(file, "a region", error) from error

    def collect(self, folder: Path, file: Path, split: str | None) -> Collected:
        content, images = self.regions(file)
        collected, attribute = Collected(file), self.class_attribute(folder)
        options = (content.get("_via_attributes") or {}).get("region") or {}
        names = (options.get(attribute) or {}).get("options") or {}
        for file_name, found in images:
            image = collected.add_image(file_name)
            try:
                for region in found:
                    shape, polygon = region["shape_attributes"], via_polygon(region["shape_attributes"])
                    if polygon is None:
                        collected.notes[NO_AREA] += 1
                        continue
                    collected.add_object(image, label_of(region, attribute, names), [polygon], shape["name"] == "rect")
            except UNREADABLE as error:
                collected.mark_bad(image, error)
        return collected

    def class_attribute(self, folder: Path) -> str | None:
        """Name of the attribute that has the classes in all files of a folder; None if regions have none.

        Raises:
            ValueError: there are several attributes, and none or several are named as a class.
        """
        found = [region for file in self.files(folder) for _, regions in self.regions(file)[1] for region in regions]
        attributes = [region.get("region_attributes") for region in found if isinstance(region, dict)]
        keys = list(dict.fromkeys(key for values in attributes if isinstance(values, dict) for key in values))
        named = [key for name in CLASS_ATTRIBUTES for key in keys if key.lower() == name] or [
            key for key in keys if key.lower() in OTHER_CLASS_ATTRIBUTES
        ]
        if len(keys) > 1 and (not named or (len(named) > 1 and named[0].lower() not in CLASS_ATTRIBUTES)):
            raise ValueError(f"{folder} has the attributes {', '.join(keys)}; name the one of the classes `class`.")
        return (named or keys or [None])[0]


def read_csv(file: Path) -> dict:
    """A CSV, which has a row for each region, in the form of the JSON.

    Raises:
        ValueError: it cannot be read.
    """
    images: dict[str, dict] = {}
    try:
        for row in csv.DictReader(io.StringIO(read_text(file).lstrip("#\ufeff"))):
            image = images.setdefault(row["filename"], {"filename": row["filename"], "regions": []})
            shape, attributes = (json.loads(row[f"region_{key}attributes"] or "{}") for key in ("shape_", ""))
            if shape:  # an image without regions has a row too
                image["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    except (*UNREADABLE, csv.Error) as error:
        raise unreadable(file, "a row", error) from error
    return images


def regions_of(row: dict) -> Iterable[dict]:
    """Regions of an image: a list, or in version 1 a mapping."""
    regions = row.get("regions") or []
    return regions.values() if isinstance(regions, dict) else regions


def label_of(region: dict, attribute: str | None, names: dict) -> str:
    """Class of a region.

    Raises:
        ValueError: it has none, though others have.
    """
    if attribute is None:
        return "object"
    value = (region.get("region_attributes") or {}).get(attribute)
    single = [] if value in (None, "") else [value]
    chosen = [key for key, on in value.items() if on] if isinstance(value, dict) else single
    if not chosen:
        raise ValueError(f"a region has no value of the attribute {attribute}")
    return " ".join(str(names.get(str(key)) or key) for key in chosen)


def via_polygon(shape: dict) -> list[float] | None:
    """Polygon of a region; None if it has no area."""
    kind = shape["name"]
    if kind in ("polygon", "polyline"):
        points = np.stack((shape["all_points_x"], shape["all_points_y"]), 1).astype(float)
        closed = len(points) > 3 and (points[0] == points[-1]).all()
        return points.flatten().tolist() if kind == "polygon" or closed else None
    if kind == "rect":
        return rectangle(shape["x"], shape["y"], shape["width"], shape["height"])
    if kind == "circle":
        return ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])
    if kind == "ellipse":
        return ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"], shape.get("theta") or 0.0)
    return None
