"""NuInsSeg (nuclei in H&E-stained tissue) as downloaded: a folder for each organ."""

from pathlib import Path

import numpy as np
import torch
from datasets import Image

from ...model.images import is_not_black
from ..labels import Labels
from ..segments import Segments, read_map
from .folder import FolderLayout, FolderSplit, images_in, make_rows, row_of

IMAGES, VAGUE = "tissue images", Path("vague areas") / "mask binary"
MAPS = ("label masks modify", "label masks")  # with and without touching nuclei divided
NUCLEUS, TISSUE = 0, 1
CATEGORIES = [{"id": NUCLEUS, "name": "nucleus", "isthing": 1}, {"id": TISSUE, "name": "tissue", "isthing": 0}]


def read_nuclei(row: dict, labels: Labels) -> Segments:
    """Maps of nuclei; the rest is tissue. Vague areas without a nucleus are void."""
    map_ = read_map(row["label"])
    vague = is_not_black(row["vague"]) if row["vague"] is not None else np.zeros(map_.shape, dtype=bool)
    if vague.shape != map_.shape:
        raise ValueError(f"the map of vague areas is {vague.shape}, that of nuclei {map_.shape} (height, width)")
    nuclei = np.unique(map_[map_ > 0]).tolist()
    tissue = max(nuclei, default=0) + 1
    map_ = np.where(map_ > 0, map_, np.where(vague, 0, tissue)).astype(np.int32)
    classes = dict.fromkeys(nuclei, labels.category_to_class[NUCLEUS])
    if TISSUE in labels.category_to_class:
        classes[tissue] = labels.category_to_class[TISSUE]
    return Segments(torch.from_numpy(map_), classes)


class NuInsSeg(FolderLayout):
    """Nuclei are things, the tissue around them is stuff. There are no splits: `--validation_share`."""

    name = "NuInsSeg (ORGAN/tissue images, ORGAN/label masks)"
    tasks = ("instance", "panoptic")

    def parts(self, folder: Path) -> dict[str, bool]:
        return {
            f"*/{IMAGES}/": any(folder.glob(f"*/{IMAGES}")),
            f"*/{MAPS[1]}/": any(any(folder.glob(f"*/{name}")) for name in MAPS),
        }

    def source(self, folder: Path, split: str, task: str) -> Path:
        return folder

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        rows = []
        for organ in sorted(path.parent for path in folder.glob(f"*/{IMAGES}")):
            maps = next((organ / name for name in MAPS if (organ / name).is_dir()), None)
            for image in images_in(organ / IMAGES):
                label = maps and next((p for p in images_in(maps) if p.stem == image.stem), None)
                if label is None:
                    raise ValueError(f"{image} has no label in {organ / MAPS[0]}.")
                vague = organ / VAGUE / f"{image.stem}.png"
                rows.append(row_of(image, label=label, vague=vague if vague.is_file() else None))
        if not rows:
            raise ValueError(f"{folder} has no images.")
        return FolderSplit(make_rows(rows, vague=Image()), CATEGORIES, read_nuclei)
