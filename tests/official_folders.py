"""Miniature datasets in the layouts in which owners and annotation tools distribute them.

All show the same scenes: a sky (stuff), a road (stuff) and cars (things), one beside the other.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tests.datasets_on_disk import photo

HEIGHT, WIDTH = 48, 64
CARS = [(slice(20, 40), slice(4, 24)), (slice(22, 44), slice(34, 60))]  # 400 and 572 pixels
SPLITS = ("train", "val")


def save(values: np.ndarray, path: Path) -> Path:
    """Write a PNG; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def save_photo(path: Path) -> Path:
    """Write a picture of noise; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(HEIGHT, WIDTH).save(path)
    return path


def scene(sky, road, cars, dtype=np.uint8, void=None) -> np.ndarray:
    """A map of given values; the right border is void."""
    map_ = np.full((HEIGHT, WIDTH), road, dtype=dtype)
    map_[:16] = sky
    for where, value in zip(CARS, cars, strict=True):
        map_[where] = value
    if void is not None:
        map_[:, -2:] = void
    return map_


def cityscapes(folder: Path) -> Path:
    """Sky 23, road 7, cars 26; a group of persons, an ego vehicle (void) and a caravan with an instance (void)."""
    for split in SPLITS:
        for number in range(2):
            base = f"berlin_{number:06d}_000019"
            save_photo(folder / "leftImg8bit" / split / "berlin" / f"{base}_leftImg8bit.png")
            labels = scene(23, 7, (26, 26))
            instances = scene(23, 7, (26000, 26001), np.uint16)
            for map_, caravan in ((labels, 29), (instances, 29000)):
                map_[44:, :] = 1
                map_[16:20, :20] = 24
                map_[16:20, 40:] = caravan
            place = folder / "gtFine" / split / "berlin"
            save(labels, place / f"{base}_gtFine_labelIds.png")
            save(instances, place / f"{base}_gtFine_instanceIds.png")
    return folder


def ade20k(folder: Path) -> Path:
    """Sky 3, road 7, cars 21 (instance class 9), other 0."""
    for split, short in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            name = f"ADE_{short}_{number:08d}"
            save_photo(folder / "images" / split / f"{name}.jpg")
            save(scene(3, 7, (21, 21), void=0), folder / "annotations" / split / f"{name}.png")
            instances = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            for i, where in enumerate(CARS, start=1):
                instances[where] = 9, i, 0
            save(instances, folder / "annotations_instance" / split / f"{name}.png")
    return folder


def ade20k_prepared(folder: Path) -> Path:
    """With the panoptic JSON and maps that Mask2Former's preparation script writes."""
    ade20k(folder)
    for split, short in (("training", "train"), ("validation", "val")):
        images, annotations = [], []
        for file in sorted((folder / "images" / split).iterdir()):
            ids = scene(3, 7, (277, 278), np.int32, void=0)
            save_ids(ids, folder / f"ade20k_panoptic_{short}" / f"{file.stem}.png")
            images.append({"id": file.stem, "file_name": file.name, "height": HEIGHT, "width": WIDTH})
            segments = [(3, 2), (7, 6), (277, 20), (278, 20)]
            annotations.append(
                {
                    "image_id": file.stem,
                    "file_name": f"{file.stem}.png",
                    "segments_info": [
                        {"id": i, "category_id": c, "iscrowd": 0, "area": int((ids == i).sum())} for i, c in segments
                    ],
                }
            )
        names = {2: "sky", 6: "road, route", 20: "car"}
        categories = [{"id": i, "name": names.get(i, f"class {i}"), "isthing": int(i == 20)} for i in range(150)]
        write_json(
            {"images": images, "annotations": annotations, "categories": categories},
            folder / f"ade20k_panoptic_{short}.json",
        )
    return folder


def save_ids(ids: np.ndarray, path: Path) -> Path:
    """Write segment ids as RGB."""
    return save(np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8), path)


def write_json(content, path: Path) -> Path:
    """Write a JSON; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def mapillary(folder: Path, version: str = "") -> Path:
    """Labels sky 0, road 1, car 2, unlabeled 3 (void)."""
    names = ("Sky", "Road", "Car", "Unlabeled")
    config = [{"name": n.lower(), "readable": n, "instances": n == "Car", "evaluate": n != "Unlabeled"} for n in names]
    write_json({"labels": config}, folder / (f"config_{version}.json" if version else "config.json"))
    for split in ("training", "validation"):
        root = folder / split / version
        images, annotations = [], []
        for name in ("a", "b"):
            save_photo(folder / split / "images" / f"{name}.jpg")
            save(scene(0, 1, (2, 2), void=3), root / "labels" / f"{name}.png")
            instances = scene(0, 256, (512, 513), np.uint16, void=3 * 256)
            save(instances, root / "instances" / f"{name}.png")
            ids = scene(1, 2, (1000, 2000), np.int32, void=0)
            save_ids(ids, root / "panoptic" / f"{name}.png")
            images.append({"id": name, "file_name": f"{name}.jpg"})
            segments = [(1, 1), (2, 2), (1000, 3), (2000, 3)]
            infos = [{"id": i, "category_id": c, "iscrowd": 0, "area": int((ids == i).sum())} for i, c in segments]
            annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": infos})
        categories = [{"id": i + 1, "name": n, "isthing": int(n == "Car")} for i, n in enumerate(names[:3])]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(content, root / "panoptic" / "panoptic_2018.json")
    return folder


def pascal_voc(folder: Path) -> Path:
    """Cars 7; 255 = void border."""
    for split in SPLITS:
        names = [f"2007_00000{i}_{split}" for i in range(2)]
        for name in names:
            save_photo(folder / "JPEGImages" / f"{name}.jpg")
            save(scene(0, 0, (7, 7), void=255), folder / "SegmentationClass" / f"{name}.png")
            save(scene(0, 0, (1, 2), void=255), folder / "SegmentationObject" / f"{name}.png")
        lists = folder / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def coco_stuff(folder: Path) -> Path:
    """Sky-other 156, road 148, cars 2."""
    for split in SPLITS:
        for number in (9, 25):
            name = f"{number:012d}"
            save_photo(folder / f"{split}2017" / f"{name}.jpg")
            save(scene(156, 148, (2, 2), void=255), folder / "stuffthingmaps" / f"{split}2017" / f"{name}.png")
    return folder


def corners(where) -> list[tuple[int, int]]:
    """Corners (x, y) of a car."""
    rows, columns = where
    x0, x1, y0, y1 = columns.start, columns.stop, rows.start, rows.stop
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def yolo(folder: Path) -> Path:
    """As Roboflow exports it: `../train/images`, `valid`."""
    for split in ("train", "valid"):
        for name in ("a", "b", "empty"):
            save_photo(folder / split / "images" / f"{name}.jpg")
            lines = [
                f"1 {' '.join(f'{x / WIDTH} {y / HEIGHT}' for x, y in corners(where))}"
                for where in CARS
                if name != "empty"
            ]
            labels = folder / split / "labels"
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{name}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['truck', 'car']\n")
    return folder


def coco_content(first_image: int = 397133, category: int = 3) -> dict:
    """Content of a COCO JSON: a car as polygon with an area of its own, a car as compressed RLE, and a crowd."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[CARS[1]] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    rle["counts"] = rle["counts"].decode()
    images, annotations = [], []
    for i, name in enumerate(("000000397133.jpg", "000000037777.jpg")):
        images.append({"id": first_image + i, "file_name": name, "height": HEIGHT, "width": WIDTH})
        polygon = [[float(v) for point in corners(CARS[0]) for v in point]]
        crowd = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 100, 100]}
        for segmentation, area, iscrowd in ((polygon, 1500.5, 0), (rle, 572.0, 0), (crowd, 100.0, 1)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": first_image + i,
                    "category_id": category,
                    "iscrowd": iscrowd,
                    "area": area,
                    "bbox": [0, 0, 1, 1],
                    "segmentation": segmentation,
                }
            )
    categories = [{"id": 1, "name": "person"}, {"id": category, "name": "car"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_instances(folder: Path) -> Path:
    """COCO 2017."""
    for split in SPLITS:
        content = coco_content()
        for image in content["images"]:
            save_photo(folder / f"{split}2017" / image["file_name"])
        write_json(content, folder / "annotations" / f"instances_{split}2017.json")
    return folder


def coco_panoptic(folder: Path) -> Path:
    """COCO 2017 panoptic: cars 3, sky 187, road 149; a crowd of persons, and a row without pixels."""
    categories = [
        {"id": 1, "name": "person", "isthing": 1},
        {"id": 3, "name": "car", "isthing": 1},
        {"id": 149, "name": "road", "isthing": 0},
        {"id": 187, "name": "sky", "isthing": 0},
    ]
    for split in SPLITS:
        images, annotations = [], []
        for i, name in ((9, "000000000009"), (25, "000000000025")):
            save_photo(folder / f"{split}2017" / f"{name}.jpg")
            ids = scene(70000, 300, (5, 6), np.int32, void=0)
            ids[16:20, :30] = 7
            save_ids(ids, folder / "annotations" / f"panoptic_{split}2017" / f"{name}.png")
            images.append({"id": i, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH})
            segments = [(70000, 187, 0), (300, 149, 0), (5, 3, 0), (6, 3, 0), (7, 1, 1), (99, 1, 0)]
            infos = [
                {"id": i, "category_id": c, "iscrowd": crowd, "area": int((ids == i).sum())} for i, c, crowd in segments
            ]
            annotations.append({"image_id": i, "file_name": f"{name}.png", "segments_info": infos})
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(content, folder / "annotations" / f"panoptic_{split}2017.json")
    return folder


def lvis(folder: Path) -> Path:
    """LVIS v1: images have a URL instead of a name."""
    for split in SPLITS:
        content = coco_content(category=2)
        for image in content["images"]:
            name = image.pop("file_name")
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{name}"
            save_photo(folder / f"{split}2017" / name)
        content["annotations"] = [row for row in content["annotations"] if not row.pop("iscrowd")]
        write_json(content, folder / f"lvis_v1_{split}.json")
    return folder


def roboflow(folder: Path) -> Path:
    """Roboflow's COCO export, with a parent category without annotations."""
    for split in ("train", "valid"):
        content = coco_content(first_image=0)
        content["categories"] = [
            {"id": 0, "name": "vehicles", "supercategory": "none"},
            {"id": 1, "name": "person", "supercategory": "vehicles"},
            {"id": 3, "name": "car", "supercategory": "vehicles"},
        ]
        for image in content["images"]:
            save_photo(folder / split / image["file_name"])
        write_json(content, folder / split / "_annotations.coco.json")
    return folder


def cvat(folder: Path) -> Path:
    """CVAT's COCO export: one JSON, no splits."""
    content = coco_content(first_image=1)
    for image in content["images"]:
        save_photo(folder / "images" / "default" / image["file_name"])
    write_json(content, folder / "annotations" / "instances_default.json")
    return folder


def labelme_without_background(folder: Path) -> Path:
    """`labelme` with a list of classes, so that what no shape covers is void."""
    labelme(folder)
    (folder / "labels.txt").write_text("car\nsky\n")
    return folder


def labelme(folder: Path) -> Path:
    """A polygon, a mask with the same group (one object), a rectangle; a line without area and an ignored shape."""
    for name in ("a", "b"):
        part = np.full((22, 20), 255, np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(part).save(buffer, format="PNG")
        (x0, y0), _, (x1, y1), _ = corners(CARS[1])
        pasted = {
            "label": "car",
            "shape_type": "mask",
            "points": [[x0, y0], [x0 + 19, y0 + 21]],
            "mask": base64.b64encode(buffer.getvalue()).decode(),
        }
        rest = {"label": "car", "shape_type": "polygon", "points": [[x0 + 19, y0], [x1, y0], [x1, y1], [x0 + 19, y1]]}
        first, _, third, _ = corners(CARS[0])
        shapes = [
            {"label": "car", "shape_type": "rectangle", "points": [third, first], "group_id": None},
            {**pasted, "group_id": 5},
            {**rest, "group_id": 5},
            {"label": "sky", "points": [[0, 0], [WIDTH, 0], [WIDTH, 16], [0, 16]], "group_id": None},
            {"label": "edge", "shape_type": "line", "points": [[0, 0], [5, 5]], "group_id": None},
            {"label": "__ignore__", "shape_type": "rectangle", "points": [[0, 40], [9, 47]], "group_id": None},
        ]
        image = save_photo(folder / f"{name}.jpg")
        content = {"version": "5.4.1", "shapes": shapes, "imagePath": image.name, "imageData": None}
        if name == "b":  # the image is in the JSON only
            content["imageData"] = base64.b64encode(image.read_bytes()).decode()
            image.unlink()
        write_json(content, folder / f"{name}.json")
    return folder


def mask_images(folder: Path) -> Path:
    """`images/SPLIT` and `masks/SPLIT`."""
    for split in SPLITS:
        for name in ("a", "b"):
            save_photo(folder / "images" / split / f"{name}.jpg")
            save(scene(0, 1, (2, 2), void=255), folder / "masks" / split / f"{name}_mask.png")
    write_json({"0": "sky", "1": "road", "2": "car"}, folder / "id2label.json")
    return folder


def instance_files(folder: Path) -> Path:
    """As the Data Science Bowl 2018: no splits."""
    for name in ("0a1b", "2c3d"):
        save_photo(folder / name / "images" / f"{name}.png")
        for number, where in enumerate(CARS):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[where] = 255
            save(mask, folder / name / "masks" / f"{number}.png")
    return folder


def nuinsseg(folder: Path) -> Path:
    """An organ; a vague area over the sky and a part of a nucleus."""
    for name in ("human_bladder_01", "human_bladder_02"):
        organ = folder / "human bladder"
        save_photo(organ / "tissue images" / f"{name}.png")
        save(scene(0, 0, (1, 2), np.uint16), organ / "label masks modify" / f"{name}.tif")
        vague = np.zeros((HEIGHT, WIDTH), np.uint8)
        vague[:22, :10] = 255
        save(vague, organ / "vague areas" / "mask binary" / f"{name}.png")
    return folder
