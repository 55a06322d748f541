"""Pages in a real browser, Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = ((360, "dark"), (768, "light"), (1600, "dark"))


@contextmanager
def started_browser() -> Iterator:
    """A browser; skips the test without one."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def check_page(file) -> None:
    """A page of pictures fits phones, tablets and large screens, is light or dark as the system, shows its pictures,
    and can be used by keyboard: Enter enlarges a picture, and a button chooses pictures."""
    with started_browser() as browser:
        for width, scheme in WIDTHS:
            context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page, problems = context.new_page(), list[str]()
            page.on("pageerror", lambda error, told=problems: told.append(str(error)))
            page.goto(file.as_uri())
            fits = "document.documentElement.scrollWidth <= window.innerWidth"
            assert page.evaluate(fits), f"{file} at {width} pixels"
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(255, 255, 255)") == (scheme == "light")
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            figure = page.locator("figure:has(.sides)").first
            sides = figure.locator(".sides")
            sides.focus()
            before = sides.bounding_box()["height"]
            page.keyboard.press("Enter")
            assert figure.evaluate("figure => figure.classList.contains('large')") and page.evaluate(fits)
            assert sides.bounding_box()["height"] >= before
            page.keyboard.press("Enter")
            if page.locator(".classes button").count():
                button = page.locator(".classes button").first
                button.focus()
                page.keyboard.press("Enter")
                tag = button.get_attribute("value")
                assert button.get_attribute("aria-pressed") == "true"
                for shown in page.locator("figure:has(.sides)").all():
                    assert shown.is_visible() == (tag in shown.get_attribute("data-classes").split())
            assert not problems
            context.close()
