"""Finds the images and maps that a file of annotations names, also where their folders have moved."""

import unicodedata
from pathlib import Path, PurePosixPath

from ...utils.files import IMAGE_SUFFIXES, files_below
from ..split_names import ALL_SPLITS, names_of_split, words_of

ROBOFLOW = "_annotations.coco.json"
LABEL_FOLDERS = {"mask", "masks", "label", "labels", "annotations"}


def split_words(file: Path, root: Path) -> set[str]:
    """Names of splits in the name of a file, or in those of its folders below a root if its name has none."""
    folders = str(file.parent.relative_to(root))
    return (words_of(file.stem) & ALL_SPLITS) or (words_of(folders) & ALL_SPLITS)


def plain(name: str) -> str:
    """A path with `/` and composed characters, as it may be written on another system."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


class FileFinder:
    """Finds the images and maps that a JSON names, at any depth below a folder.

    Args:
        folder: the dataset.
        file: the JSON, for messages and for the split that it is of.
    """

    def __init__(self, folder: Path, file: Path):
        self.root = file.parent if file.name == ROBOFLOW else folder
        self.file = file
        self.of_split = frozenset().union(*(names_of_split(word) for word in split_words(file, folder)))
        self.below: dict[str, list[Path]] = {}
        for path in files_below(self.root):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self.below.setdefault(plain(path.name), []).append(path.relative_to(self.root))

    def find(self, name: str, is_map: bool) -> Path:
        """Path of an image or a map by the name in the JSON; maps are in folders with "panoptic" in their names.

        Raises:
            ValueError: it was found more than once. What does not exist is named as if it did.
        """
        parts = tuple(part for part in PurePosixPath(plain(name)).parts if part not in ("..", "/"))
        named = self.below.get(parts[-1] if parts else "", [])
        found = []
        for first in range(len(parts)):  # the path, and if it is of another machine its end
            found = [path for path in named if Path(plain(str(path))).parts[first - len(parts) :] == parts[first:]]
            if found:
                break
        found = [path for path in found if is_map or not any("panoptic" in part for part in path.parts[:-1])]
        if is_map:
            found = [path for path in found if any("panoptic" in part for part in path.parts[:-1])] or found
        if self.of_split:  # one name may be in the folders of several splits
            splits = [words_of(str(path.parent)) & ALL_SPLITS for path in found]
            found = [path for path, other in zip(found, splits, strict=True) if not other or other & self.of_split]
            found = [path for path in found if words_of(str(path.parent)) & self.of_split] or found
        if len(found) > 1 and not is_map:
            found = [path for path in found if not words_of(str(path.parent)) & LABEL_FOLDERS] or found
        if len(found) > 1:
            exact = [path for path in found if Path(plain(str(path))).parts == parts]
            depth = min(len(path.parts) for path in found)
            found = exact or [path for path in found if len(path.parts) == depth]
        if len(found) != 1:
            if found:
                raise ValueError(
                    f"{self.file} refers to {name}, which was found {len(found)} times in {self.root}: keep one."
                )
            return self.root / plain(name)  # is noticed with all others, see `leave_out_missing`
        return self.root / found[0]
