"""All folder layouts, and which one a folder has."""

import re
from pathlib import Path

from ...utils.files import TABLE_SUFFIXES, file_start, files_below
from .ade20k import Ade20k
from .cityscapes import Cityscapes
from .coco import IMAGES, Coco, annotation_files, tool_of
from .coco_stuff import CocoStuff
from .cvat import CvatXml
from .folder import FolderLayout
from .label_studio import LabelStudio
from .labelme import Labelme
from .mapillary import Mapillary
from .mask_images import InstanceFiles, InstanceMaps, MaskFiles, MaskImages, SplitPairs
from .nuinsseg import NuInsSeg
from .pascal_voc import PascalVoc
from .via import Via
from .yolo import Yolo

FILES = {  # patterns of names of files of tools
    r".*___(objects\.json|fuse\.png)": "SuperAnnotate",
    r".*\.ndjson": "Labelbox",
    r".*\.geojson": "QuPath",
    r".*_seg\.npy": "Cellpose",
    r"task-\d+-annotation-\d+-.*\.(png|npy)": "Label Studio",  # its brushes
}
LAYOUTS: tuple[FolderLayout, ...] = (  # the first that fits is taken: the particular ones first
    Cityscapes(),
    Ade20k(),
    Mapillary(),
    NuInsSeg(),
    PascalVoc(),
    CocoStuff(),
    Yolo(),
    Labelme(),
    Via(),
    LabelStudio(),
    CvatXml(),
    Coco(),
    InstanceFiles(),
    InstanceMaps(),
    MaskFiles(),
    SplitPairs(),
    MaskImages(),
)


def find_layout(name: str, task: str) -> FolderLayout | None:
    """Layout of a local folder for a task; None for datasets of the Hub and folders in the Hub's layout.

    Raises:
        ValueError: the folder is of no layout, or its layout is not for the task.
    """
    folder = Path(name)
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ValueError(f"{name} is a file, expected a folder.")
    files = list(files_below(folder))
    if any(file.suffix in (".parquet", ".arrow") for file in files):
        return None
    other = None
    for layout in LAYOUTS:
        if (other is None or task in layout.tasks) and all(layout.parts(folder).values()):
            if task in layout.tasks:
                return layout
            other = layout
    if any(file.suffix in TABLE_SUFFIXES for file in files):
        return None
    if other is not None:
        are_maps = isinstance(other, MaskImages) and task == "instance"
        hint = "; maps of instance ids must be in instances/" if are_maps else ""
        tasks = " and ".join(other.tasks)
        raise ValueError(f"{name} is {other.name}, which is for task {tasks}, not for task {task}{hint}.")
    tools = {tool for file in annotation_files(folder) if (tool := tool_of(file))}
    tools |= {tool for pattern, tool in FILES.items() if any(re.fullmatch(pattern, file.name) for file in files)}
    if any(file.suffix == ".xml" and "<bndbox>" in file_start(file) for file in files):
        remedy = "convert them to COCO JSON, and make masks of them with mpformer refine"
        raise ValueError(f"{name} has boxes in XML files of Pascal VOC: {remedy}.")
    if tools:
        text = "is written by {}, whose files of this kind are not read: export COCO JSON, YOLO or label images."
        raise ValueError(f"{name} {text.format(' or '.join(sorted(tools)))}")
    raise ValueError(f"{name} is not a dataset: {describe_nearest(folder)}")


def describe_nearest(folder: Path) -> str:
    """All layouts, and what is missing for the one with the most parts."""
    present = {layout: layout.parts(folder) for layout in LAYOUTS}
    present = {layout: {p: there for p, there in parts.items() if p != IMAGES} for layout, parts in present.items()}
    layouts = ", ".join(layout.name for layout in LAYOUTS)
    nearest = max(present, key=lambda layout: sum(present[layout].values()) / len(present[layout]))
    text = f"it has no file of type {', '.join(TABLE_SUFFIXES)} and fits no layout of {layouts}."
    if any(present[nearest].values()):
        missing = " and ".join(part for part, there in present[nearest].items() if not there)
        text += f" The nearest is {nearest.name}, for which {missing} is missing."
    return text
