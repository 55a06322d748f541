"""Images of any kind to 8-bit RGB: the same values in training, image processor and pipeline."""

import contextlib
import functools
import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from huggingface_hub.utils import get_session
from PIL import Image, UnidentifiedImageError
from torch import Tensor

logger = logging.getLogger(__name__)
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # beginnings of files
ORIENTATION = 274  # EXIF tag
WITH_ORIENTATION = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # keys of `info` in Pillow
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WIDTH, LENGTH, BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 256, 257, 258, 262, 284, 339  # tags of TIFF
TILE_WIDTH, TILE_LENGTH = 322, 323
SIGNED = 2  # a sample format
HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")  # after the first four bytes
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")  # Pillow's names; JPEG includes MPO
EIGHT_BITS = ("RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "1")
WHITE_IS_ZERO = "white is zero"  # key of `info` of a TIFF of 16 bits
SIXTEEN_BIT_RGB = "sixteen bits"  # key of `info` of an image of which Pillow keeps the upper 8 bits
FACTOR = "factor"  # key of `info` of a grey image of 2 or 4 bits: by what Pillow multiplied its values
SIZES_MARK = b"\xff\x51"  # marker of JPEG 2000, before the sizes and the depths of the channels
TWELVE_BITS = 4095
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def to_rgb(image) -> Tensor:
    """PIL image to uint8 `[3, H, W]`, rotated as its EXIF data say. Grey, palette and CMYK images become RGB; alpha is
    dropped; of 16 bits the upper 8 are kept; of an animation the current frame is used.

    Raises:
        ValueError: it is not an image, or its range of values is unknown (32 bits, floats).
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected an image, got {type(image).__name__}")
    return stored_rgb(as_displayed(image))


def stored_rgb(image: Image.Image) -> Tensor:
    """PIL image to uint8 `[3, H, W]` as its pixels are stored, see `to_rgb`."""
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format == "PPM"):  # PGM of 16 bits
        values = np.array(image).astype(np.int32)
        values = 65535 - values if image.info.get(WHITE_IS_ZERO) else values
        if 0 < values.max(initial=0) <= TWELVE_BITS:
            warn_once("A 16-bit image has no value above 4095 and is almost black: stretch its values to 0 to 65535.")
        grey = torch.from_numpy((values >> 8).astype(np.uint8))
        return grey.expand(3, -1, -1).contiguous()
    if image.mode not in EIGHT_BITS:
        kinds = "unsigned values of 8 or 16 bits; save it as a PNG or TIFF of these"
        raise ValueError(f"the image has mode {image.mode} (32 bits, signed or floats), expected {kinds}")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def is_not_black(image: Image.Image) -> np.ndarray:
    """Mask of an image of any mode, bool `[height, width]`: colours other than black; alpha is not looked at. Of a
    palette without black, index 0 is the background."""
    if image.mode == "P" and image.palette and (0, 0, 0) not in image.palette.colors:
        return np.array(image) > 0
    if image.mode in ("1", "L", "I", "F", *SIXTEEN_BITS):
        return np.array(image) > 0
    return np.array(image.convert("RGB")).max(-1) > 0


def as_displayed(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF data say; the mode and the format are kept."""
    image = loaded(image)  # which turns a TIFF
    turn = TURNS.get(orientation_of(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format, turned.info = image.format, {k: v for k, v in image.info.items() if k not in WITH_ORIENTATION}
    return turned


def loaded(image: Image.Image) -> Image.Image:
    """An image whose pixels are decoded. A TIFF may say in its tags that 0 is white, which Pillow does not follow with
    16 bits: `stored_rgb` does by `info`."""
    if image.format == "TIFF":
        setattr(image, "filename", "")  # noqa: B010 - else Pillow maps the file at the size that it has after its turn
        if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0 and image.mode in SIXTEEN_BITS:
            image.info[WHITE_IS_ZERO] = True
    image.load()
    return image


def orientation_of(image: Image.Image) -> int:
    """Orientation of an image in its EXIF data, 1 to 8; 1 (as it is) if there is none or they cannot be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of damaged EXIF data, of many kinds
        return 1
    return int(found) if found in TURNS else 1


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the rotation of the EXIF data; the image is not decoded."""
    if orientation_of(image) < 5:
        return image.size
    tags = getattr(image, "tag_v2", {})  # of a TIFF; some versions of Pillow turn its size before they turn its pixels
    return (tags[LENGTH], tags[WIDTH]) if WIDTH in tags and LENGTH in tags else image.size[::-1]


def to_rgb_image(image: Image.Image) -> Image.Image:
    """PIL image of any mode to RGB with 8 bits, see `to_rgb`."""
    if image.mode == "RGB" and orientation_of(image) == 1:
        return image
    return Image.fromarray(to_rgb(image).permute(1, 2, 0).numpy())


def to_eight_bits(image):
    """Images of any kind to values in 0..255. None is rotated: maps and target sizes are those of the stored pixels.

    Args:
        image: PIL image of any mode; numpy array or tensor of uint8, uint16 (the upper 8 bits are kept) or floats (if
            they are in [0, 1], they are multiplied by 255), bool (0 and 255); or a list of these.

    Returns:
        RGB PIL image, array or tensor of the same shape; or a list of these.

    Raises:
        ValueError: the range of values is unknown.
    """
    if isinstance(image, (list, tuple)):
        return [to_eight_bits(entry) for entry in image]
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else Image.fromarray(stored_rgb(image).permute(1, 2, 0).numpy())
    if not isinstance(image, np.ndarray) and not torch.is_tensor(image):
        return image
    if isinstance(image, np.ndarray) and not image.dtype.isnative:  # of another order of bytes
        image = image.astype(image.dtype.newbyteorder("="))
    kind = str(image.dtype).removeprefix("torch.")
    if kind == "uint8":
        return image
    if kind == "bool":
        return image.to(torch.uint8) * 255 if torch.is_tensor(image) else image.astype(np.uint8) * 255
    if not kind.startswith(("int", "uint", "float", "bfloat")):
        raise ValueError(f"the image has values of type {kind}, expected integers or floats")
    if kind == "uint16":
        if torch.is_tensor(image):
            return (image.to(torch.int32) >> 8).to(torch.uint8)
        return (image >> 8).astype(np.uint8)
    low, high = (float(image.min()), float(image.max())) if np.prod(image.shape) else (0.0, 0.0)
    if kind.startswith(("float", "bfloat")) and low >= 0 and high <= 1:
        return image * 255
    if kind.startswith(("float", "bfloat")) and low >= 0 and 1 < high < 2:
        raise ValueError(f"the image has floats from {low:g} to {high:g}: clip them to 1, or give values of 0 to 255")
    if not (low >= 0 and high <= 255):
        raise ValueError(f"the image has values of type {kind} from {low:g} to {high:g}, expected 0 to 255 or 0 to 1")
    return image


def to_image_tensor(image) -> Tensor:
    """An image of any kind to uint8 `[3, H, W]`.

    Args:
        image: path, URL, bytes, binary file or PIL image, all rotated as their EXIF data say; or array or tensor
            `[3, H, W]`, `[H, W, 3]` or `[H, W]` with values as in `to_eight_bits`.

    Raises:
        ValueError: it is none of these, or its shape can be read in two ways.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return to_rgb(fetch_image(image))
    if isinstance(image, bytes):
        return read_image(io.BytesIO(image))
    if hasattr(image, "read"):
        return read_image(image)
    if isinstance(image, (str, Path)):
        if os.path.isdir(image):
            raise ValueError(f"{image} is a folder; give a list of files")
        try:
            return read_image(image)
        except ValueError as error:
            raise ValueError(f"{image}: {error}") from error
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, (np.ndarray, Tensor)):
        kinds = "a path, a URL, bytes, a PIL image, an array or a tensor"
        raise ValueError(f"expected {kinds}, got {type(image).__name__}")
    image = np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image  # without negative strides
    pixels = torch.as_tensor(to_eight_bits(image))
    if pixels.ndim == 3 and pixels.shape[0] == pixels.shape[2] == 3:
        both = "[3, H, W] and [H, W, 3]"
        raise ValueError(f"the shape {tuple(image.shape)} fits {both}; give a PIL image, Image.fromarray(array)")
    if pixels.ndim == 3 and pixels.shape[0] != 3:
        pixels = pixels.permute(2, 0, 1)
    if pixels.ndim == 2:
        pixels = pixels.expand(3, -1, -1)
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"the image has shape {tuple(image.shape)}, expected [3, H, W], [H, W, 3] or [H, W]")
    return pixels.round().to(torch.uint8) if pixels.is_floating_point() else pixels.to(torch.uint8)


def fetch_image(url: str, timeout: float | None = None) -> Image.Image:
    """Download an image.

    Raises:
        ValueError: the server does not answer with an image; the message has the URL.
    """
    try:
        response = get_session().get(url, timeout=timeout)
        response.raise_for_status()
        return open_image(io.BytesIO(response.content))
    except Exception as error:  # of the HTTP library, of many kinds
        raise ValueError(f"{url}: {' '.join(str(error).split()) or type(error).__name__}") from error


def read_image(file: str | Path | BinaryIO) -> Tensor:
    """Image file to uint8 `[3, H, W]`, see `to_rgb`; the first frame of an animation.

    Raises:
        ValueError: see `open_image` and `to_rgb`.
    """
    return to_rgb(open_image(file))


def open_image(file: str | Path | BinaryIO, largest: int | None = None) -> Image.Image:
    """Open and decode an image of a known type. Other types are never tried: for some of them Pillow starts other
    programs. The checksums of a PNG are compared, which decoding does not do.

    Args:
        file: a path, or a binary file.
        largest: most pixels that are decoded; default: Pillow's limit.

    Raises:
        ValueError: it is not a regular file, not an image of `FORMATS`, truncated, damaged or too large; the message
            has no file name.
    """
    with image_errors():
        image = open_header(file)
        tags = getattr(image, "tag_v2", {})
        pixels = max(image.width * image.height, tags.get(TILE_WIDTH, 1) * tags.get(TILE_LENGTH, 1))
        if largest is not None and pixels > largest:
            raise ImageTooLarge(f"it has {pixels:,} pixels, at most {largest:,} are allowed")
        if image.format == "PNG":
            image.verify()  # closes the image
            image = open_header(file)
        stored = " ".join(str(tile[3]) for tile in getattr(image, "tile", []))  # how the pixels are stored
        wide = ";16" in stored and image.mode in ("RGB", "RGBA")
        if tags.get(PLANAR) == 2 and max(tags.get(BITS, (8,))) > 8:
            raise ValueError("it is a TIFF of separate planes of more than 8 bits; save its bands interleaved")
        if SIGNED in tags.get(SAMPLE_FORMAT, ()) and image.mode not in ("I", "F"):
            raise ValueError("it is a TIFF of signed values; save it as unsigned ones")
        if image.format == "JPEG2000" and image.mode in ("RGB", "RGBA") and depth_of_jpeg2000(file) > 8:
            raise ValueError("it is a JPEG 2000 of more than 8 bits a channel, which Pillow misreads; save it as PNG")
        if image.format == "TIFF" and image.mode == "LA":
            warn_once("A TIFF has two channels: the first is used, also of further ones.")
        if image.format == "TIFF" and has_pages(file):
            warn_once("A TIFF has several pages: the first is used, also of further ones; other pages may be channels.")
            image = open_header(file)
        if image.format in ("GIF", "WEBP", "PNG", "AVIF") and getattr(image, "is_animated", False):
            warn_once("An image is an animation: its first frame is used, also of further ones.")
        for bits, factor in (("L;2", 85), ("L;4", 17)):
            if re.search(rf"{bits}R?\b", stored):  # R: of the other order of bits
                image.info[FACTOR] = factor
        if wide:
            image.info[SIXTEEN_BIT_RGB] = True
        return loaded(image)


def has_pages(file: str | Path | BinaryIO) -> bool:
    """Whether a TIFF has a second page; it may be of a kind that is not read."""
    with open_header(file) as image:
        try:
            image.seek(1)
        except EOFError:
            return False
        except Exception:  # of other kinds of pages
            return True
    return True


def depth_of_jpeg2000(file: str | Path | BinaryIO) -> int:
    """Bits of a channel of a JPEG 2000, the most of all channels; Pillow does not tell them."""
    start = first_bytes(file, 1 << 14)
    _, _, sizes = start.partition(SIZES_MARK)
    channels = int.from_bytes(sizes[36:38], "big")
    return max((1 + (sizes[38 + 3 * channel] & 127) for channel in range(min(channels, 4))), default=8)


@functools.lru_cache
def warn_once(text: str) -> None:
    """Log a sentence about images, once in a process."""
    logger.warning("%s", text)


def read_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """(width, height) of an image file, see `displayed_size`; only its header is read.

    Raises:
        ValueError: see `open_image`.
    """
    with image_errors(), open_header(file) as image:
        return displayed_size(image)


class ImageTooLarge(ValueError):
    """An image has more pixels than are allowed."""


def open_header(file: str | Path | BinaryIO) -> Image.Image:
    """Open an image file, of which only the header is read."""
    if hasattr(file, "seek"):
        file.seek(0)
    elif not os.path.isfile(file):  # a pipe or a device would be read for ever
        raise FileNotFoundError("there is no such file")
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if first_bytes(file) in TIFF:
            kinds = "grey, RGB or RGBA of 8 bits, or grey of 16 bits"
            raise ValueError(f"it is a TIFF of a kind that is not read, or damaged; save it as {kinds}") from None
        if first_bytes(file, 12)[4:] in HEIC:
            raise ValueError(
                "it is a HEIC image, as phones write them, which is not read; convert it to JPEG"
            ) from None
        raise


def first_bytes(file: str | Path | BinaryIO, count: int = 4) -> bytes:
    """The first bytes of a file."""
    if isinstance(file, (str, Path)):
        with open(file, "rb") as opened:
            return opened.read(count)
    file.seek(0)
    return file.read(count)


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """Turn all errors of reading an image, of which each decoder has its own, into ValueErrors.

    Raises:
        ValueError: see `open_image`.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(error, ImageTooLarge) or str(error).startswith("it is a "):
            raise
        raise ValueError(f"it cannot be decoded: {' '.join(str(error).split())}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"it is not an image file ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        limit = f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
        raise ImageTooLarge(f"it has more than {limit}; cut it into parts") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"it cannot be decoded: {reason}") from error
