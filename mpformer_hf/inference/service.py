"""A small HTTP service: one process, one model, waiting requests predicted together."""

import asyncio
import io
import logging
import queue
import socket
import threading
from concurrent.futures import Future
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from torch import Tensor

from ..model.images import ImageTooLarge, open_image, read_size, to_rgb
from .arguments import InferenceOptions, LoadingArguments, ServiceArguments
from .predictor import Predictor
from .result import Result

logger = logging.getLogger(__name__)
KEEP_ALIVE, SHUTDOWN = 10, 30  # seconds
DECODED = 10  # images of the largest size that may be decoded and wait
CONNECTIONS = 1000  # open ones at least; beyond, uvicorn answers 503
POLL = 0.25  # seconds between two looks whether a client is still there
GONE = 499  # status of requests whose client has gone, which nobody sees
FORMATS = ("json", "coco", "labelme", "overlay")


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
    pixels: int = 12_000_000
    waiting: int = 64
    batch: int = 4
    seconds: float = 20.0


class BatchWorker:
    """A thread that predicts waiting images, those of equal size together.

    Args:
        predictor: of the model.
        batch: most images of a batch.
    """

    def __init__(self, predictor: Predictor, batch: int):
        self.predictor, self.batch = predictor, batch
        self.waiting: queue.Queue = queue.Queue()
        threading.Thread(target=self.run, daemon=True).start()

    def submit(self, image: Tensor) -> Future:
        """Add an image; the future has its `Result`."""
        future: Future = Future()
        self.waiting.put((image, future))
        return future

    def run(self) -> None:
        """Predict for ever. Images whose clients have gone are left out."""
        left = None
        while True:
            batch = [left or self.waiting.get()]
            left = None
            while len(batch) < self.batch and not self.waiting.empty():
                item = self.waiting.get()
                if item[0].shape != batch[0][0].shape:
                    left = item
                    break
                batch.append(item)
            batch = [item for item in batch if item[1].set_running_or_notify_cancel()]
            if batch and not self.predict(batch) and len(batch) > 1:
                for item in batch:  # only those that fail alone get the error
                    self.predict([item])

    def predict(self, batch: list[tuple[Tensor, Future]]) -> bool:
        """Predict a batch; returns whether that worked. The error of a single image is its result."""
        try:
            results = self.predictor([image for image, _ in batch])
        except Exception as error:  # of many kinds; the service must continue
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            return False
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
        return True


class Admission:
    """Requests that are read or wait, and pixels that are decoded; places are taken before anything is read.

    Args:
        limits: of the service.
    """

    def __init__(self, limits: Limits):
        self.limits, self.requests, self.pixels = limits, 0, 0

    def enter(self) -> None:
        """Take the place of a request.

        Raises:
            HTTPException: there is none.
        """
        if self.requests >= self.limits.waiting + self.limits.batch:
            raise HTTPException(503, f"{self.requests} requests are waiting; try again later")
        self.requests += 1

    def decode(self, pixels: int) -> None:
        """Take the place of an image.

        Raises:
            HTTPException: too many pixels are decoded.
        """
        if self.pixels and self.pixels + pixels > DECODED * self.limits.pixels:
            raise HTTPException(503, f"{self.requests} requests are waiting; try again later")
        self.pixels += pixels


async def read_body(request: Request, limits: Limits) -> bytes:
    """Content of a request.

    Raises:
        HTTPException: it is a form, is too large or too slow; the rest is not read.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise HTTPException(415, "send the bytes of the image as they are (curl --data-binary), not as a form")
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > limits.body:
        raise HTTPException(413, f"the request has more than {limits.body} bytes")
    content = bytearray()

    async def read() -> None:
        async for part in request.stream():
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


def in_one_sentence(work, *args):
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
    width, height = read_size(io.BytesIO(content))
    return width * height


def decode(content: bytes, largest: int) -> Tensor:
    """An image file to uint8 `[3, H, W]`."""
    return to_rgb(open_image(io.BytesIO(content), largest))


def answer_in(form: str, result: Result) -> Response:
    """A result in one of `FORMATS`."""
    if form == "overlay":
        return Response(result._repr_png_(), media_type="image/png")
    if form == "labelme":
        return JSONResponse(result.to_labelme("image"))
    return JSONResponse(result.to_coco() if form == "coco" else result.as_dict())


async def result_for(request: Request, future: Future):
    """The result of a request; what a client that has gone waits for is not predicted.

    Raises:
        HTTPException: the client has gone, or the image cannot be predicted.
    """
    waiting = asyncio.wrap_future(future)
    while True:
        done, _ = await asyncio.wait([waiting], timeout=POLL)
        if done:
            break
        if await request.is_disconnected():
            future.cancel()
            raise HTTPException(GONE, "the client has gone")
    try:
        return waiting.result()
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    except Exception as error:  # of torch, of many kinds
        logger.exception("A prediction failed.")
        raise HTTPException(500, f"the prediction failed: {type(error).__name__}") from error


def make_app(predictor: Predictor, id2label: dict[int, str], limits: Limits) -> FastAPI:
    """The service.

    `POST /predict` with the bytes of an image file returns its height, width and segments (`Result.as_dict`), or
    another of `FORMATS` as `?format=`; `GET /health` returns the task, the labels and the number of waiting requests.
    Errors are JSON with `detail`, one sentence: 408 too slow, 413 too large, 415 a form, 422 no image or an unknown
    parameter, 500 the model failed, 503 too many requests wait.
    """
    app, worker, admission = FastAPI(title="mpformer"), BatchWorker(predictor, limits.batch), Admission(limits)

    @app.get("/health")
    def health() -> dict:
        return {"task": predictor.task, "labels": list(id2label.values()), "waiting": worker.waiting.qsize()}

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        form = request.query_params.get("format", "json")
        unknown = sorted(set(request.query_params) - {"format"})
        if unknown or form not in FORMATS:
            what = f"parameter {unknown[0]!r}" if unknown else f"format {form!r}"
            raise HTTPException(422, f"unknown {what}; known is format={'|'.join(FORMATS)}")
        admission.enter()
        pixels = 0
        try:
            content = await read_body(request, limits)
            size = min(in_one_sentence(size_in_pixels, content), limits.pixels)
            admission.decode(size)
            pixels = size
            image = await asyncio.to_thread(in_one_sentence, decode, content, limits.pixels)
            result = await result_for(request, worker.submit(image))
            return await asyncio.to_thread(answer_in, form, result)
        finally:
            admission.requests -= 1
            admission.pixels -= pixels

    return app


def serve(loading: LoadingArguments, args: ServiceArguments) -> None:
    """Serve a model until the process is ended.

    Raises:
        ValueError: the model is invalid, or the port is in use.
    """
    try:
        listening = socket.create_server((args.host, args.port))
    except OSError as error:
        raise ValueError(f"Cannot listen at {args.host}:{args.port}: {error.strerror}.") from error
    predictor = Predictor.from_arguments(loading, args.task, InferenceOptions(threshold=args.threshold))
    limits = Limits(args.max_bytes, args.max_pixels, args.max_waiting, args.batch_size)
    app = make_app(predictor, predictor.model.config.id2label, limits)
    host, port = listening.getsockname()[:2]
    print(f"serving {loading.model} at http://{host}:{port} (POST /predict, GET /health); Ctrl+C ends it", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN,
        timeout_keep_alive=KEEP_ALIVE,
        limit_concurrency=max(CONNECTIONS, 8 * args.max_waiting),
    )
    uvicorn.Server(config).run(sockets=[listening])
