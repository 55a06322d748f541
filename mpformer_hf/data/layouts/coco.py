"""COCO folders, also as LVIS, Roboflow and CVAT write them: a JSON of annotations, the images and, for panoptic labels,
PNG maps."""

import json
import logging
import re
from functools import partial
from pathlib import Path, PurePosixPath

from datasets import Value

from ...model.label_maps import count_ids
from ...utils.files import IMAGE_SUFFIXES, TABLE_SUFFIXES, file_start, files_below, read_json
from ..coco_checks import check_coco, check_coordinates, mark_bad_images
from ..completeness import LVIS, columns_of_images
from ..labels import Labels
from ..segments import VOID, Reader, Segments, merge_by_class
from ..split_names import ALL_SPLITS, names_of_split, words_of
from ..tables import read_objects, read_panoptic
from .finding import ROBOFLOW, FileFinder, plain, split_words
from .folder import FolderLayout, FolderSplit, make_rows, row_of, warn_left_out

logger = logging.getLogger(__name__)
SEGMENT = dict.fromkeys(("id", "category_id", "iscrowd"), Value("int64"))
OBJECT = ("category_id", "segmentation", "iscrowd", "area")
COCO = ("instances", "panoptic", "person_keypoints", "captions", "stuff", "image_info")


def annotation_files(folder: Path) -> list[Path]:
    """JSON files other than those of class names, in a folder and in folders of it, also below `annotations`."""
    others = ("id2label.json", "panoptic_categories.json")
    files = [file for file in files_below(folder) if file.suffix == ".json" and file.name not in others]
    places = {file: file.relative_to(folder).parts for file in files}
    return sorted(file for file, parts in places.items() if len(parts) - ("annotations" in parts[:-1]) <= 2)


LABELME = re.compile(r'"shapes"\s*:\s*\[|"imagePath"\s*:|"imageData"\s*:')
COCO_KEYS = re.compile(r'"(images|categories)"\s*:\s*\[')  # Label Studio has annotations too


def is_labelme(file: Path) -> bool:
    """Whether a JSON is of labelme. A file of COCO, which may be large, is not parsed."""
    start = file_start(file)
    return bool(LABELME.search(start)) and not COCO_KEYS.search(start)


def may_be_coco(file: Path) -> bool:
    """Whether a JSON may be of COCO. A short one has its keys, or is empty; a long one is of no other known tool."""
    start = file_start(file)
    return (
        file.is_file()
        and tool_of(file) is None
        and (len(start) >= 1 << 14 or '"annotations"' in start or '"images"' in start or len(start) < 3)
    )


def choose_annotations(folder: Path, files: list[Path], split: str, task: str) -> list[Path]:
    """The JSON files of a task and split: those whose names contain the split's name, or no split's name. Of several,
    the one that is named as in COCO (`instances_*`, `panoptic_*`). Instances may also be read from panoptic
    annotations.

    Raises:
        ValueError: there is none.
    """
    names = names_of_split(split)
    of_split = [file for file in files if (split_words(file, folder) or words_of(file.stem)) & names]
    if not of_split and names & ALL_SPLITS:  # files for all splits
        of_split = [file for file in files if not split_words(file, folder)]
    instances, panoptic = ([f for f in of_split if f.stem.startswith(kind)] for kind in ("instances", "panoptic"))
    other = [file for file in of_split if not file.stem.startswith(COCO)]
    objects = instances or other
    candidates = {"panoptic": panoptic or other, "instance": objects or panoptic, "semantic": panoptic or objects}[task]
    if not candidates:
        found = ", ".join(str(file.relative_to(folder)) for file in files[:5]) + ", ..." * (len(files) > 5)
        raise ValueError(f"{folder} must have a JSON of {task} annotations for split {split!r}; it has {found}.")
    return candidates


def renumbered(ids, new: dict[int, int]):
    """A list of category ids with those of merged files; what is no id of a category becomes a text, to be noticed."""
    if not isinstance(ids, list):
        return ids
    return [new.get(i, f"id {i}") if isinstance(i, int) and not isinstance(i, bool) else i for i in ids]


def merge_contents(contents: list[dict], files: list[Path]) -> dict:
    """Annotations of several files as of one; categories are joined by name, in alphabetical order.

    Raises:
        ValueError: two files have an image of one name, or annotations are panoptic.
    """
    if len(contents) == 1:
        return contents[0]
    names = sorted({row["name"] for content in contents for row in content["categories"]})
    things = {row["name"]: row["isthing"] for content in contents for row in content["categories"] if "isthing" in row}
    ids = {name: i for i, name in enumerate(names)}
    merged: dict = {"images": [], "annotations": []}
    merged["categories"] = [
        {"id": i, "name": name, "by_name": True} | ({"isthing": things[name]} if things else {})
        for name, i in ids.items()
    ]
    seen: dict[str, Path] = {}
    for content, file in zip(contents, files, strict=True):
        own = {row["id"]: ids[row["name"]] for row in content["categories"]}
        images = {}
        for row in content["images"]:
            if row["file_name"] in seen:
                both = f"{seen[row['file_name']]} and {file}"
                raise ValueError(f"{both} both have the image {row['file_name']}; remove one of the files.")
            seen[row["file_name"]] = file
            images[row["id"]] = len(merged["images"])
            classes = {key: renumbered(row[key], own) for key in (*LVIS, "annotated_classes") if key in row}
            merged["images"].append({**row, **classes, "id": images[row["id"]]})
        for row in content["annotations"]:
            if "segments_info" in row:
                raise ValueError(f"{file} is one of several panoptic JSONs of a split; there must be one.")
            new = {"image_id": images[row["image_id"]], "category_id": own[row["category_id"]]}
            merged["annotations"].append({**row, **new, "id": len(merged["annotations"])})
    return merged | ({"of_split": True} if all(content.get("of_split") for content in contents) else {})


def read_coco_json(file: Path, masks_required: bool = True, mark_bad: bool = False) -> dict:
    """Content of a JSON of annotations, checked. Images of LVIS, which have a `coco_url` only, get a `file_name`.

    Args:
        file: the JSON.
        masks_required: whether an annotation must have a mask, or may have a box only.
        mark_bad: mark images that have invalid annotations, see `mark_bad_images`, instead of raising an error.

    Raises:
        ValueError: it cannot be read or is invalid.
    """
    content = read_json(file)
    if file.name == ROBOFLOW:
        leave_out_parents(content, file)
    images = content.get("images") if isinstance(content, dict) else None
    for image in images if isinstance(images, list) else []:
        if isinstance(image, dict) and "file_name" not in image and isinstance(image.get("coco_url"), str):
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    if mark_bad:
        mark_bad_images(content, file)
    else:
        check_coco(content, file, masks_required)
    check_coordinates(content, file)
    if not content["images"]:
        raise ValueError(f"{file} has no images.")
    return content


def take_bad_images(content: dict, file: Path) -> list[str]:
    """Remove the images that `mark_bad_images` marked; returns a sentence for each."""
    bad = [image for image in content["images"] if "problem" in image]
    content["images"] = [image for image in content["images"] if "problem" not in image]
    return [f"{image['file_name']} in {file.name}: {image['problem']}" for image in bad]


def check_crowds(annotations: list[dict], file: Path, task: str) -> None:
    """Say how many objects are not trained on. In semantic segmentation, crowds are as good as other objects.

    Raises:
        ValueError: all are crowds, or there are none.
    """
    if not annotations:
        raise ValueError(f"{file} has no annotations.")
    if task == "semantic":
        return
    crowds = sum(bool(row.get("iscrowd")) for row in annotations)
    text = f"{file}: {crowds} of {len(annotations)} objects are crowds (iscrowd 1), which are not trained on"
    hint = "; CVAT writes masks of its brush so: export polygons, or set iscrowd to 0"
    if crowds == len(annotations):
        raise ValueError(f"{text}{hint}.")
    if crowds:
        logger.warning("%s%s.", text, hint if 2 * crowds > len(annotations) else "")


def panoptic_columns(annotation: dict, map_: Path) -> dict:
    """`label` and `segments_info` of a panoptic annotation."""
    segments = [{key: int(info.get(key, 0)) for key in SEGMENT} for info in annotation["segments_info"]]
    return {"label": str(map_), "segments_info": segments}


def make_panoptic_rows(rows: list[dict]):
    """Rows with `panoptic_columns`."""
    return make_rows(rows, segments_info=[SEGMENT])


def read_panoptic_split(
    layout: FolderLayout, file: Path, maps: Path, images: list[Path], categories: list[dict] | None, extra: str = ""
) -> FolderSplit:
    """Rows of a panoptic JSON, whose images are found by their names without suffix and without `extra`.

    Raises:
        ValueError: an image is missing.
    """
    content, found = read_coco_json(file), {path.stem: path for path in images}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    rows = []
    for annotation in content["annotations"]:
        name = names[annotation["image_id"]]
        path = found.get(Path(name).stem.replace(extra, ""))
        if path is None:
            raise ValueError(f"{file} refers to {name}, which has no image.")
        columns = panoptic_columns(annotation, maps / annotation["file_name"])
        rows.append(row_of(path) | {"image_id": annotation["image_id"]} | columns)
    warn_left_out(file, len(found), len(rows))
    categories, description = categories or content["categories"], f"{layout.name}, {file.name}"
    return FolderSplit(make_panoptic_rows(rows), categories, read_panoptic, description=description)


def leave_out_parents(content, file: Path) -> None:
    """Remove the category of Roboflow's exports that is the `supercategory` of all others and has no annotation in any
    split. What is invalid is left for the check."""
    rows = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return
    top = [row for row in rows if row.get("supercategory") == "none"]
    parents = [
        row for row in top if any(other is not row and other.get("supercategory") == row.get("name") for other in rows)
    ]
    if not parents:
        return
    used = set()
    for other in file.parent.parent.glob(f"*/{ROBOFLOW}"):
        annotations = (content if other == file else read_json(other)).get("annotations")
        used |= {row.get("category_id") for row in annotations or () if isinstance(row, dict)}
    left_out = [row for row in parents if row.get("id") not in used]
    if left_out:
        logger.info("%s: %s has no annotation and is left out.", file, ", ".join(str(row["name"]) for row in left_out))
    content["categories"] = [row for row in rows if row not in left_out]


def keep_split(content: dict, split: str) -> None:
    """Keep the images of a split, and say so as `of_split`, if all images are in folders of splits, of several ones."""
    groups = [words_of(str(PurePosixPath(plain(row["file_name"])).parent)) & ALL_SPLITS for row in content["images"]]
    if not all(groups) or len(set(map(frozenset, groups))) < 2:
        return
    pairs = zip(content["images"], groups, strict=True)
    total = len(content["images"])
    content["images"] = [row for row, words in pairs if words & names_of_split(split)]
    text = "%d of %d images are in folders whose names have the word of split %s."
    logger.info(text, len(content["images"]), total, split)
    kept = {row["id"] for row in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    content["of_split"] = True
    if not kept:
        raise ValueError(f"No image is in a folder of split {split!r}.")


SIGNATURES = {  # texts at the beginning of JSON files of annotation tools that are not COCO
    "VGG Image Annotator": ('"_via_', '"regions"'),
    "VIA 3": ('"vid_list"',),
    "Datumaro": ('"dm_format_version"',),
    "VoTT": ('"securityToken"', '"visitedAssetNames"'),
    "Encord": ('"label_hash"',),
    "Kili": ('"jsonResponse"',),
    "Label Studio": ('"completed_by"', '"from_name"', '"brushlabels"', '"polygonlabels"'),
    "SuperAnnotate": ('"pixelClassification"', '"isClosed"', '"annotatorEmail"'),
    "Darwin V7": ("darwin-json", '"source_files"'),
    "ISAT": ('"description": "ISAT"',),
    "SA-1B": ('"file_name": "sa_',),
    "Supervisely": ('"projectType"', '"classTitle"'),
    "Hasty": ('"label_classes"',),
    "Segments.ai": ('"task_type": "segmentation', '"segmentation_bitmap_file"'),
    "Scale": ('"callback_url"',),
    "Labelbox": ('"Labeled Data"', '"data_row"'),
    "GeoJSON": ('"FeatureCollection"',),
    "CreateML": ('"coordinates": {', '"coordinates":{'),
}


def tool_of(file: Path) -> str | None:
    """Name of the annotation tool whose own JSON a file is; None if it may be COCO's."""
    start = file_start(file)
    if COCO_KEYS.search(start) and not start.lstrip("\ufeff \r\n\t").startswith("["):
        return None
    return next((tool for tool, texts in SIGNATURES.items() if any(text in start for text in texts)), None)


BACKGROUND, IMAGES = "background", "images"


def is_background(category: dict) -> bool:
    """Whether a category is what no object covers."""
    return category["name"].strip("_").lower() == BACKGROUND


def add_background(categories: list[dict]) -> list[dict]:
    """Categories of a semantic map that is painted from objects: what no object covers is of the class background."""
    if any(map(is_background, categories)):
        return categories
    ids = {row["id"] for row in categories}
    logger.info("What no object covers is a class of its own, %s.", BACKGROUND)
    return [{"id": 0 if 0 not in ids else max(ids) + 1, "name": BACKGROUND}, *categories]


def read_merged(row: dict, labels: Labels) -> Segments:
    """Panoptic segments as the classes of a semantic map."""
    return merge_by_class(read_panoptic(row, labels))


def read_painted(row: dict, labels: Labels, background: int) -> Segments:
    """Objects painted in their order on the background, which is void where labels are incomplete."""
    painted = merge_by_class(read_objects(row, labels))
    label = labels.category_to_class[background]
    if row.get("annotated_classes") is None and row.get("complete") in (None, True):
        painted.map[painted.map == VOID] = label  # else it may be an object without label
    return Segments(painted.map, {i: i for i in count_ids(painted.map) if i != VOID})


class Coco(FolderLayout):
    """JSONs of a task and split; RLE, polygons or panoptic PNG maps."""

    name = "COCO (JSON with images, annotations and categories)"
    needs = "*.json, annotations/*.json or */_annotations.coco.json"

    def parts(self, folder: Path) -> dict[str, bool]:
        # archives (the downloads), logs and tables are allowed beside images
        suffixes = {file.suffix.lower() for file in files_below(folder)}
        images = suffixes.isdisjoint(TABLE_SUFFIXES) or not suffixes.isdisjoint(IMAGE_SUFFIXES)
        return {self.needs: bool(self.files(folder)), IMAGES: images}

    def files(self, folder: Path) -> list[Path]:
        """Files of annotations of this layout."""
        return [file for file in annotation_files(folder) if not is_labelme(file) and may_be_coco(file)]

    def load(self, folder: Path, files: list[Path], split: str) -> list[dict]:
        """Content of each file, in the form of COCO's JSON."""
        return [read_coco_json(file, mark_bad=True) for file in files]

    def load_all(self, folder: Path, files: list[Path], split: str) -> dict:
        """Content of the files of a split. Of files for all splits, the images in folders of the split, if all images
        are in folders of splits."""
        content = merge_contents(self.load(folder, files, split), files)
        if not any(split_words(file, folder) for file in files):
            keep_split(content, split)
        return content

    def source(self, folder: Path, split: str, task: str) -> Path:
        files = choose_annotations(folder, self.files(folder), split, task)
        content = {} if any(split_words(file, folder) for file in files) else self.load_all(folder, files, split)
        place = files[0] if len(files) == 1 else files[0].parent
        return place / split if content.get("of_split") else place

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        """`file_name`s may be paths from the folder, from any folder below it, or names alone."""
        files = choose_annotations(folder, self.files(folder), split, task)
        content = self.load_all(folder, files, split)
        file = files[0]
        problems = take_bad_images(content, file)
        completeness = columns_of_images(content["images"], content["annotations"], content["categories"], file)
        finder = FileFinder(folder, file)

        images: dict = {}  # columns by id
        places: dict[str, str] = {}
        for image in content["images"]:
            path = str(finder.find(image["file_name"], is_map=False))
            if path in places:
                both = f"{places[path]} and {image['file_name']}"
                raise ValueError(f"{file} names {both}, but only {path} was found for both.")
            places[path] = image["file_name"]
            stated = [image.get("height"), image.get("width")]  # compared with the size of the file
            named = {"image": path, "size": None if None in stated else stated, "image_id": image["id"]}
            images[image["id"]] = named | {"file_name": image["file_name"]} | completeness[image["id"]]
        panoptic = any("segments_info" in row for row in content["annotations"])
        if task == "panoptic" and not panoptic:
            raise ValueError(f"{file} has no panoptic annotations; give --task instance, or semantic.")
        if panoptic:
            warn_left_out(file, len(images), len({row["image_id"] for row in content["annotations"]}))
            rows = make_panoptic_rows(
                [
                    images[row["image_id"]] | panoptic_columns(row, finder.find(row["file_name"], is_map=True))
                    for row in content["annotations"]
                ]
            )
        else:
            check_crowds(content["annotations"], file, task)
            objects: dict[int, list] = {key: [] for key in images}
            for row in content["annotations"]:
                objects[row["image_id"]].append({key: row[key] for key in OBJECT if row.get(key) is not None})
            rows = [{**columns, "objects": json.dumps(objects[key])} for key, columns in images.items()]
            rows = make_rows(rows, objects=Value("string"))
        painted = task == "semantic" and not panoptic
        categories = add_background(content["categories"]) if painted else content["categories"]
        read: Reader = read_panoptic if panoptic else read_objects
        if painted:
            background = next(row["id"] for row in categories if is_background(row))
            read = partial(read_painted, background=background)
        elif task == "semantic":
            read = read_merged
        kind = "panoptic id map with segments_info" if panoptic else f"{self.name.split(' (')[0]} objects"
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        return FolderSplit(rows, categories, read, description=f"{kind}, {file.name}{more}", problems=problems)
