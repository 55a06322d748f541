"""Image files and PIL images of any kind to RGB tensors of 8 bits."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

EIGHT_BITS = ("RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "1")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def to_rgb(image) -> Tensor:
    """A PIL image, turned as its EXIF data say, to uint8 `[3, H, W]`. Grey, palette, CMYK become RGB; alpha is
    dropped; 16 bits become 8, the upper ones; of an animation the current frame is taken.

    Raises:
        ValueError: no image, or one whose range of values is unknown (32 bits, floats).
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
    """An image file as `to_rgb` makes it; the first frame of an animation.

    Raises:
        ValueError: no image, a truncated one, or one too large to be decoded; the message has no file name.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError("it is no image file that can be read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"it cannot be decoded: {error}") from error
