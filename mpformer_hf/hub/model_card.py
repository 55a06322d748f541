"""Model cards: one template for converted, fine-tuned and published models."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from ..utils.files import write_text

CARD = """---
{metadata}
---

# {title}
{use}
## About

{body}
"""
USE = """
## Use

```bash
pip install mpformer-hf
```

```python
import mpformer_hf

predictor = mpformer_hf.Predictor.from_pretrained("{model}")
result = predictor("photo.jpg")  # or a URL, a PIL image, an array, a list
result.draw().save("overlay.png")
print([(segment.label, segment.score, segment.box) for segment in result])
```
"""
USE_WITH_CODE = """
## Use

```bash
pip install "torch>=2.11" "transformers>=5.17" torchvision
```

```python
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="{model}", trust_remote_code=True)
segments = segmenter("photo.jpg")
print([(segment["label"], segment["score"]) for segment in segments])
```
"""


def escape(text: str) -> str:
    """A name from outside as one line of markdown that is neither HTML nor code."""
    return html.escape(" ".join(text.split())).replace("`", "'")


def replace_use_section(text: str, section: str) -> str:
    """Replace the section "Use" of a card, or append it."""
    pattern = r"\n## Use\n.*?(?=\n## |\Z)"
    if re.search(pattern, text, re.DOTALL):
        return re.sub(pattern, lambda _: section, text, count=1, flags=re.DOTALL)
    return text.rstrip() + "\n" + section


def write_card(folder: Path, body: str, title: str | None = None, tags: Sequence[str] = (), **metadata) -> None:
    """Write `README.md` into a folder.

    Args:
        folder: of the saved model.
        body: text below the title.
        title: default: the folder's name.
        tags: in addition to those of every MP-Former.
        metadata: other fields of `huggingface_hub.ModelCardData`.
    """
    title = title or folder.resolve().name
    tags = ["mp-former", "mask2former", *tags]
    data = ModelCardData(library_name="transformers", pipeline_tag="image-segmentation", tags=tags, **metadata)
    use = USE.format(model=f"path/to/{escape(title)}")
    text = CARD.format(metadata=data.to_yaml(), title=escape(title), use=use, body=body.strip())
    write_text(text, folder / "README.md")
