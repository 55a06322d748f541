"""Class names, sizes and thresholds of the datasets of the public releases."""

import json
from pathlib import Path

RELEASES: dict[str, dict] = json.loads((Path(__file__).parent / "release_datasets.json").read_text())
