"""What clients send: bytes of an image or a form, within limits, and prompts."""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from torch import Tensor
from torch.nn import functional as F

from ..data.coco_masks import decode_segmentation
from ..model.images import ImageTooLarge, open_image, read_size, to_rgb

GONE = 499  # status of requests whose client has gone, which nobody sees
LARGEST_TOGETHER = 10  # requests of the largest size that may be read and wait
DECODED = 10  # images of the largest size that may be decoded and wait
FIELDS = ("image", "file")  # of a form, that may have the image
MOST_PROMPTS = 200  # of one request
PROMPT_CHARACTERS = 1 << 22  # of their JSON
LARGEST_NUMBER = 1e9  # of a box
MASK_PIXELS = 100_000_000  # of all masks of one request, at the size of the image
MASK_SIZE = 1 << 24  # pixels of a mask that is sent


@dataclass
class Limits:
    """Attributes:
    body: largest request in bytes.
    pixels: largest image in pixels.
    waiting: requests that may wait; more are refused.
    batch: images of equal size that are predicted together.
    seconds: time that a client has to send a request.
    """

    body: int = 32 << 20
    pixels: int = 16_000_000
    waiting: int = 64
    batch: int = 4
    seconds: float = 20.0


class Admission:
    """Counts requests, their bytes and decoded pixels, before the work starts, and refuses more than the limits.

    Args:
        limits: of the service.
    """

    def __init__(self, limits: Limits):
        self.limits, self.requests, self.bytes, self.pixels = limits, 0, 0, 0

    def enter(self) -> None:
        """Take the place of a request.

        Raises:
            HTTPException: there is none.
        """
        if self.requests >= self.limits.waiting + self.limits.batch:
            raise HTTPException(503, f"{self.requests} requests are waiting; try again later")
        self.requests += 1

    def receive(self, count: int) -> None:
        """Take the place of a part of a request.

        Raises:
            HTTPException: the requests have too many bytes together.
        """
        if self.bytes + count > LARGEST_TOGETHER * self.limits.body:
            raise HTTPException(503, f"{self.requests} requests are waiting; try again later")
        self.bytes += count

    def decode(self, pixels: int) -> None:
        """Take the place of an image.

        Raises:
            HTTPException: too many pixels are decoded.
        """
        if self.pixels and self.pixels + pixels > DECODED * self.limits.pixels:
            raise HTTPException(503, f"{self.requests} requests are waiting; try again later")
        self.pixels += pixels


async def read_body(request: Request, limits: Limits, receive: Callable[[int], None]) -> bytes:
    """Content of a request; `receive` is called with the size of each part.

    Raises:
        HTTPException: it is too large or too slow; the rest is not read.
    """
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > limits.body:
        raise HTTPException(413, f"the request has more than {limits.body} bytes")
    content = bytearray()

    async def read() -> None:
        async for part in request.stream():
            receive(len(part))
            content.extend(part)
            if len(content) > limits.body:
                raise HTTPException(413, f"the request has more than {limits.body} bytes")

    try:
        await asyncio.wait_for(read(), limits.seconds)
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"the request took more than {limits.seconds:g} seconds") from error
    except ClientDisconnect as error:
        raise HTTPException(GONE, "the client has gone") from error
    return bytes(content)


async def read_upload(
    request: Request, limits: Limits, receive: Callable[[int], None], field: str
) -> tuple[bytes, str]:
    """Bytes of the image of a request, and a text field of a form, "" without one.

    Raises:
        HTTPException: see `read_body`; or a form has no image.
    """
    body = await read_body(request, limits, receive)
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        return body, ""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, whole(), max_part_size=limits.body).parse()
    except (MultiPartException, LookupError, UnicodeError) as error:
        raise HTTPException(422, f"the form cannot be read: {error}") from error
    try:
        files = [form.get(name) for name in FIELDS]
        image = next((value for value in files if isinstance(value, UploadFile)), None)
        if image is None:
            raise HTTPException(422, f"the form has no file in a field {' or '.join(FIELDS)}")
        unknown = sorted(set(form) - {*FIELDS, field})
        if unknown:
            raise HTTPException(422, f"the form has the unknown field {unknown[0]!r}; options are given in the address")
        given = form.get(field, "")
        text = given if isinstance(given, str) else (await given.read()).decode(errors="replace")
        return await image.read(), text
    finally:
        await form.close()


def with_http_errors(work, *args):
    """`work(*args)` on the bytes of an image.

    Raises:
        HTTPException: it is no image, or too large.
    """
    try:
        return work(*args)
    except ImageTooLarge as error:
        raise HTTPException(413, f"the image is too large: {error}") from error
    except ValueError as error:
        raise HTTPException(422, f"the request is not an image that can be read: {error}") from error


def size_in_pixels(content: bytes) -> int:
    """Number of pixels of an image file."""
    width, height = read_size(io.BytesIO(content))
    return width * height


def decode(content: bytes, largest: int) -> Tensor:
    """An image file to uint8 `[3, H, W]`."""
    return to_rgb(open_image(io.BytesIO(content), largest))


@dataclass(eq=False)
class Prompts:
    """Boxes or masks of a request, not decoded yet; the worker makes the tensors. Two objects are never equal.

    Attributes:
        boxes: a list of [x0, y0, x1, y1] in pixels of the image; or None.
        masks: a list of COCO's RLE of any size, which are resized; or None.
        labels: class of each, -1 if it is not known; or None.
    """

    boxes: list | None
    masks: list | None
    labels: list[int] | None

    def given(self, size: tuple[int, int]) -> dict[str, Any]:
        """Arguments of `Predictor.refine` for an image of (height, width) `size`.

        Raises:
            ValueError: a prompt is of another form.
        """
        try:
            if self.masks is None:
                given = {"boxes": torch.tensor(self.boxes, dtype=torch.float32).reshape(len(self.boxes or ()), 4)}
            else:
                given = {"masks": torch.stack([resized_mask(mask, size) for mask in self.masks])}
        except (ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
            raise ValueError(f"the prompts cannot be read: {' '.join(str(error).split())}") from error
        return {**given, "labels": self.labels}


def is_box(box) -> bool:
    """Whether a value is four finite numbers."""
    numbers = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
    return numbers and all(abs(x) < LARGEST_NUMBER for x in box)


def read_prompts(text: str, pixels: int, labels: dict[str, int]) -> Prompts:
    """Prompts from JSON: `boxes` or `masks`, see `Prompts`, and perhaps `labels`, a class name or null for each.

    Args:
        text: the JSON.
        pixels: number of pixels of the image, and so of each mask.
        labels: class ids by name.

    Raises:
        HTTPException: it is of another form, or has too many prompts.
    """
    try:
        if len(text) > PROMPT_CHARACTERS:
            raise ValueError(f"they have {len(text)} characters, at most {PROMPT_CHARACTERS} are allowed")
        content = json.loads(text)
        if not isinstance(content, dict) or set(content) - {"boxes", "masks", "labels"}:
            raise ValueError("they must be JSON with boxes or masks, and perhaps labels")
        boxes, masks, names = (content.get(key) for key in ("boxes", "masks", "labels"))
        prompts = boxes if masks is None else masks
        if (boxes is None) == (masks is None) or not isinstance(prompts, list) or not prompts:
            raise ValueError("give boxes or masks, one of them, as a list")
        most = min(MOST_PROMPTS, max(1, MASK_PIXELS // pixels))
        if len(prompts) > most:
            raise ValueError(f"there are {len(prompts)} prompts, at most {most} are allowed in an image of this size")
        if boxes is not None and not all(is_box(box) for box in boxes):
            raise ValueError("each box must be four numbers [x0, y0, x1, y1]")
        if masks is not None and not all(isinstance(mask, dict) for mask in masks):
            raise ValueError("each mask must be an RLE with size and counts")
        if sum(height * width for height, width in map(size_of_mask, masks or ())) > MASK_PIXELS:
            raise ValueError(f"the masks have more than {MASK_PIXELS:,} pixels together")
        if not isinstance(names, (list, type(None))):
            raise ValueError("labels must be a list")
        unknown = [name for name in names or () if name is not None and name not in labels]
        if unknown or (names is not None and len(names) != len(prompts)):
            raise ValueError(f"labels must be a class name or null for each prompt, got {names!r}"[:200])
    except (ValueError, TypeError, RecursionError) as error:
        raise HTTPException(422, f"the prompts cannot be read: {' '.join(str(error).split())}") from error
    return Prompts(boxes, masks, None if names is None else [-1 if x is None else labels[x] for x in names])


def read_added(text: str, pixels: int, labels: dict[str, int]) -> Prompts:
    """Masks that are added to a result, from JSON as of `read_prompts`: each has a label.

    Raises:
        HTTPException: see `read_prompts`.
    """
    added = read_prompts(text, pixels, labels)
    if added.masks is None or added.labels is None or -1 in added.labels:
        raise HTTPException(422, "added must have masks, and a label for each")
    return added


def size_of_mask(rle: dict) -> tuple[int, int]:
    """(height, width) of a mask as RLE.

    Raises:
        ValueError: it has none, or is too large.
    """
    size = rle.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError("each mask must be an RLE with size, [height, width], and counts")
    if size[0] * size[1] > MASK_SIZE:
        raise ValueError(f"a mask is {size[0]}x{size[1]}, at most {MASK_SIZE:,} pixels are allowed")
    return size[0], size[1]


def resized_mask(rle: dict, size: tuple[int, int]) -> Tensor:
    """A mask as RLE, bool `[H, W]` of the image's (height, width).

    Raises:
        ValueError: it is too large, invalid, or has other proportions than the image.
    """
    height, width = size_of_mask(rle)
    if abs(height - width * size[0] / size[1]) > 1 and abs(width - height * size[1] / size[0]) > 1:
        sizes = [f"{tall}x{wide}" for tall, wide in ((height, width), size)]
        raise ValueError(f"a mask is {sizes[0]}, the image as it is shown {sizes[1]} (height x width)")
    mask = torch.from_numpy(decode_segmentation(rle, height, width)).float()
    return F.interpolate(mask[None, None], size=size, mode="nearest")[0, 0] > 0
