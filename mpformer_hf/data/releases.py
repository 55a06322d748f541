"""Class names, category ids, sizes and thresholds of the datasets of the public releases."""

import json
from pathlib import Path

RELEASES: dict[str, dict] = json.loads((Path(__file__).parent / "release_datasets.json").read_text())


def categories_of(name: str) -> list[dict]:
    """`id` (the dataset's own, or the class id), `name`, `isthing` and, if it is known, `color` of each class."""
    release = RELEASES[name]
    ids, things = release.get("category_ids", range(len(release["names"]))), set(release["things"])
    rows = enumerate(zip(ids, release["names"], strict=True))
    colors = [{"color": color} for color in release.get("colors", [])] or [{}] * len(release["names"])
    return [{"id": category, "name": name, "isthing": int(i in things), **colors[i]} for i, (category, name) in rows]
