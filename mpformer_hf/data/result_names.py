"""Names of the files of results: one for each image, unique, and never outside of the output folder."""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath

LONGEST = 200  # bytes; file systems allow 255, with suffix and prefix
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')  # control characters, and what Windows does not allow


def plain_parts(file: str) -> list[str]:
    """Folders and name of a path from a dataset, without what leads out of a folder. Characters that file systems do
    not allow become `_`."""
    path = os.fsencode(file).decode(errors="replace").replace("\\", "/")
    parts = [UNSAFE.sub("_", part) for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return parts or ["_"]


def result_name(file: str) -> str:
    """Name of the result files of an image: its path without suffix, with `_` for `/`."""
    *folders, name = plain_parts(file)
    return "_".join((*folders, Path(name).stem))


def result_names(files: list[str]) -> list[str]:
    """Unique names of the result files of images.

    Args:
        files: paths of the images in their dataset.

    Returns:
        `result_name` of each. Where two are equal, the suffix is added, and where they still are or are too long for a
        file, a hash of the path; so a name does not depend on the order of the files. Of equal paths, all
        but the first get a number.
    """
    names = [result_name(file) for file in files]
    counts = Counter(names)
    names = [n if counts[n] == 1 else "_".join(plain_parts(file)) for n, file in zip(names, files, strict=True)]
    counts = Counter(names)

    def with_hash(name: str, file: str) -> str:
        """The name, shortened, and a hash of the path."""
        short = name.encode()[:LONGEST].decode(errors="ignore")
        return f"{short}-{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}"

    names = [
        name if counts[name] == 1 and len(name.encode()) <= LONGEST else with_hash(name, file)
        for name, file in zip(names, files, strict=True)
    ]
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        names[index] += f"-{seen[name]}" * (seen[name] > 1)
    return names


def path_inside(folder: Path, *parts: str) -> Path:
    """A path below a folder of results.

    Raises:
        ValueError: it is not below the folder, or a link there leads out of it.
    """
    path = Path(os.path.normpath(folder.joinpath(*parts)))
    if not path.is_relative_to(os.path.normpath(folder)) or path == Path(os.path.normpath(folder)):
        raise ValueError(f"{os.path.join(*parts)!r} is not the name of a file in {folder}.")
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{path.parent} is a link that leads out of {folder}; remove it.")
    return path
