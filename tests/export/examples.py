"""Runs the programs of docs/examples: Python, C++ and a page in a browser."""

import functools
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

from tests.browser import CHROMIUM, started_browser

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
WEB = ROOT / "outputs" / "web" / "node_modules" / "onnxruntime-web" / "dist"  # where .ci/run installs it
WEB_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
LINE = re.compile(r"^(.+?)(?:\t([\d.]*)\t| ([\d.]+), |, )([\d.]+)% of the image$", re.MULTILINE)


def rows_of(text: str) -> list[tuple[str, float, float]]:
    """Label, score (0 where there is none) and percentage of each line."""
    return sorted((label, float(one or other or 0), float(share)) for label, one, other, share in LINE.findall(text))


def run_python(file: Path, photo: Path) -> list:
    """Torch and transformers are not imported."""
    command = [sys.executable, "-X", "importtime", str(EXAMPLES / "segment.py"), str(file), str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not re.search(r"\| +(torch|transformers)$", done.stderr, re.MULTILINE)
    return rows_of(done.stdout)


@functools.cache
def build() -> Path | None:
    """The C++ program; None without a compiler or OpenVINO."""
    found = find_spec("openvino")
    if found is None or shutil.which("g++") is None:
        return None
    place, program = Path(found.submodule_search_locations[0]), Path(tempfile.mkdtemp()) / "segment"
    (library,) = (place / "libs").glob("libopenvino.so.*")
    options = ["-std=c++17", "-Wall", "-Werror", f"-I{place / 'include'}", str(library), f"-Wl,-rpath,{place / 'libs'}"]
    subprocess.run(["g++", str(EXAMPLES / "segment.cpp"), *options, "-o", str(program)], check=True)
    return program


def run_cpp(file: Path, photo: Path) -> list | None:
    """The map has the pixels of the lines, as far as they are not covered by better ones."""
    program = build()
    if program is None:
        return None
    image, drawn = photo.with_suffix(".ppm"), photo.with_suffix(".pgm")
    ImageOps.exif_transpose(Image.open(photo)).convert("RGB").save(image)
    done = subprocess.run([program, file, image, drawn], capture_output=True, text=True, check=True)
    rows = rows_of(done.stdout)
    assert max(Image.open(drawn).getdata()) <= len(rows)
    refused = subprocess.run([program, file, drawn], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.endswith("is no binary PPM of 8 bits\n")
    return rows


def run_page(file: Path, photo: Path) -> list | None:
    """None without Chromium or onnxruntime-web."""
    if CHROMIUM is None or not WEB.is_dir() or find_spec("playwright") is None:
        return None
    from playwright.sync_api import expect

    with tempfile.TemporaryDirectory() as folder:
        for name in WEB_FILES:
            (Path(folder) / name).symlink_to(WEB / name)
        shutil.copy(EXAMPLES / "browser.html", folder)
        shutil.copy(file, Path(folder) / "model.onnx")
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with started_browser() as browser:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/browser.html")
            page.locator("#photo:enabled").set_input_files(photo, timeout=60_000)
            expect(page.locator("#status")).to_have_text(re.compile(r"^(Segments|Nothing|Error)"), timeout=60_000)
            assert page.locator("#canvas").is_visible(), page.locator("#status").inner_text()
            text = page.locator("#segments").inner_text()
        server.shutdown()
        server.server_close()
    return rows_of(text)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass
