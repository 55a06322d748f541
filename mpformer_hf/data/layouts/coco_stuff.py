"""COCO-Stuff: pixel maps of things and stuff beside the images of COCO 2017."""

from pathlib import Path

from ...utils.files import read_json
from ..tables import read_semantic
from .folder import FolderLayout, FolderSplit, folder_of_split, make_rows, pair_by_stem, row_of

NAMES = Path(__file__).with_name("coco_stuff_names.json")


class CocoStuff(FolderLayout):
    """Maps of ids 0..181 (171 of them are classes), 255 = void."""

    name = "COCO-Stuff (stuffthingmaps, train2017)"
    tasks = ("semantic",)

    def parts(self, folder: Path) -> dict[str, bool]:
        images = any(
            (folder / parent / name).is_dir() for parent in ("", "images") for name in ("train2017", "val2017")
        )
        return {"stuffthingmaps/": (folder / "stuffthingmaps").is_dir(), "train2017/ or val2017/": images}

    def source(self, folder: Path, split: str, task: str) -> Path:
        return folder_of_split(folder / "stuffthingmaps", split)

    def read(self, folder: Path, split: str, task: str, version: str | None) -> FolderSplit:
        maps = self.source(folder, split, task)
        places = [folder / maps.name, folder / "images" / maps.name]
        images = next((place for place in places if place.is_dir()), None)
        if images is None:
            raise ValueError(f"{folder} has no images {maps.name}/ for {maps}.")
        rows = [row_of(image, label=label) for image, label in pair_by_stem(images, maps)]
        for row in rows:  # numbers, as COCO has them
            row["image_id"] = int(row["image_id"]) if row["image_id"].isdecimal() else row["image_id"]
        categories = [{"id": int(i), "name": name} for i, name in read_json(NAMES).items()]
        return FolderSplit(make_rows(rows), categories, read_semantic)
