"""Self-contained HTML pages from the templates of this folder: pictures and plots are in the page."""

import base64
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ..data.labels import Labels
from ..inference.drawing import class_color
from ..utils.files import write_text
from .drawing import DrawnSides

LARGEST_SIDE = 1600  # of an embedded picture, in pixels
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def write_page(file: Path, template: str, **content) -> None:
    """Write the page of a template. Texts are escaped."""
    write_text(TEMPLATES.get_template(template).render(**content), file)


def embedded(image: Image.Image) -> str:
    """The URI of a picture with its pixels in it."""
    buffer = io.BytesIO()
    image = image.convert("RGB")
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    image.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def embedded_plot(draw: Callable[[io.BytesIO], None]) -> str:
    """The URI of a plot; `draw` writes it as SVG."""
    buffer = io.BytesIO()
    draw(buffer)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_of(sides: DrawnSides, caption: str, *tags: str) -> dict:
    """A picture of two sides, which the buttons of its classes, and of other `tags`, show."""
    return {
        "tags": " ".join([*map(str, sorted(sides.label_ids)), *tags]),
        "caption": caption,
        "truth": embedded(sides.truth),
        "prediction": embedded(sides.prediction),
    }


def class_buttons(label_ids: Iterable[int], labels: Labels) -> list[dict]:
    """Buttons of classes, with their colours."""
    return [
        {"value": label, "text": labels.names[label], "color": class_color(label, labels.palette)}
        for label in sorted(set(label_ids))
    ]
