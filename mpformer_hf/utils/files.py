"""Writing files atomically, and the file types that are read."""

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)
LOCK = ".lock"
LARGEST_YAML = 1 << 20  # bytes
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif"),
)
OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".rw2", ".orf", ".raf", ".jxl"),
    *(".svg", ".psd", ".tga", ".dcm", ".nii", ".czi", ".svs"),
)
VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v"),
    *(".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".3gp"),
)
TABLE_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".csv", ".zip", ".tar")  # what `datasets.load_dataset` reads


PACKAGE = os.path.realpath(Path(__file__).parents[1])  # which has lists of class names
ROOTS: ContextVar[tuple[str, ...] | None] = ContextVar("roots", default=None)


@contextlib.contextmanager
def reading_inside(roots: tuple[str, ...] | None) -> Iterator[None]:
    """Context manager in which the functions of this module read files of some folders only; None: any file.

    Args:
        roots: real paths of the folders.
    """
    token = ROOTS.set(None if roots is None else (*roots, PACKAGE))
    try:
        yield
    finally:
        ROOTS.reset(token)


def is_inside(path: str | Path, roots: tuple[str, ...] | None) -> bool:
    """Whether the real path of a file is in one of several folders; True if they are None."""
    real = os.path.realpath(path)
    return roots is None or any(os.path.commonpath((real, root)) == root for root in roots)


def check_inside(
    path: str | Path, roots: tuple[str, ...] | None, hint: str = "; --allow_outside_files reads such files"
) -> None:
    """Check that a file that a dataset names belongs to the dataset; `hint` ends the message.

    Raises:
        ValueError: it is in none of the folders.
    """
    if roots is not None and not is_inside(path, roots):
        real = os.path.realpath(path)
        where = "is" if real == str(path) else f"leads to {real},"
        raise ValueError(f"{path} {where} outside of the dataset {roots[0]}{hint}")


def file_start(file: Path, size: int = 1 << 14) -> str:
    """The beginning of a text file; empty for what may not be read, see `reading_inside`, or is no regular file."""
    if not file.is_file() or not is_inside(file, ROOTS.get()):
        return ""
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(size)


def read_text(file: Path) -> str:
    """Content of a text file.

    Raises:
        ValueError: it may not be read, see `reading_inside`, is no regular file or is not UTF-8; the message names it.
    """
    check_inside(file, ROOTS.get())
    if not file.is_file():
        raise ValueError(f"{file} is not a regular file.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from error


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder at any depth, also in linked folders that may be read, see `reading_inside`; a link to a
    folder above is not followed. Files and folders whose names begin with a dot are left out."""
    seen, roots = set(), ROOTS.get()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or not is_inside(real, roots):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def warn_of_other_images(folder: Path) -> None:
    """Log how many images of types that are not read are in a folder."""
    others = [file for file in files_below(folder) if file.suffix.lower() in OTHER_IMAGE_SUFFIXES]
    if others:
        text = "%s: %d images of types that are not read are left out, such as %s; convert them to PNG or JPEG."
        logger.warning(text, folder, len(others), others[0].name)


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Context manager that yields a temporary path, of the same suffix and in the same folder, for a file or a folder.
    It replaces `path` if the block succeeds; otherwise `path` is left as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}")
    remove(temporary)
    try:
        with naming(path):
            yield temporary
            if temporary.is_dir():
                remove(path)
            temporary.replace(path)
    finally:
        remove(temporary)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context manager that adds what is written to the error of a full disk, also of libraries in Rust."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None
        if full or f"(os error {errno.ENOSPC})" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


@contextlib.contextmanager
def write_new_folder(path: Path) -> Iterator[Path]:
    """Context manager that yields a temporary folder, which becomes `path` if the block succeeds; otherwise nothing is
    left. What a killed process left of it is removed. An empty folder, which may be a mounted one, is filled.

    Raises:
        ValueError: `path` is not empty, or another process writes it.
    """
    check_new_folder(path)
    exists = path.is_dir()
    temporary = path / ".writing" if exists else path.with_name(f".writing-{path.name}")
    if temporary.is_symlink():
        temporary.unlink()  # else its folder would be emptied
    lock = lock_folder(temporary)
    try:
        for left in temporary.iterdir():
            if left.name != LOCK:
                remove(left)
        with naming(path):
            yield temporary
        check_new_folder(path)
        (temporary / LOCK).unlink()
        if exists:
            for written in temporary.iterdir():
                written.replace(path / written.name)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)
        lock.release()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically; its folder is created."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(content, path: Path, indent: int | None = 2) -> None:
    """Write a JSON file atomically; its folder is created."""
    write_text(json.dumps(content, indent=indent) + "\n", path)


def different_keys(pairs: list[tuple[str, object]]) -> dict:
    """A mapping of JSON.

    Raises:
        ValueError: a key is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def read_json(path: Path, unique: bool = False):
    """Content of a JSON file.

    Args:
        path: the file.
        unique: whether keys may not be repeated; else the last one is used.

    Raises:
        ValueError: it cannot be read or is not JSON.
    """
    check_inside(path, ROOTS.get())
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=different_keys if unique else None)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {str(error).splitlines()[0]}") from error


def read_yaml(file: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader):
    """Content of a YAML file.

    Raises:
        ValueError: it is not a regular file, has more than 1 MiB, or is not YAML; the message has one line.
    """
    check_inside(file, ROOTS.get())
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_YAML:
            raise ValueError(f"it is not a file of at most {LARGEST_YAML >> 20} MiB")
        return yaml.load(file.read_text(encoding="utf-8-sig"), loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}.") from error


def lock_folder(folder: Path, part: str = "", patience: float = 0.0) -> FileLock:
    """Create a folder if it does not exist and lock it. The lock ends with the process.

    Args:
        folder: the folder.
        part: lock a part of its content only: `-NAME`.
        patience: seconds to wait for the lock.

    Raises:
        ValueError: it is a file, has links that lead out of it, or another process uses it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Output folder {folder} is a file; choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_symlink() and not is_inside(entry, (os.path.realpath(folder),)):
            raise ValueError(f"{entry} is a link that leads out of the output folder; remove it.")
    lock = FileLock(folder / f"{LOCK}{part}")
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        which = f" ({part[1:].replace('-', ' ')})" if part else ""
        name = folder.with_name(folder.name.removeprefix(".writing-"))
        raise ValueError(f"Output folder {name} is used by another process{which}.") from error
    return lock


def check_new_folder(path: Path) -> Path:
    """Return `path`.

    Raises:
        ValueError: it exists and is not an empty folder.
    """
    if path.exists() and (
        not path.is_dir() or any(not file.name.startswith((LOCK, ".writing")) for file in path.iterdir())
    ):
        raise ValueError(f"{path} is not an empty folder; choose another output folder.")
    return path
