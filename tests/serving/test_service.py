"""`mpformer serve`: real HTTP on 127.0.0.1, concurrent clients, broken uploads."""

import asyncio
import io
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import httpx
import numpy as np
import psutil
import pytest
import torch
import uvicorn
from fastapi import HTTPException
from PIL import Image
from scipy.ndimage import label

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli import serve
from mpformer_hf.data.coco_masks import decode_segmentation
from mpformer_hf.data.writers.format import describe_segments
from mpformer_hf.inference.arguments import InferenceOptions
from mpformer_hf.inference.loading import load_model
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.cleaning import without_duplicates
from mpformer_hf.model.images import to_rgb
from mpformer_hf.model.label_maps import encode_rle
from mpformer_hf.serving import service as service_module
from mpformer_hf.serving.service import make_app
from mpformer_hf.serving.uploads import Admission, Limits, read_body, read_prompts
from mpformer_hf.serving.worker import BatchWorker
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
    expected = describe_segments(without_duplicates(result, 0.7), "instance", names)
    assert [row["area"] for row in found["segments"]] == [row["area"] for row in expected]
    health = httpx.get(f"{address}/health", trust_env=False).json()
    assert health["task"] == "instance" and health["labels"] == list(names.values()) and health["waiting"] == 0
    assert health["threshold"] == 0 and health["refine"] and "not trained for boxes" in health["refine_note"]
    assert len(health["colors"]) == 4


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


def test_forms_and_prompts_without_sense_are_refused(service):
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + as_bytes(make.photo())
    headers = {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"}
    assert post(service[0], form + b"\r\n--x--\r\n", headers=headers).status_code == 422
    for text, message in (
        ('{"boxes": [[[], [], []]]}', "each box must be four numbers"),
        ('{"boxes": [[0, 0, 5, true]]}', "each box must be four numbers"),
        ('{"boxes": [[0, 0, 5, NaN]]}', "each box must be four numbers"),
        ('{"masks": [[[0, 0, 5]]]}', "each mask must be an RLE"),
        ('{"boxes": [[0, 0, 5, 5]], "labels": {"cat": 1}}', "labels must be a list"),
        ('{"boxes": [' + " " * (1 << 22) + "]}", "characters, at most 4194304 are allowed"),
    ):
        with pytest.raises(HTTPException, match=message):
            read_prompts(text, 100, {"cat": 0})


def test_connections_without_a_request_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "HEADERS", 0.3)
    config = uvicorn.Config(
        lambda *_: None, http=service_module.ImpatientProtocol, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        for sent in (b"", b"GET /he"):
            with socket.create_connection(listening.getsockname(), timeout=10) as client:
                client.sendall(sent)
                assert client.recv(100) == b"", "the service waits for the headers for ever"
    finally:
        server.should_exit = True
        thread.join(10)


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
    labels = post(address, photo, params={"format": "png"})
    assert Image.open(io.BytesIO(labels.content)).size == (60, 40)
    fewer = post(address, photo, params={"threshold": str(found["segments"][0]["score"])}).json()["segments"]
    assert len(fewer) < len(found["segments"])
    largest = post(address, photo, params={"min_pixels": str(40 * 60)}).json()["segments"]  # one part each, no hole
    masks = [decode_segmentation(row["segmentation"], 40, 60) for row in largest]
    assert any(row["area"] < 2400 for row in largest) and all(label(mask)[1] == 1 for mask in masks)
    for task in ("semantic", "panoptic", "instance"):
        answer = post(address, photo, params={"task": task}).json()
        assert answer["task"] == task and all(row["segmentation"]["counts"] for row in answer["segments"])
        names = sorted({row["label"] for row in answer["segments"]})
        some = names[: max(1, len(names) - 1)]
        only = post(address, photo, params={"task": task, "label": some}).json()["segments"]
        assert only == [row for row in answer["segments"] if row["label"] in some]
        others = [f"LABEL_{i}" for i in range(3) if f"LABEL_{i}" not in names]
        if others:
            assert post(address, photo, params={"task": task, "label": others}).json()["segments"] == []
    for params, message in (
        ({"threshold": "1.5"}, "threshold: Input should be less than or equal to 1"),
        ({"nms": "0.5", "task": "panoptic"}, "nms has no effect on panoptic segmentation: leave it out."),
        ({"size": "3"}, "unknown parameter 'size'; known are format, task, threshold, nms, min_pixels, label"),
        ({"label": "x"}, "label: the model has no class 'x'"),
        ({"format": "x"}, "format: Input should be 'json', 'coco', 'labelme', 'overlay' or 'png'"),
        ({"task": "x"}, "task: Input should be"),
    ):
        answer = post(address, photo, params=params)
        assert answer.status_code == 422 and message in answer.json()["detail"]
    for field in ("image", "file"):
        form = httpx.post(f"{address}/predict", files={field: photo}, trust_env=False, timeout=60)
        assert form.json() == found
    form = httpx.post(f"{address}/predict", files={"picture": photo}, trust_env=False)
    assert form.status_code == 422 and "no file in a field image or file" in form.json()["detail"]
    form = httpx.post(f"{address}/predict", files={"image": photo}, data={"task": "semantic"}, trust_env=False)
    assert form.status_code == 422 and "unknown field 'task'" in form.json()["detail"]
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:20, 10:30] = True
    for task in ("instance", "panoptic", "semantic"):
        added = json.dumps({"masks": [encode_rle(mask)], "labels": ["LABEL_2"]})
        form = {"files": {"image": photo}, "data": {"added": added}, "params": {"task": task, "format": "coco"}}
        rows = httpx.post(f"{address}/predict", **form, trust_env=False, timeout=60).json()
        (row,) = [row for row in rows if row["category_id"] == 2 and row["score"] == 1.0]
        there = decode_segmentation(row["segmentation"], 40, 60)
        assert there[mask].all() and (task == "semantic" or np.array_equal(there, mask))
    for added in ({"masks": [encode_rle(mask)]}, {"boxes": [[1, 1, 9, 9]], "labels": ["LABEL_2"]}):
        form = {"files": {"image": photo}, "data": {"added": json.dumps(added)}}
        answer = httpx.post(f"{address}/predict", **form, trust_env=False)
        assert answer.status_code == 422 and answer.json()["detail"] == "added must have masks, and a label for each"
    broken = {"content-type": "multipart/form-data; boundary=x"}
    form = httpx.post(f"{address}/predict", content=b"junk", headers=broken, trust_env=False)
    assert form.status_code == 422


def test_boxes_and_masks_are_refined(service):
    address, folder, _ = service
    photo, boxes = make.photo(), [[5, 5, 30, 30], [20, 10, 50, 35]]
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[5:30, 5:30] = True
    predictor = Predictor(load_model(str(folder)), MPFormerImageProcessor.from_pretrained(folder))

    def refine(prompts, image=photo):
        data = {"prompts": prompts if isinstance(prompts, str) else json.dumps(prompts)}
        files = {"image": as_bytes(image)}
        return httpx.post(f"{address}/refine", files=files, data=data, trust_env=False, timeout=60)

    for given, ours in (
        ({"boxes": boxes, "labels": ["LABEL_1", None]}, {"boxes": boxes, "labels": [1, -1]}),
        ({"masks": [encode_rle(mask.numpy())]}, {"masks": mask[None]}),
        ({"masks": [encode_rle(mask[::5, ::5].numpy())]}, {"masks": mask[None]}),
    ):
        answer = refine(given).json()
        expected = predictor.refine(to_rgb(photo), **ours)
        assert [row["area"] for row in answer["segments"]] == expected["segmentation"].sum((1, 2)).tolist()
        scores = [row["score"] for row in expected["segments_info"]]
        assert [row["score"] for row in answer["segments"]] == pytest.approx(scores, abs=1e-4)
    for prompts, message in (
        ("", "the prompts cannot be read"),
        ({"boxes": boxes, "masks": []}, "give boxes or masks, one of them"),
        ({"boxes": [[1, 2, 3]]}, "the prompts cannot be read"),
        ({"boxes": [[1, 2, 3, "a"]]}, "the prompts cannot be read"),
        ({"boxes": [[0, 0, 9, 9]] * 201}, "there are 201 prompts, at most 200"),
        ({"boxes": boxes, "names": ["LABEL_1", None]}, "JSON with boxes or masks, and perhaps labels"),
        (f'{{"boxes": [[1, 1, {"9" * 400}, 20]]}}', "the prompts cannot be read"),
        ('{"masks": [{"size": [Infinity, 1], "counts": [1]}]}', "the prompts cannot be read"),
        ("[" * 50_000, "the prompts cannot be read"),
        ({"boxes": [[70, 70, 90, 90]]}, "outside"),
        ({"boxes": boxes, "labels": ["cow", None]}, "labels must be a class name or null"),
        ({"masks": [{"size": [10**6, 10**6], "counts": [1]}]}, "a mask is 1000000x1000000"),
        (
            {"masks": 7 * [{"size": [4096, 4096], "counts": [0, 1 << 24]}]},
            "the masks have more than 100,000,000 pixels",
        ),
        ({"masks": [{"size": [30, 60], "counts": [1800]}]}, "a mask is 30x60, the image as it is shown"),
        ({"masks": [{"size": "ab", "counts": [1]}]}, "each mask must be an RLE with size"),
    ):
        answer = refine(prompts)
        assert answer.status_code == 422 and message in answer.json()["detail"], answer.text


def test_large_images_have_few_prompts():
    text = json.dumps({"boxes": [[0, 0, 9, 9]] * 9})
    assert len(read_prompts(text, 10**7, {}).boxes) == 9
    with pytest.raises(HTTPException, match="there are 9 prompts, at most 8 are allowed in an image of this size"):
        read_prompts(text, 12_000_000, {})


def test_figures_and_description(service):
    """Figures as Prometheus reads them; OpenAPI says what is sent and which errors there are."""
    address, *_ = service
    post(address, as_bytes(make.photo()))
    post(address, b"junk")
    lines = httpx.get(f"{address}/metrics", trust_env=False).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert int(values['mpformer_requests_total{path="/predict",status="200"}']) >= 1
    assert int(values['mpformer_requests_total{path="/predict",status="422"}']) >= 1
    assert values["mpformer_waiting"] == "0"
    buckets = [int(value) for key, value in values.items() if "_bucket" in key]
    assert buckets == sorted(buckets) and str(buckets[-1]) == values["mpformer_request_seconds_count"]
    described = httpx.get(f"{address}/openapi.json", trust_env=False).json()["paths"]
    predict, refine = (described[path]["post"] for path in ("/predict", "/refine"))
    assert set(predict["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    assert predict["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == ["image"]
    assert refine["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == ["image", "prompts"]
    assert {"408", "413", "422", "500", "503"} <= set(predict["responses"])
    assert {row["name"] for row in predict["parameters"]} == {
        "format",
        "task",
        "threshold",
        "nms",
        "min_pixels",
        "label",
    }


def test_a_file_of_the_page_and_no_other(service):
    address, *_ = service
    page = httpx.get(address, trust_env=False)
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    for name, kind in (("page.css", "text/css"), ("page.js", "javascript")):
        assert kind in httpx.get(f"{address}/{name}", trust_env=False).headers["content-type"]
    for name in ("page.html", "page.py", "../service.py", "page/index.html", "%2e%2e/service.py"):
        assert httpx.get(f"{address}/{name}", trust_env=False).status_code in (404, 422)


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
    picky = Picky()
    worker = BatchWorker(lambda images, _: picky(images), 4)
    images = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (9, 1, 0, 2, 3)]
    futures = [worker.submit(image, "same") for image in images]  # the first one alone, while the others come
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
    whole = Predictor(tiny_model(), MPFormerImageProcessor(task="instance"))
    app = make_app(whole, Limits(batch=1), lambda images, _: predictor(images))
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
        asyncio.run(read_body(Slow(), Limits(seconds=0.1), lambda count: None))


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
    monkeypatch.delitem(sys.modules, "mpformer_hf.serving.service", raising=False)
    with pytest.raises(ValueError, match=r'mpformer serve needs uvicorn: pip install "mpformer-hf\[serve\]"'):
        serve.main(["model"])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        serve.main(["model", "--batch_size", "0"])


def test_requests_together_have_a_limit():
    """Ten of the largest size; what is refused frees nothing that others hold."""
    admission = Admission(Limits(body=100))
    for _ in range(10):
        admission.receive(100)
    with pytest.raises(HTTPException) as refused:
        admission.receive(1)
    assert refused.value.status_code == 503 and admission.bytes == 1000
