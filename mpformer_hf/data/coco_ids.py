"""Ids of images from a COCO file."""

from pathlib import Path, PurePosixPath

from ..utils.files import read_json


class ImageIds:
    """Ids of the images of a COCO or LVIS JSON, such as `image_info_test-dev2017.json`.

    Raises:
        ValueError: it cannot be read, or has no images with id and file_name, or one file name twice.
    """

    def __init__(self, file: Path):
        content = read_json(file)
        try:
            images = [(image.get("file_name") or image["coco_url"], image["id"]) for image in content["images"]]
            self.names = {PurePosixPath(name).parts: number for name, number in images}
            wrong = [number for _, number in images if not isinstance(number, (int, str))]
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} has no list of images with id and file_name.") from error
        if wrong:
            raise ValueError(f"{file} has the id {wrong[0]!r} of an image, expected an integer or a text.")
        if len(self.names) < len(content["images"]):
            raise ValueError(f"{file} has a file_name twice.")
        self.ends: dict[tuple[str, ...], list[int]] = {}
        for parts, number in self.names.items():
            for first in range(len(parts)):
                self.ends.setdefault(parts[first:], []).append(number)

    def find(self, name: str) -> int | None:
        """Id of an image by its path: one path is that in the JSON or ends as it does, as folders above may be missing
        on either side; None if there is none, or several."""
        parts = PurePosixPath(name.replace("\\", "/")).parts
        known = next((self.names[parts[i:]] for i in range(len(parts)) if parts[i:] in self.names), None)
        ends = self.ends.get(parts, [])
        return ends[0] if known is None and len(ends) == 1 else known
