"""Files of `mpformer predict`: overlays, label maps, one JSON per image, and those of the chosen formats."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.result_names import path_inside
from ..data.writers.format import ImageRecord, PredictionFormat, describe_segments
from ..model.cleaning import DUPLICATE_IOU, without_duplicates
from ..utils.files import read_json, write_atomically, write_json
from .drawing import Palette, draw_segmentation

RESULT_FIELDS = {"image_id", "file_name", "name", "pixels_sha256", "height", "width", "task", "segments"}


def write_image(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically; its folder is created."""
    with write_atomically(path) as temporary:
        image.save(temporary, format="PNG", compress_level=1)  # several times faster, and hardly larger


def label_map(result: Tensor) -> Image.Image:
    """Class ids of a semantic result, with 8 or 16 bits."""
    labels = result.numpy()
    return Image.fromarray(labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16))


def image_hash(image: Tensor) -> str:
    """SHA-256 of the pixels and the size of an image."""
    return hashlib.sha256(str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).hexdigest()


def is_complete(folder: Path, record: ImageRecord, image: Tensor, pictures: list[str], writers) -> bool:
    """Whether the result of an image is of the same pixels, and its files exist."""
    try:
        result = read_json(path_inside(folder, "results", f"{record.name}.json"))
    except ValueError:
        return False
    valid = isinstance(result, dict) and result.keys() >= RESULT_FIELDS and result["pixels_sha256"] == image_hash(image)
    files = [path_inside(folder, kind, f"{record.name}.png") for kind in pictures]
    files += [file for writer in writers if (file := writer.file_of(record)) is not None]
    return valid and all(file.is_file() for file in files)


def write_result(
    folder: Path,
    record: ImageRecord,
    image: Tensor,
    result,
    task: str,
    id2label: dict[int, str],
    palette: Palette | None,
    pictures: list[str],
    writers: Sequence[PredictionFormat],
) -> None:
    """Write all files of one image: overlay and label map, if `pictures` has them, the formats, and last the JSON."""
    if "overlays" in pictures:
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        drawn = result if task == "semantic" else without_duplicates(result, DUPLICATE_IOU)
        overlay = draw_segmentation(photo, drawn, id2label, palette=palette)
        write_image(overlay, path_inside(folder, "overlays", f"{record.name}.png"))
    if "maps" in pictures:
        write_image(label_map(result), path_inside(folder, "maps", f"{record.name}.png"))
    record.height, record.width = image.shape[1:]
    record.segments = describe_segments(result, task, id2label)
    for writer in writers:
        writer.write(record, result)
    content = {**record.as_dict(), "pixels_sha256": image_hash(image), "task": task}
    write_json(content, path_inside(folder, "results", f"{record.name}.json"), indent=None)


def finish(
    folder: Path, identities: dict[str, tuple[int | str, str]], writers: Sequence[PredictionFormat]
) -> list[Path]:
    """Write the files of all images.

    Args:
        folder: of the results.
        identities: id and file name of each image of this run, by name; results of an earlier run may have others.
        writers: the formats.

    Returns:
        paths of the files.
    """
    if not writers:
        return []
    fields, records = ("name", "height", "width", "segments"), []
    for name, (image_id, file_name) in identities.items():
        result = read_json(folder / "results" / f"{name}.json")
        records.append(ImageRecord(image_id, file_name, **{key: result[key] for key in fields}))
    return [file for writer in writers for file in writer.finish(records)]
