"""Image files and PIL images of any mode to 8-bit RGB tensors."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

EIGHT_BITS = ("RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "1")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def to_rgb(image) -> Tensor:
    """PIL image to uint8 `[3, H, W]`, rotated as its EXIF data say. Grey, palette and CMYK images become RGB; alpha is
    dropped; of 16 bits the upper 8 are kept; of an animation the current frame is used.

    Raises:
        ValueError: it is not an image, or its range of values is unknown (32 bits, floats).
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected an image, got {type(image).__name__}")
    image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BITS:
        grey = torch.from_numpy((np.array(image).astype(np.int32) >> 8).astype(np.uint8))
        return grey.expand(3, -1, -1).contiguous()
    if image.mode not in EIGHT_BITS:
        raise ValueError(f"the image has mode {image.mode}, expected 8 or 16 bits per channel")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def read_image(path: str | Path) -> Tensor:
    """Image file to uint8 `[3, H, W]`, see `to_rgb`; the first frame of an animation.

    Raises:
        ValueError: it is not an image, truncated or too large to decode; the message has no file name.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError("it is not an image file") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"it cannot be decoded: {error}") from error
