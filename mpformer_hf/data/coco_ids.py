"""Ids of images from a COCO file."""

from pathlib import Path

from ..utils.files import read_json


def read_image_ids(file: Path) -> dict[str, int]:
    """Ids of the images of a COCO or LVIS JSON, such as `image_info_test-dev2017.json`, by file name without folders.

    Raises:
        ValueError: it cannot be read, or has no images with id and file_name, or one file name twice.
    """
    content = read_json(file)
    try:
        images = [(image.get("file_name") or image["coco_url"], image["id"]) for image in content["images"]]
        names = {name.split("/")[-1]: number for name, number in images}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} has no list of images with id and file_name.") from error
    if len(names) < len(content["images"]):
        raise ValueError(f"{file} has a file_name twice.")
    return names
