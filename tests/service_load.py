"""Many clients of `mpformer serve`, and a tenth of them send junk, stop in the middle or leave.

Every good request must get its own answer, and memory must stay level.

python -m tests.service_load --requests 2000
"""

import argparse
import io
import random
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

from mpformer_hf import MPFormerImageProcessor
from tests.datasets_on_disk import photo
from tests.tiny import tiny_model

BLOCKS = 4  # of requests; the memory is read after each
BUSY = 503


def shape_of(answer: dict) -> tuple:
    """Of an answer what a batch with other images must not change: its size and its segments' areas."""
    return answer["height"], answer["width"], [segment["area"] for segment in answer["segments"]]


def as_png(height: int) -> bytes:
    buffer = io.BytesIO()
    photo(height, 60).save(buffer, "PNG")
    return buffer.getvalue()


def leave(address: tuple[str, int], content: bytes, sent: int) -> None:
    """Send a part of a request, or all of it, and go."""
    with socket.create_connection(address) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[:sent])


def run(requests: int, clients: int = 24) -> tuple[list, list[int]]:
    """What went wrong, and MiB of the service after each block."""
    wrong: list = []
    with tempfile.TemporaryDirectory() as folder:
        tiny_model().save_pretrained(folder)
        MPFormerImageProcessor(task="instance", size={"height": 64, "width": 64}).save_pretrained(folder)
        command = [sys.executable, "-m", "mpformer_hf", "serve", folder, "--port", "0", "--threshold", "0"]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        url = service.stdout.readline().split(" at ")[1].split()[0]  # type: ignore[union-attr]
        host, port = url.removeprefix("http://").split(":")
        images = [as_png(40 + index) for index in range(8)]
        with httpx.Client(trust_env=False, timeout=120, limits=httpx.Limits(max_connections=clients)) as client:
            expected = [shape_of(client.post(f"{url}/predict", content=image).json()) for image in images]

            def one(number: int) -> None:
                draw = random.Random(number)
                kind, index = draw.random(), draw.randrange(8)
                if kind < 0.04:
                    status = client.post(f"{url}/predict", content=b"junk" * draw.randint(1, 200)).status_code
                    wrong.extend([("junk", status)] * (status not in (422, BUSY)))
                elif kind < 0.1:
                    leave((host, int(port)), images[index], 100 if kind < 0.07 else len(images[index]))
                else:
                    answer = client.post(f"{url}/predict", content=images[index])
                    right = answer.status_code == BUSY or shape_of(answer.json()) == expected[index]
                    wrong.extend([(index, answer.status_code)] * (not right))

            memory = []
            with ThreadPoolExecutor(clients) as pool:
                for block in range(BLOCKS):
                    list(pool.map(one, range(block * requests // BLOCKS, (block + 1) * requests // BLOCKS)))
                    memory.append(psutil.Process(service.pid).memory_info().rss >> 20)
        service.terminate()
        service.wait(60)
    return wrong, memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    found, levels = run(parser.parse_args().requests)
    print(f"wrong: {len(found)} {found[:5]}; MiB after each quarter: {levels}")
    sys.exit(bool(found))
