"""`mpformer serve`: real HTTP on 127.0.0.1, concurrent clients, broken uploads."""

import io
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import torch
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.data.writers.format import describe_segments
from mpformer_hf.inference.loading import load_model
from mpformer_hf.inference.predictor import InferenceOptions, Predictor
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
    (result,) = predictor([to_rgb(image)])
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
            assert answer.json()["detail"] == "4 requests are waiting; try again later"
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
    from mpformer_hf.cli import serve

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match=r'mpformer serve needs uvicorn: pip install "mpformer-hf\[serve\]"'):
        serve.main(["model"])
    with pytest.raises(ValueError, match="--batch_size must be at least 1"):
        serve.main(["model", "--batch_size", "0"])
