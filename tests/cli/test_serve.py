"""`mpformer serve`: real HTTP on 127.0.0.1, concurrent clients, broken uploads."""

import asyncio
import io
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import httpx
import psutil
import pytest
import torch
from fastapi import HTTPException
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli import serve
from mpformer_hf.data.writers.format import describe_segments
from mpformer_hf.inference.arguments import InferenceOptions
from mpformer_hf.inference.loading import load_model
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.inference.service import Admission, BatchWorker, Limits, make_app, read_body
from mpformer_hf.model.images import to_rgb
from tests import datasets_on_disk as make
from tests.tiny import tiny_model


def as_bytes(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Address of a running service, its model folder and its process."""
    folder = tmp_path_factory.mktemp("served") / "model"
    torch.manual_seed(0)
    tiny_model(decoder_layers=3).save_pretrained(folder)
    MPFormerImageProcessor(task="instance", size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mpformer_hf.cli.main", "serve", str(folder), "--port", str(port)]
    command += ["--threshold", "0", "--max_pixels", "10000", "--max_bytes", "100000", "--max_waiting", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{address}/health", trust_env=False)
            break
        except httpx.TransportError:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
    yield address, folder, process
    process.terminate()
    process.wait(20)


def post(address, content, **options):
    return httpx.post(f"{address}/predict", content=content, timeout=120, trust_env=False, **options)


def test_the_answer_is_that_of_the_predictor(service):
    address, folder, _ = service
    image = make.photo()
    found = post(address, as_bytes(image)).json()
    processor = MPFormerImageProcessor.from_pretrained(folder)
    predictor = Predictor(load_model(str(folder)), processor, "instance", InferenceOptions(threshold=0.0))
    (result,) = predictor.predict([to_rgb(image)])
    names = {i: f"LABEL_{i}" for i in range(4)}
    assert (found["height"], found["width"]) == (40, 60) and found["segments"]
    expected = describe_segments(result, "instance", names)
    assert [row["area"] for row in found["segments"]] == [row["area"] for row in expected]
    health = httpx.get(f"{address}/health", trust_env=False).json()
    assert health == {"task": "instance", "labels": list(names.values()), "waiting": 0}


def test_clients_at_the_same_time_get_their_own_answers(service):
    """More than may wait: each is answered with its own image's size, or refused in a sentence."""
    address, *_ = service
    sizes = [(40 + i % 3, 60) for i in range(30)]
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda size: post(address, as_bytes(make.photo(*size))), sizes))
    codes = [answer.status_code for answer in answers]
    assert set(codes) <= {200, 503} and codes.count(200) >= 5
    for size, answer in zip(sizes, answers, strict=True):
        if answer.status_code == 200:
            assert (answer.json()["height"], answer.json()["width"]) == size
        else:
            assert answer.json()["detail"] == "8 requests are waiting; try again later"
    assert post(address, as_bytes(make.photo())).status_code == 200


@pytest.mark.parametrize(
    "content, status, message",
    [
        (b"", 422, "it is not an image file"),
        (b"no image", 422, "it is not an image file"),
        (as_bytes(make.photo())[:300], 422, "cannot be decoded"),
        (
            as_bytes(Image.new("RGB", (200, 100))),
            413,
            "the image is too large: it has 20,000 pixels, at most 10,000 are allowed",
        ),
        (b"x" * 100_001, 413, "the request has more than 100000 bytes"),
    ],
)
def test_broken_uploads_are_one_sentence(content, status, message, service):
    answer = post(service[0], content)
    assert answer.status_code == status and message in answer.json()["detail"]
    assert post(service[0], as_bytes(make.photo(), "JPEG")).status_code == 200


def test_answers_in_other_forms(service):
    address, *_ = service
    photo = as_bytes(make.photo())
    found = post(address, photo).json()
    assert found["task"] == "instance" and found["segments"][0].keys() >= {"bbox", "segmentation", "score", "label"}
    rows = post(address, photo, params={"format": "coco"}).json()
    assert [row["segmentation"] for row in rows] == [row["segmentation"] for row in found["segments"]]
    shapes = post(address, photo, params={"format": "labelme"}).json()["shapes"]
    assert len(shapes) == len(rows) and shapes[0]["shape_type"] == "mask"
    overlay = post(address, photo, params={"format": "overlay"})
    assert overlay.headers["content-type"] == "image/png" and Image.open(io.BytesIO(overlay.content)).height >= 40
    for params, message in (
        ({"threshold": "0.99"}, "unknown parameter 'threshold'"),
        ({"format": "x"}, "unknown format"),
    ):
        answer = post(address, photo, params=params)
        assert answer.status_code == 422 and message in answer.json()["detail"]
    form = httpx.post(f"{address}/predict", files={"file": photo}, trust_env=False)
    assert form.status_code == 415 and "--data-binary" in form.json()["detail"]


class Picky:
    """A predictor that fails on black images, and remembers how many images it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(len(images))
        time.sleep(0.05)
        if any(not image.any() for image in images):
            raise RuntimeError("black")
        return [image.float().mean() for image in images]


def test_an_image_that_fails_does_not_fail_its_batch():
    worker = BatchWorker(Picky(), 4)
    images = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (9, 1, 0, 2, 3)]
    futures = [worker.submit(image) for image in images]  # the first one alone, while the others come
    assert [futures[i].result(5).item() for i in (0, 1, 3, 4)] == [9, 1, 2, 3]
    with pytest.raises(RuntimeError, match="black"):
        futures[2].result(5)


def test_places_are_taken_before_an_image_is_decoded():
    admission = Admission(Limits(pixels=100, waiting=30, batch=2))
    for _ in range(10):
        admission.enter()
        admission.decode(100)
    with pytest.raises(HTTPException, match="10 requests are waiting"):
        admission.decode(1)
    for _ in range(22):
        admission.enter()
    with pytest.raises(HTTPException, match="32 requests are waiting"):
        admission.enter()


def test_bodies_that_say_they_are_too_large_are_not_read(service):
    host, port = service[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_what_a_client_that_has_gone_waits_for_is_not_predicted():
    predictor = Picky()
    app = make_app(predictor, {0: "a"}, Limits(batch=1))
    content = as_bytes(make.photo())

    async def leave_all():
        async def receive():
            if not sent:
                sent.append(True)
                return {"type": "http.request", "body": content, "more_body": False}
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
        calls = []
        for _ in range(12):
            sent = []
            calls.append(asyncio.ensure_future(app({**scope, "asgi": {"version": "3.0"}}, receive, send)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*calls, return_exceptions=True)

    predictor_speed = time.perf_counter()
    asyncio.run(leave_all())
    assert len(predictor.seen) < 12 and time.perf_counter() - predictor_speed < 5


def test_slow_clients_are_sent_away():
    async def slow():
        yield b"x"
        await asyncio.sleep(10)

    class Slow:
        headers: ClassVar = {}

        def stream(self):
            return slow()

    with pytest.raises(HTTPException, match=r"408: the request took more than 0\.1 seconds"):
        asyncio.run(read_body(Slow(), Limits(seconds=0.1)))


def test_ports_that_cannot_be_used_are_one_sentence(service):
    address, folder, _ = service
    with pytest.raises(ValueError, match="Cannot listen at 127"):
        serve.main([str(folder), "--port", address.split(":")[-1]])
    with pytest.raises(ValueError, match="port must be at least 0 and at most 65535"):
        serve.main([str(folder), "--port", "99999"])


def test_a_client_that_leaves_and_memory(service):
    """Clients that break off do no harm, and memory does not grow with requests."""
    address, _, process = service
    host, port = address.removeprefix("http://").split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc")
    content = as_bytes(make.photo())
    with httpx.Client(trust_env=False, timeout=120) as client:
        memory = []
        for _ in range(3):
            for _ in range(40):
                assert client.post(f"{address}/predict", content=content).status_code == 200
            memory.append(psutil.Process(process.pid).memory_info().rss >> 20)
    assert memory[-1] - memory[0] < 30, f"MiB after each 40 requests: {memory}"


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "mpformer_hf.inference.service", raising=False)
    with pytest.raises(ValueError, match=r'mpformer serve needs uvicorn: pip install "mpformer-hf\[serve\]"'):
        serve.main(["model"])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        serve.main(["model", "--batch_size", "0"])
