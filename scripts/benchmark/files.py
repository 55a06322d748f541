"""CPU time and memory beside the model: reading, scoring and drawing many objects, semantic results of large images.
Each piece of work runs in a process of its own, in turn with those that it is compared with.

python -m scripts.benchmark --preset files --output_file training/results/files_cpu.json
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation.task_metrics import TaskMetrics
from mpformer_hf.inference import predictor
from mpformer_hf.inference.drawing import draw_segmentation
from mpformer_hf.inference.loading import load_for_inference
from mpformer_hf.model.images import read_image
from mpformer_hf.model.postprocessing import ResizeGeometry, semantic_classes, semantic_inference
from mpformer_hf.utils.files import write_json

from .measuring import in_new_process
from .models import build

OBJECTS, SIDE = 1500, 2200  # of the image with many objects
PHOTO = (3000, 4000)  # height and width of the image that is drawn on
DRAWN, CLASSES, PHOTOS = 20, 150, 8


def make_objects(folder: Path) -> None:
    """One image with many small polygons, as COCO writes them."""
    generator, columns = np.random.default_rng(0), int(np.ceil(np.sqrt(OBJECTS)))
    angle, step, annotations = np.linspace(0, 2 * np.pi, 25)[:-1], SIDE / columns, []
    for number in range(OBJECTS):
        radius = 0.25 * step * (1 + generator.random(24))
        x, y = (step * (index + 0.5) for index in (number % columns, number // columns))
        points = np.stack((x + radius * np.cos(angle), y + radius * np.sin(angle)), 1).round(1).flatten().tolist()
        annotations.append({"id": number + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [points]})
    (folder / "train").mkdir(parents=True)
    Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / "train" / "a.png")
    images = [{"id": 1, "file_name": "a.png", "height": SIDE, "width": SIDE}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    write_json(content, folder / "instances_train.json", indent=None)


def opened(folder: Path):
    return open_dataset(DataArguments(dataset_name=str(folder), task="instance"), "train")


def read_ours(folder: Path) -> Callable:
    dataset = opened(folder)
    return lambda: dataset[0]


def read_pycocotools(folder: Path) -> Callable:
    """What projects do with pycocotools: the mask of each object."""
    from pycocotools.coco import COCO

    coco = COCO(folder / "instances_train.json")

    def work() -> None:
        np.asarray(Image.open(folder / "train" / "a.png"))
        map_ = np.zeros((SIDE, SIDE), dtype=np.int32)
        for number, row in enumerate(coco.dataset["annotations"], start=1):
            map_[coco.annToMask(row) > 0] = number

    return work


def evaluate_ours(folder: Path, all_scores: bool) -> Callable:
    dataset = opened(folder)
    _, segments = dataset[0]
    masks, generator = np.zeros((100, SIDE, SIDE), dtype=bool), np.random.default_rng(1)
    for mask in masks:
        y, x = generator.integers(0, SIDE - 40, 2)
        mask[y : y + 32, x : x + 32] = True
    found = {"instance": {"masks": list(masks), "label_ids": [0] * 100, "scores": [0.5] * 100}}

    def work() -> None:
        metrics = TaskMetrics("instance", dataset.labels, all_scores=all_scores)
        metrics.add(found, segments)
        metrics.compute()

    return work


def drawing() -> tuple[Image.Image, np.ndarray]:
    """An image and masks of large discs."""
    generator = np.random.default_rng(0)
    rows, columns = np.ogrid[: PHOTO[0], : PHOTO[1]]
    masks = []
    for _ in range(DRAWN):
        y, x, radius = generator.integers((400, 400, 150), (PHOTO[0] - 400, PHOTO[1] - 400, 400))
        masks.append((rows - y) ** 2 + (columns - x) ** 2 < radius**2)
    return Image.fromarray(generator.integers(0, 256, (*PHOTO, 3), dtype=np.uint8)), np.stack(masks)


def draw_ours(folder: Path) -> Callable:
    image, masks = drawing()
    rows = [{"id": index, "label_id": index % 3, "score": 0.9} for index in range(DRAWN)]
    result = {"segmentation": torch.from_numpy(masks), "segments_info": rows}
    return lambda: draw_segmentation(image, result, {0: "a", 1: "b", 2: "c"})


def draw_supervision(folder: Path) -> Callable:
    """supervision's masks, outlines and labels."""
    import supervision

    image, masks = drawing()
    boxes = supervision.mask_to_xyxy(masks)
    found = supervision.Detections(boxes, masks, np.full(DRAWN, 0.9), np.arange(DRAWN) % 3)
    kinds = (supervision.MaskAnnotator(), supervision.PolygonAnnotator(), supervision.LabelAnnotator())

    def work() -> None:
        scene = np.array(image)
        for annotator in kinds:
            scene = annotator.annotate(scene, found)

    return work


def semantic(folder: Path, ours: bool) -> Callable:
    """Classes of an image of 6 megapixels, class by class, or from the scores of all."""
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(100, CLASSES + 1, generator=generator), torch.randn(100, 128, 171, generator=generator)
    processed = ResizeGeometry((512, 704), (512, 683), (512, 683))
    geometry = ResizeGeometry(processed.padded, processed.image, (2121, 2828))

    def work() -> None:
        if ours:
            semantic_classes(classes, masks, geometry, resize_scores=True)
        else:
            scores = semantic_inference(classes, masks, processed)
            F.interpolate(scores[None], size=geometry.target, mode="bilinear", align_corners=False)[0].argmax(0)

    return work


def make_photos(folder: Path) -> None:
    """Photos of 12 megapixels with large discs, their labels, and a Swin-T of random weights."""
    generator, images, annotations = np.random.default_rng(0), [], []
    (folder / "val").mkdir()
    angle = np.linspace(0, 2 * np.pi, 65)[:-1]
    for number in range(PHOTOS):
        coarse = generator.integers(0, 256, (PHOTO[0] // 8, PHOTO[1] // 8, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize(PHOTO[::-1], Image.Resampling.BICUBIC)
        photo.save(folder / "val" / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": PHOTO[0], "width": PHOTO[1]})
        for y, x, radius in discs():
            points = np.stack((x + radius * np.cos(angle), y + radius * np.sin(angle)), 1) * PHOTO[1]
            row = {"image_id": number, "category_id": 0, "iscrowd": 0, "segmentation": [points.flatten().tolist()]}
            annotations.append({"id": len(annotations), **row})
    categories = [{"id": i, "name": f"LABEL_{i}"} for i in range(80)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(content, folder / "instances_val.json", indent=None)
    build("swin_t").save_pretrained(folder / "model")
    MPFormerImageProcessor(task="instance").save_pretrained(folder / "model")


def discs() -> np.ndarray:
    """Centre (row, column) and radius of 16 discs, in widths of a photo, `[16, 3]`."""
    generator, height = np.random.default_rng(1), PHOTO[0] / PHOTO[1]
    return np.stack([generator.uniform((0.1, 0.1, 0.03), (height - 0.1, 0.9, 0.1)) for _ in range(16)])


def see_discs(model, args, outputs) -> None:
    """Replace the outputs of random weights, which are noise, by those of a model that sees the discs."""
    masks, classes = outputs.masks_queries_logits, outputs.class_queries_logits
    height, width = masks.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    classes[:] = torch.nn.functional.one_hot(torch.tensor(classes.shape[-1] - 1), classes.shape[-1]) * 9.0
    for query, (y, x, radius) in enumerate(discs() * width):  # the other queries have the same masks, and no class
        masks[:, query::16] = (radius - ((rows - y) ** 2 + (columns - x) ** 2).sqrt()).clamp(-9, 9)
        classes[:, query], classes[:, query, 0] = 0.0, 9.0


def load_seeing_discs(*args, **kwargs):
    """`load_for_inference` with `see_discs`."""
    model = load_for_inference(*args, **kwargs)
    model.register_forward_hook(see_discs)
    return model


def command(folder: Path, name: str) -> Callable:
    """A whole command, with its defaults."""
    setattr(predictor, "load_for_inference", load_seeing_discs)  # noqa: B010 - for type checkers
    argv = {
        "predict": ["predict", str(folder / "model"), str(folder / "val"), str(folder / "out")],
        "evaluate": ["evaluate", str(folder / "model"), str(folder)],
    }
    return lambda: mpformer(argv[name])


def model_alone(folder: Path) -> Callable:
    """Preprocessing, forward and post-processing of photos in memory."""
    alone = predictor.Predictor(
        load_seeing_discs(str(folder / "model"), "cpu"), MPFormerImageProcessor.from_pretrained(folder / "model")
    )
    images = [read_image(folder / "val" / f"{number}.jpg") for number in range(PHOTOS)]

    def work() -> None:
        for first in range(0, PHOTOS, 4):
            alone.predict(images[first : first + 4])

    return work


MAKERS = {"objects": (make_objects,), "photos": (make_photos,), "nothing": ()}
# name: files that it needs, and the works; the first is ours
ROWS: dict[str, tuple[str, dict[str, tuple]]] = {
    "read 1,500 polygons, 2200x2200": ("objects", {"ours": (read_ours,), "pycocotools": (read_pycocotools,)}),
    "score 1,500 objects": ("objects", {"AP": (evaluate_ours, False), "AP and boundary AP": (evaluate_ours, True)}),
    "draw 20 objects, 3000x4000": ("nothing", {"ours": (draw_ours,), "supervision": (draw_supervision,)}),
    "150 classes, 6 megapixels": ("nothing", {"class by class": (semantic, True), "all scores": (semantic, False)}),
    "8 photos of 12 megapixels, Swin-T": (
        "photos",
        {"predict": (command, "predict"), "evaluate": (command, "evaluate"), "model alone": (model_alone,)},
    ),
}


def measure(connection, folder: Path, prepare: Callable, *arguments) -> None:
    """In a process of its own: CPU and wall seconds of a work, and the rise of its peak memory in MiB."""
    torch.set_num_threads(1)
    work = prepare(folder, *arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection.send({"cpu_s": round(cpu, 3), "wall_s": round(wall, 3), "peak_mib": round((peak - before) / 1024, 1)})


def main(argv: list[str]) -> dict:
    """Measure, print and write all rows; returns the content of the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turn")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="what to measure")
    parser.add_argument("--output_file", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    versions = {"torch": torch.__version__.split("+")[0]}
    result: dict = {"threads": 1, "rounds": args.rounds, "versions": versions, "rows": {}}
    for name in args.rows:
        files, works = ROWS[name]
        runs: dict[str, list[dict]] = {arm: [] for arm in works}
        for _ in range(args.rounds):
            for arm, work in works.items():
                with tempfile.TemporaryDirectory() as folder:
                    for make in MAKERS[files]:
                        make(Path(folder))
                    runs[arm].append(in_new_process(measure, Path(folder), *work))
        result["rows"][name] = {
            arm: {key: statistics.median(run[key] for run in found) for key in found[0]} for arm, found in runs.items()
        }
        print(f"{name:34s} {json.dumps(result['rows'][name])}", flush=True)
        if args.output_file:
            write_json(result, args.output_file)
    return result
