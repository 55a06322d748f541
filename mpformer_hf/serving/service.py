"""An HTTP service with a page: one process, one model, waiting requests predicted together."""

import asyncio
import io
import logging
import socket
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from PIL import Image
from torch import Tensor
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ..data.arguments import Task
from ..inference.arguments import InferenceOptions, LoadingArguments, ServiceArguments
from ..inference.drawing import class_color
from ..inference.predictor import Predictor
from ..inference.result import Result
from ..model.cleaning import DUPLICATE_IOU, check_cleaning
from ..model.image_sizes import size_of
from ..model.prompting import prompt_note
from .monitoring import Monitor, RequestMetrics
from .uploads import (
    GONE,
    Admission,
    Limits,
    decode,
    read_added,
    read_prompts,
    read_upload,
    size_in_pixels,
    with_http_errors,
)
from .worker import BatchWorker

logger = logging.getLogger(__name__)
KEEP_ALIVE, SHUTDOWN = 10, 30  # seconds
HEADERS = 20.0  # seconds in which the headers of a request must come
CONNECTIONS = 1000  # open ones at least; beyond, uvicorn answers 503
POLL = 0.25  # seconds between two looks whether a client is still there
UNTRAINED = "This model was not trained for boxes, so masks may be poor."
PAGE = Path(__file__).with_name("page")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
AnswerFormat = Literal["json", "coco", "labelme", "overlay", "png"]
PICTURE = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
FILE = {"type": "string", "format": "binary"}
PROMPTS = {"type": "string", "description": 'JSON, such as {"boxes": [[10, 10, 90, 80]]}'}
ADDED = {"type": "string", "description": 'Masks that belong to the result: {"masks": [RLE], "labels": ["cat"]}'}
ERRORS = {
    408: "The request was too slow.",
    413: "The request or the image is too large.",
    422: "It is no image, or a parameter is wrong.",
    500: "The model failed.",
    503: "Too many requests wait.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {code: {"description": text} for code, text in ERRORS.items()}


def body_of(fields: dict[str, dict], required: bool) -> dict:
    """OpenAPI's description of a form with an image and `fields`; if these are optional, the body may be an image."""
    needed = ["image", *(fields if required else ())]
    form = {"type": "object", "required": needed, "properties": {"image": FILE, **fields}}
    kinds = {"multipart/form-data": {"schema": form}, **({} if required else PICTURE)}
    return {"requestBody": {"required": True, "content": kinds}}


def label_map(result: Result) -> bytes:
    """Class ids as a PNG of 8 bits, of 16 bits with more than 255 classes; where there is no segment, 255 or 65535."""
    kind = "uint8" if len(result.id2label) <= 255 else "uint16"
    buffer = io.BytesIO()
    Image.fromarray(result.label_map.numpy().astype(kind)).save(buffer, "PNG")
    return buffer.getvalue()


def to_response(form: AnswerFormat, result: Result) -> Response:
    """A result in one of the forms."""
    if form in ("overlay", "png"):
        picture = result._repr_png_() if form == "overlay" else label_map(result)
        return Response(picture, media_type="image/png")
    if form == "labelme":
        return JSONResponse(result.to_labelme("image"))
    return JSONResponse(result.to_coco() if form == "coco" else result.as_dict())


async def result_for(request: Request, future: Future) -> Any:
    """Wait for the result of a request. If the client disconnects, it is cancelled.

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


def make_work(predictor: Predictor) -> Callable[[list[Tensor], Any], list]:
    """What the worker computes: predictions of a task with `InferenceOptions`, perhaps with masks that were added, or
    masks of the prompts of one image."""

    def work(images: list[Tensor], options: Any) -> list:
        if isinstance(options, tuple):
            task, asked, added = options
            results = Predictor(predictor.model, predictor.processor, task, asked)(images)
            if added is None:
                return results
            (result,) = results  # no other request has the same masks
            result = result.with_masks(added.given(size_of(images[0]))["masks"], added.labels)
            return [result if asked.nms is None else result.without_duplicates(asked.nms)]
        (image,) = images
        refined = predictor.refine(image, **options.given(size_of(image)))
        about = (predictor.model.config.id2label, predictor.processor.category_ids, predictor.processor.palette)
        return [Result(image, "instance", refined, *about)]

    return work


def make_app(predictor: Predictor, limits: Limits, work: Callable[[list[Tensor], Any], list] | None = None) -> FastAPI:
    """The service.

    `GET /` is a page. `POST /predict` with an image, as bytes or in the field `image` of a form, returns its height,
    width and segments (`Result.as_dict`), or another form. `POST /refine` with a form of `image` and `prompts` (see
    `read_prompts`) returns refined masks in the order of the prompts. `GET /health` tells task, labels and threshold,
    `GET /metrics` figures for Prometheus. Errors are JSON with `detail`, one sentence.

    Args:
        predictor: of the model.
        limits: of requests.
        work: what computes results; default: the predictor.
    """
    worker = BatchWorker(work or make_work(predictor), limits.batch)
    admission, metrics = Admission(limits), RequestMetrics()
    app = FastAPI(title="mpformer", description="Segmentation of images.", docs_url=None, redoc_url=None)
    config, palette = predictor.model.config, predictor.processor.palette
    id2label, ids = config.id2label, {name: label for label, name in config.id2label.items()}

    app.add_middleware(Monitor, metrics=metrics)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    @app.get("/page.{kind}", include_in_schema=False)
    def page_file(kind: Literal["css", "js"]) -> Response:
        return FileResponse(PAGE / f"page.{kind}", headers=PAGE_HEADERS)

    @app.get("/health")
    def health() -> dict:
        """Task, labels and their colours, threshold, whether the model refines, and how many images wait."""
        threshold = predictor.options.threshold
        return {
            "task": predictor.task,
            "labels": list(id2label.values()),
            "colors": [list(class_color(label, palette)) for label in range(len(id2label))],
            "threshold": predictor.processor.threshold if threshold is None else threshold,
            "refine": config.mask_piloting,
            "refine_note": UNTRAINED if config.mask_piloting and prompt_note(config) else "",
            "waiting": worker.waiting.qsize(),
        }

    @app.get("/metrics", response_class=PlainTextResponse)
    def prometheus() -> str:
        """Figures in Prometheus' text format."""
        return metrics.text(worker.waiting.qsize())

    async def compute(request: Request, field: str, make_options: Callable[[str, int], Any]) -> Result:
        admission.enter()
        received = pixels = 0

        def receive(count: int) -> None:
            nonlocal received
            admission.receive(count)
            received += count

        try:
            content, prompts = await read_upload(request, limits, receive, field)
            size = min(await asyncio.to_thread(with_http_errors, size_in_pixels, content), limits.pixels)
            options = make_options(prompts, size)
            admission.decode(size)
            pixels = size
            image = await asyncio.to_thread(with_http_errors, decode, content, limits.pixels)
            return await result_for(request, worker.submit(image, options))
        finally:
            admission.requests -= 1
            admission.pixels -= pixels
            admission.bytes -= received

    def check_query(request: Request, *known: str) -> None:
        unknown = sorted(set(request.query_params) - set(known))
        if unknown:
            raise HTTPException(422, f"unknown parameter {unknown[0]!r}; known are {', '.join(known) or 'none'}")

    @app.post("/predict", responses=RESPONSES, openapi_extra=body_of({"added": ADDED}, required=False))
    async def predict(
        request: Request,
        format: Annotated[AnswerFormat, Query(description="overlay: a drawing; png: class ids.")] = "json",
        task: Annotated[Task | None, Query(description="Default: the task of the service.")] = None,
        threshold: Annotated[float | None, Query(ge=0, le=1, description="Smallest score.")] = None,
        nms: Annotated[
            float | None, Query(gt=0, le=1, description="IoU from which on an instance is a duplicate.")
        ] = None,
        min_pixels: Annotated[int | None, Query(ge=0, description="Remove parts, fill holes of fewer pixels.")] = None,
        label: Annotated[list[str] | None, Query(description="Only this class; may be repeated.")] = None,
    ) -> Response:
        """Segment an image."""
        check_query(request, "format", "task", "threshold", "nms", "min_pixels", "label")
        if unknown := [name for name in label or () if name not in ids]:
            raise HTTPException(422, f"label: the model has no class {unknown[0]!r}")
        chosen = task or predictor.task
        try:
            check_cleaning(chosen, nms, min_pixels or 0)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        default = predictor.options
        duplicates = nms or default.nms or DUPLICATE_IOU if chosen == "instance" else None
        size = 0 if chosen == "semantic" else default.min_pixels if min_pixels is None else min_pixels
        smallest = default.threshold if threshold is None else threshold
        asked = replace(default, threshold=smallest, nms=duplicates, min_pixels=size)

        def make_options(text: str, pixels: int) -> tuple:
            return chosen, asked, read_added(text, pixels, ids) if text else None

        result = await compute(request, "added", make_options)
        if label:
            result = result.only(label)
        return await asyncio.to_thread(to_response, format, result)

    @app.post("/refine", responses=RESPONSES, openapi_extra=body_of({"prompts": PROMPTS}, required=True))
    async def refine(request: Request) -> Response:
        """Masks of boxes or of rough masks, in their order."""
        check_query(request)
        if not config.mask_piloting:
            raise HTTPException(422, "the model has no pilot, so it cannot refine masks")
        result = await compute(request, "prompts", lambda text, pixels: read_prompts(text, pixels, ids))
        return JSONResponse({**result.as_dict(), "segments": [s.as_dict() for s in result.in_order()]})

    return app


class ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which closes a connection whose headers do not come in time."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.patience = self.loop.call_later(HEADERS, self.close_without_headers)

    def data_received(self, data: bytes) -> None:
        was_waiting = self.is_waiting()
        super().data_received(data)
        if not self.is_waiting():
            self.patience.cancel()
        elif not was_waiting or self.patience.cancelled():
            self.patience.cancel()
            self.patience = self.loop.call_later(HEADERS, self.close_without_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        self.patience.cancel()
        super().connection_lost(exc)

    def is_waiting(self) -> bool:
        """Whether no request is being answered, so that headers are to come."""
        return self.cycle is None or self.cycle.response_complete

    def close_without_headers(self) -> None:
        if self.is_waiting():
            self.transport.close()


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
    app = make_app(predictor, Limits(args.max_bytes, args.max_pixels, args.max_waiting, args.batch_size))
    host, port = listening.getsockname()[:2]
    print(
        f"serving {loading.model} at http://{host}:{port} (a page, POST /predict, POST /refine); Ctrl+C ends it",
        flush=True,
    )
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN,
        timeout_keep_alive=KEEP_ALIVE,
        limit_concurrency=max(CONNECTIONS, 8 * args.max_waiting),
    )
    uvicorn.Server(config).run(sockets=[listening])
