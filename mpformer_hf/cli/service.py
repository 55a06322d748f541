"""A small HTTP service: one process, one model, waiting requests predicted together."""

import asyncio
import io
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from fastapi import FastAPI, HTTPException, Request
from torch import Tensor

from ..data.writers.format import describe_segments
from ..inference.predictor import Predictor
from ..model.images import ImageTooLarge, open_image, to_rgb


@dataclass
class Limits:
    """Attributes:
    body: largest request in bytes.
    pixels: largest image in pixels.
    waiting: requests that may wait; more are refused.
    batch: images of equal size that are predicted together.
    """

    body: int = 32 << 20
    pixels: int = 40_000_000
    waiting: int = 64
    batch: int = 4


class BatchWorker:
    """A thread that predicts waiting images, those of equal size together.

    Args:
        predictor: of the model.
        limits: number of waiting images, and size of a batch.
    """

    def __init__(self, predictor: Predictor, limits: Limits):
        self.predictor, self.limits = predictor, limits
        self.waiting: queue.Queue = queue.Queue(limits.waiting)
        threading.Thread(target=self.run, daemon=True).start()

    def submit(self, image: Tensor) -> Future:
        """Add an image; the future has its result.

        Raises:
            queue.Full: too many images wait.
        """
        future: Future = Future()
        self.waiting.put_nowait((image, future))
        return future

    def run(self) -> None:
        """Predict for ever. An error is the result of its batch and does not end the thread."""
        left = None
        while True:
            batch = [left or self.waiting.get()]
            left = None
            while len(batch) < self.limits.batch and not self.waiting.empty():
                item = self.waiting.get()
                if item[0].shape != batch[0][0].shape:
                    left = item
                    break
                batch.append(item)
            batch = [item for item in batch if item[1].set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                results = self.predictor([image for image, _ in batch])
            except Exception as error:  # of many kinds; the service must continue
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)


async def read_body(request: Request, limit: int) -> bytes:
    """Content of a request.

    Raises:
        HTTPException: it has more than `limit` bytes; the rest is not read.
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise HTTPException(413, f"the request has more than {limit} bytes")
    return bytes(content)


def decode(content: bytes, largest: int) -> Tensor:
    """An image file to uint8 `[3, H, W]`.

    Raises:
        HTTPException: it is no image or has more than `largest` pixels.
    """
    try:
        return to_rgb(open_image(io.BytesIO(content), largest))
    except ImageTooLarge as error:
        raise HTTPException(413, f"the image is too large: {error}") from error
    except ValueError as error:
        raise HTTPException(422, f"the request is not an image that can be read: {error}") from error


def make_app(predictor: Predictor, id2label: dict[int, str], limits: Limits) -> FastAPI:
    """The service.

    `POST /predict` with the bytes of an image file returns its height, width and segments, see `describe_segments`;
    `GET /health` returns the task, the labels and the number of waiting requests. Errors are JSON with `detail`, one
    sentence: 413 too large, 422 no image, 503 too many requests wait.
    """
    app, worker = FastAPI(title="mpformer"), BatchWorker(predictor, limits)

    @app.get("/health")
    def health() -> dict:
        return {"task": predictor.task, "labels": list(id2label.values()), "waiting": worker.waiting.qsize()}

    @app.post("/predict")
    async def predict(request: Request) -> dict:
        content = await read_body(request, limits.body)
        image = await asyncio.to_thread(decode, content, limits.pixels)
        try:
            future = worker.submit(image)
        except queue.Full as error:
            raise HTTPException(503, f"{limits.waiting} requests are waiting; try again later") from error
        try:
            result = await asyncio.wrap_future(future)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        segments = await asyncio.to_thread(describe_segments, result, predictor.task, id2label)
        return {"height": image.shape[1], "width": image.shape[2], "segments": segments}

    return app
