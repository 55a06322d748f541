"""Tables of the Hub and of local folders, as `datasets` loads them."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PureWindowsPath

import yaml
from datasets import Dataset, Image, Value, load_dataset
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..utils.files import IMAGE_SUFFIXES, check_inside, files_below, read_text
from ..utils.hub_errors import reason_of
from .arguments import MEMORY, DataArguments
from .dataset import roots_of, without_decoding
from .memory import find_split
from .segments import COMPLETENESS

CARDS = ("README.md", ".huggingface.yaml")  # whose YAML `datasets` reads
IMAGE_COLUMNS = ("image", "pixel_values")
LABEL_COLUMNS = ("label", "annotation", "segmentation", "semantic_segmentation")
OTHER_COLUMNS = ("segments_info", "semantic_class_to_id", "image_id", "file_name", *COMPLETENESS)
WEBDATASET = {  # columns of tar files, which are endings of file names; the first one of each row is used
    "image_id": ("__key__",),
    "label": ("label.png", "mask.png", "label.tif", "png"),
    "image": ("jpg", "jpeg", "webp", "image.jpg", "image.png", "png"),
    "segments_info": ("segments_info.json",),
    "objects": ("objects.json",),
}


def load_split(args: DataArguments, split: str) -> tuple[Dataset, str]:
    """Load a split of a table with `datasets`; returns it and the name of its image column.

    Raises:
        ValueError: the dataset, the split or the image column does not exist.
    """
    if args.dataset_name.startswith((".", "/", "~")) and not Path(args.dataset_name).exists():
        raise ValueError(f"Folder {args.dataset_name} does not exist.")
    if args.dataset_name.startswith(MEMORY):
        rows = find_split(args.dataset_name, split)
        return rows, args.image_column or first_column(IMAGE_COLUMNS, rows, args.dataset_name)
    if Path(args.dataset_name).is_dir():
        check_tables(Path(args.dataset_name), roots_of(args))
    try:
        rows = load_dataset(args.dataset_name, args.dataset_config_name, split=split, streaming=args.streaming)
    except (ValueError, FileNotFoundError, PermissionError, ConnectionError, DatasetGenerationError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        reason = reason_of(cause)
        reason += "" if Path(args.dataset_name).exists() else "; there is no local file or folder of this name either"
        if isinstance(error, OSError) and str(HF_DATASETS_CACHE).startswith(str(error.filename)):
            reason = f"its cache {HF_DATASETS_CACHE} cannot be written: set HF_HOME to a folder that can"
        raise ValueError(f"Cannot load split {split!r} of {args.dataset_name}: {reason}") from error
    if "__key__" in rows.column_names:
        # a stream that is decoded before it is renamed is encoded again, as JPEG
        rows = without_decoding(rows).rename_columns(webdataset_names(rows.column_names))
    image_column = args.image_column or first_column(IMAGE_COLUMNS, rows, args.dataset_name)
    if Path(args.dataset_name).is_dir():
        rows = read_paths(rows, args.dataset_name, {image_column, args.label_column, *LABEL_COLUMNS})
    return rows, image_column


def check_tables(folder: Path, roots: tuple[str, ...] | None) -> None:
    """Check what `datasets` will read of a local folder: its files, and the YAML in its card that names them.

    Raises:
        ValueError: a file is a link that leads out of the dataset, or the card names files outside of it or has
            aliases, which may have no end.
    """
    for file in files_below(folder):
        check_inside(file, roots)
    for name in CARDS:
        file = folder / name
        if not file.is_file():
            continue
        check_inside(file, roots)
        text = read_text(file)
        if name == "README.md":
            head = REGEX_YAML_BLOCK.search(text)
            text = head[2] if head else ""
        try:
            aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
            named = [] if aliases else list(named_files(yaml.safe_load(text)))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"The YAML of {file} cannot be read: {' '.join(str(error).split())[:200]}.") from error
        if aliases:
            raise ValueError(f"The YAML of {file} has aliases, which are not read.")
        paths = {name: PureWindowsPath(name) for name in named}  # which knows the paths of both systems
        outside = [v for v, path in paths.items() if v.startswith(("/", "~")) or path.drive or ".." in path.parts]
        outside += [v for v in named if "::" in v or "://" in v]
        if outside and roots is not None:
            hint = "--allow_outside_files reads such files"
            raise ValueError(f"{file} names {outside[0]}, outside of the dataset; {hint}.")


def named_files(content, named: bool = False) -> Iterator[str]:
    """Texts in the YAML of a card that name files: all below `data_files` and `data_dir`."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from named_files(value, named or key in ("data_files", "data_dir"))
    elif isinstance(content, list):
        for value in content:
            yield from named_files(value, named)
    elif named and isinstance(content, str):
        yield content


def read_paths(rows: Dataset, folder: str, columns: set[str | None]) -> Dataset:
    """A table of a local folder. Those of its `columns` that hold paths of images, relative to the folder, become
    columns of images."""
    texts = [
        name
        for name, feature in (rows.features or {}).items()
        if getattr(feature, "dtype", None) in ("string", "large_string") and name in columns
    ]
    first: dict = next(iter(rows.select_columns(texts)), {}) if texts else {}
    for name, value in first.items():
        if value is not None and value.lower().endswith(IMAGE_SUFFIXES):
            absolute = rows.map(partial(with_folder, folder=folder, name=name))
            rows = absolute.cast_column(name, Value("string")).cast_column(name, Image(decode=False))
    return rows


def with_folder(row: dict, folder: str, name: str) -> dict:
    """The path of an image with its folder before it."""
    value = row[name]
    if value is None:
        return {name: None}
    value = value.replace("\\", "/")
    return {name: os.path.join(folder, value)} | ({} if "file_name" in row else {"file_name": value})


def webdataset_names(columns: list[str]) -> dict[str, str]:
    """New names of the columns of tar files. `KEY.png` is the label beside a JPEG, and the image beside another
    label."""
    names: dict[str, str] = {}
    for new, candidates in WEBDATASET.items():
        old = next((name for name in candidates if name in columns and name not in names), None)
        if old is not None:
            names[old] = new
    return names


def first_column(names: tuple[str, ...], rows: Dataset, dataset: str) -> str:
    """The first of several names that is a column.

    Raises:
        ValueError: none is.
    """
    for name in names:
        if name in rows.column_names:
            return name
    flag = "image_column" if names == IMAGE_COLUMNS else "label_column"
    found = ", ".join(rows.column_names)
    hint = f"name it with --{flag}, or export COCO JSON, YOLO or label images if it is a table of an annotation tool"
    raise ValueError(f"{dataset} has none of the columns {', '.join(names)}, only {found}; {hint}.")
