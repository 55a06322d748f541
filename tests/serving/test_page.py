"""The page of `mpformer serve` in a real browser, Chromium."""

import io
import json
import subprocess
import sys

import httpx
import pytest
import torch
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from tests.browser import CHROMIUM, started_browser
from tests.tiny import tiny_model

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
expect = playwright.expect
WAIT = 60_000  # milliseconds


def save_photo(path, size):
    """A JPEG that its EXIF data turn: `size` is (width, height) as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    small = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(small.numpy()).resize(size[::-1]).save(path, quality=60, exif=exif)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return save_photo(tmp_path_factory.mktemp("photos") / "photo.jpg", (300, 400))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    torch.manual_seed(0)
    model = tiny_model(decoder_layers=3, pilot_noise="box")
    model.class_predictor.weight.data.mul_(40)  # scores that differ
    model.save_pretrained(folder)
    MPFormerImageProcessor(task="instance", size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    command = [sys.executable, "-m", "mpformer_hf", "serve", str(folder), "--port", "0", "--threshold", "0.25"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().split(" at ")[1].split()[0], process
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def browser():
    with started_browser() as started:
        yield started


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    opened, problems = context.new_page(), []
    opened.on("pageerror", lambda error: problems.append(error))
    opened.goto(address[0])
    yield opened
    context.close()
    assert not problems


def predict(address, photo, **params):
    answer = httpx.post(
        f"{address[0]}/predict", content=photo.read_bytes(), params=params, trust_env=False, timeout=120
    )
    return answer


def choose(page, photo, size="300 x 400"):
    page.set_input_files("#file", photo)
    expect(page.locator("#status")).to_contain_text(f"{size} pixels", timeout=WAIT)


def shown(page) -> int:
    return int(page.locator("#canvas").get_attribute("data-shown"))


def test_a_photo_its_segments_and_the_slider(page, address, photo):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    choose(page, photo)
    segments = predict(address, photo, threshold=0.2).json()["segments"]
    assert len({segment["label"] for segment in segments}) > 1
    assert shown(page) == sum(segment["score"] >= 0.25 for segment in segments)
    assert page.locator("#segments li").count() == shown(page)
    number = len(requests)
    highest = max(segment["score"] for segment in segments)
    for threshold in (0.2, 0.5, 0.9):
        page.fill("#threshold", str(threshold))
        assert shown(page) == sum(segment["score"] >= threshold for segment in segments)
    page.focus("#threshold")
    page.keyboard.press("Home")
    assert shown(page) == len(segments) and highest > 0.2
    assert len(requests) == number, "the slider needs no request"
    name = segments[0]["label"]
    page.get_by_role("button", name=name, exact=True).click()
    assert shown(page) == sum(segment["label"] != name for segment in segments)
    page.get_by_role("button", name=name, exact=True).press("Enter")
    assert shown(page) == len(segments)


COVERED = """() => {
    const canvas = document.getElementById("canvas"), { width, height } = canvas;
    const read = () => canvas.getContext("2d").getImageData(0, 0, width, height).data;
    const shown = read().slice(), pixels = [];
    for (const button of document.querySelectorAll("#classes button")) button.click();
    const plain = read();
    for (let y = 2; y < height; y += Math.ceil(height / 40)) {
        for (let x = 2; x < width; x += Math.ceil(width / 40)) {
            const i = 4 * (y * width + x);
            pixels.push([x / width, y / height, [0, 1, 2].some((c) => shown[i + c] !== plain[i + c])]);
        }
    }
    return pixels;
}"""  # where hiding all classes changes the picture


@pytest.mark.parametrize("size", [(300, 400), (3000, 4000)])
def test_masks_on_the_canvas_are_those_of_the_service(page, address, tmp_path, size):
    """Also of a photo of a phone with 12 megapixels: what the label map covers has a colour."""
    photo = save_photo(tmp_path / "photo.jpg", size)
    choose(page, photo, "{} x {}".format(*size))
    page.focus("#threshold")
    page.keyboard.press("Home")
    labels = Image.open(io.BytesIO(predict(address, photo, threshold=0.2, format="png").content))
    covered = page.evaluate(COVERED)
    agree = [
        (labels.getpixel((int((x + 1e-3) * size[0]), int((y + 1e-3) * size[1]))) != 255) == there
        for x, y, there in covered
    ]
    assert labels.size == size and sum(there for *_, there in covered) / len(covered) > 0.05
    assert sum(agree) / len(agree) > 0.97


def test_a_box_and_a_rough_mask_become_masks(page, photo):
    choose(page, photo)
    before = shown(page)
    place = page.locator("#canvas").bounding_box()
    page.get_by_label("Draw a box").check()
    page.mouse.move(place["x"] + 60, place["y"] + 60)
    page.mouse.down()
    page.mouse.move(place["x"] + 300, place["y"] + 320)
    page.mouse.up()
    page.get_by_role("button", name="Refine").click()
    expect(page.locator("#status")).to_contain_text("Added", timeout=WAIT)
    assert shown(page) == before + 1 and "refined" in page.locator("#segments li").first.text_content()
    with page.expect_download(timeout=WAIT) as download:
        page.get_by_role("button", name="COCO", exact=True).click()
    rows = json.loads(download.value.path().read_text())
    assert sum(row["score"] == 1.0 for row in rows) == 1  # the added mask
    page.get_by_label("Paint roughly").check()
    page.mouse.move(place["x"] + 100, place["y"] + 100)
    page.mouse.down()
    page.mouse.move(place["x"] + 200, place["y"] + 200, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Refine").click()
    expect(page.locator("#canvas")).to_have_attribute("data-shown", str(before + 2), timeout=WAIT)
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    assert shown(page) == before and page.get_by_role("button", name="Undo").is_disabled()
    page.get_by_label("Draw a box").check()
    page.focus("#canvas")  # by the keyboard alone
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Added", timeout=WAIT)


@pytest.mark.parametrize(
    "name, form", [("Picture", "overlay"), ("Label map", "png"), ("COCO", "coco"), ("labelme", "labelme")]
)
def test_downloads_are_those_of_the_service(page, address, photo, tmp_path, name, form):
    choose(page, photo)
    with page.expect_download(timeout=WAIT) as download:
        page.get_by_role("button", name=name, exact=True).click()
    download.value.save_as(tmp_path / "file")
    expected = predict(address, photo, threshold=0.25, format=form)
    if form == "labelme":
        assert json.loads((tmp_path / "file").read_text()) == {**expected.json(), "imagePath": "photo.jpg"}
    else:
        assert (tmp_path / "file").read_bytes() == expected.content
    ends = {"overlay": "_overlay.png", "png": "_labels.png", "coco": "_coco.json", "labelme": ".json"}
    assert download.value.suggested_filename == f"photo{ends[form]}"


def test_downloads_leave_hidden_classes_out(page, photo):
    choose(page, photo)
    classes = page.locator("#classes button")
    names = classes.all_text_contents()
    assert len(names) > 1
    classes.first.click()
    with page.expect_download(timeout=WAIT) as download:
        page.get_by_role("button", name="labelme", exact=True).click()
    shapes = json.loads(download.value.path().read_text())["shapes"]
    assert shapes and {shape["label"] for shape in shapes} <= set(names[1:])
    for button in classes.all()[1:]:
        button.click()
    page.get_by_role("button", name="COCO", exact=True).click()
    expect(page.locator("#status.error")).to_have_text("All classes are hidden, so there is nothing to save.")


def test_the_segment_under_the_pointer(page, photo):
    choose(page, photo)
    page.locator("#segments li").first.focus()
    place, text = page.locator("#canvas").bounding_box(), ""
    for x in range(20, int(place["width"]) - 20, 40):
        page.mouse.move(place["x"] + x, place["y"] + 200)
        text = text or (page.locator("#tip").text_content() if page.locator("#tip").is_visible() else "")
    assert "pixels" in text and "LABEL_" in text


@pytest.mark.parametrize("width, scheme", [(360, "light"), (768, "light"), (2000, "dark")])
def test_it_fits_every_width(browser, address, photo, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address[0])
    choose(page, photo)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.locator("#drop").is_hidden()
    context.close()


def test_what_goes_wrong_is_said(page, address, tmp_path, photo):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:2000])
    page.set_input_files("#file", broken)
    expect(page.locator("#status.error")).to_contain_text("cannot be", timeout=WAIT)
    page.route("**/predict**", lambda route: route.abort())  # as if the service had gone
    page.set_input_files("#file", photo)
    expect(page.locator("#status.error")).to_contain_text("The service does not answer", timeout=WAIT)
    page.unroute("**/predict**")
    choose(page, photo)
    assert page.locator("#status.error").count() == 0
