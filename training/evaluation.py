"""Score a model on a split, at the original image size."""

import time
from pathlib import Path

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mpformer_hf import MPFormerImageProcessor, draw_segmentation
from mpformer_hf.diagnostics import LayerDiagnostics, diagnose

from .adapters import VOID_CLASS, Segments
from .batches import EvaluationBatches
from .data import SegmentationDataset
from .labels import Labels
from .report import Details

METRICS = Path(__file__).parent / "metrics"
TASK_METRICS = {  # single numbers, the main one first
    "semantic": ("mean_iou", "pixel_accuracy", "boundary_mean_iou"),
    "instance": ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar"),
    "panoptic": ("pq", "sq", "rq", "pq_things", "pq_stuff", "mean_iou", "pixel_accuracy", "boundary_mean_iou"),
}


def semantic_map(segments: Segments) -> torch.Tensor:
    """Segments to a map of class ids, int64 `[H, W]`, void = 255."""
    result = torch.full(segments.map.shape, VOID_CLASS, dtype=torch.int64)
    for segment, label in segments.classes.items():
        result[segments.map == segment] = label
    return result


def panoptic_result(segments: Segments) -> dict:
    """Segments as the panoptic metric reads references."""
    rows = [{"id": i, "label_id": label, "iscrowd": False} for i, label in segments.classes.items()]
    rows += [{"id": i, "label_id": label, "iscrowd": True} for i, label in segments.crowds.items()]
    return {"segmentation": segments.map, "segments_info": rows}


def instance_result(segments: Segments) -> dict:
    """Segments as the instance metric reads references: `masks`, bool `[H, W]` each, which may overlap, `label_ids` and
    `iscrowd`."""
    layers = segments.map.view(-1, *segments.map.shape[-2:])
    rows = [*segments.classes.items(), *segments.crowds.items()]
    return {
        "masks": [(layers == segment).any(0).numpy() for segment, _ in rows],
        "label_ids": [label for _, label in rows],
        "iscrowd": [segment in segments.crowds for segment, _ in rows],
    }


class Scores:
    """The metrics of a task, fed image by image.

    Args:
        task: semantic, instance or panoptic.
        labels: the classes.
        max_detections: instances of an image that count.
    """

    def __init__(self, task: str, labels: Labels, max_detections: int = 100):
        self.names, count = labels.names, {"num_labels": len(labels.names)}
        self.metrics = {}
        if task == "instance":
            path = str(METRICS / "average_precision")
            self.metrics["instance"] = evaluate.load(path, max_detections=max_detections, **count)
        if task == "panoptic":
            path = str(METRICS / "panoptic_quality")
            self.metrics["panoptic"] = evaluate.load(path, thing_ids=labels.things, **count)
        if task != "instance":
            self.metrics["semantic"] = evaluate.load(str(METRICS / "mean_iou"), **count)

    def add(self, predictions: dict, segments: Segments) -> float:
        """One image: its results by kind (`semantic`, `instance`, `panoptic`), and the truth; returns its own score."""
        references = {"semantic": semantic_map, "instance": instance_result, "panoptic": panoptic_result}
        scores = [
            metric.add(prediction=predictions[kind], reference=references[kind](segments))
            for kind, metric in self.metrics.items()
        ]
        return scores[0]

    def compute(self) -> dict:
        """All scores; per-class lists become dicts by class name."""
        results = {}
        for metric in self.metrics.values():
            results |= metric.compute()
        for name in [name for name in results if name.startswith("per_class")]:
            results[name] = dict(zip(self.names, results[name], strict=True))
        return results

    @property
    def confusion(self):
        """Pixels `[K, K]`, [reference, prediction], after `compute`; None for instances."""
        return getattr(self.metrics.get("semantic"), "total", None)


def evaluation_loader(
    dataset: SegmentationDataset, processor: MPFormerImageProcessor, accelerator: Accelerator, batch_size: int = 1
) -> DataLoader:
    """This process's share of the split, each image exactly once."""
    rows = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    batches = EvaluationBatches(dataset, processor, rows)
    return DataLoader(batches, batch_size, collate_fn=batches.collate)


@torch.no_grad()
def evaluate_model(
    model: torch.nn.Module,
    processor: MPFormerImageProcessor,
    loader: DataLoader,
    accelerator: Accelerator,
    pictures: Path | None = None,
    num_pictures: int = 0,
    max_detections: int = 100,
    details: Details | None = None,
) -> dict:
    """Scores of a model, in [0, 1], with `images_per_second`.

    Args:
        model: not wrapped: shares may differ in length, so no forward may wait for other processes. Is in training mode
            again afterwards if it was.
        processor: its `task` decides what is scored.
        loader: see `evaluation_loader`.
        pictures: folder for overlays of this process's first images.
        max_detections: instances of an image that count.
        details: filled with the scores of all images, and the confusion matrix.
    """
    task, labels = processor.task, loader.dataset.dataset.labels
    scores, drawn, rows, start = Scores(task, labels, max_detections), 0, [], time.perf_counter()
    was_training = model.training
    model.eval()
    for batch in tqdm(loader, desc="evaluate", disable=not accelerator.is_local_main_process, leave=False):
        for row, predictions in enumerate(predict_batch(model, processor, batch, accelerator, max_detections)):
            rows.append((scores.add(predictions, batch["segments"][row]), batch["index"][row]))
            if pictures is not None and drawn < num_pictures:
                picture = draw_pair(batch["images"][row], predictions["shown"], batch["segments"][row], task, labels)
                pictures.mkdir(parents=True, exist_ok=True)
                picture.save(pictures / f"{batch['index'][row]:05d}.png")
                drawn += 1
    model.train(was_training)
    seconds = time.perf_counter() - start
    rows = gather_object(rows)
    results = scores.compute()
    if details is not None:
        details.image_scores, details.confusion = rows, scores.confusion
    return {**results, "images": len(rows), "images_per_second": round(len(rows) / seconds, 3)}


def predict_batch(
    model: torch.nn.Module,
    processor: MPFormerImageProcessor,
    batch: dict,
    accelerator: Accelerator,
    max_detections: int = 100,
) -> list[dict]:
    """Results of each image by kind, as `Scores.add` takes them, on the host; `shown` is the one to be drawn."""
    inputs = {name: value.to(accelerator.device) for name, value in batch["inputs"].items()}
    with accelerator.autocast():
        outputs = model(**inputs)
    sizes = {"target_sizes": batch["sizes"]}
    if processor.task == "instance":
        options = {"threshold": 0.0, "max_detections": max_detections, "return_binary_maps": True}
        found = processor.post_process_instance_segmentation(outputs, **sizes, **options)
        return [instance_prediction(to_cpu(result), processor.threshold) for result in found]
    semantic = processor.post_process_semantic_segmentation(outputs, **sizes)
    if processor.task == "semantic":
        return [{"semantic": map_.cpu(), "shown": map_.cpu()} for map_ in semantic]
    panoptic = [to_cpu(result) for result in processor.post_process_panoptic_segmentation(outputs, **sizes)]
    return [
        {"semantic": map_.cpu(), "panoptic": result, "shown": result}
        for map_, result in zip(semantic, panoptic, strict=True)
    ]


def instance_prediction(result: dict, threshold: float) -> dict:
    """All instances for the metric, and those above a score to be drawn."""
    segments = result["segments_info"]
    sure = [index for index, segment in enumerate(segments) if segment["score"] >= threshold]
    return {
        "instance": {
            "masks": result["segmentation"].numpy(),
            "label_ids": [segment["label_id"] for segment in segments],
            "scores": [segment["score"] for segment in segments],
        },
        "shown": {"segmentation": result["segmentation"][sure], "segments_info": [segments[index] for index in sure]},
    }


@torch.no_grad()
def draw_rows(
    model: torch.nn.Module,
    processor: MPFormerImageProcessor,
    dataset: SegmentationDataset,
    rows: list[int],
    accelerator,
) -> list[Image.Image]:
    """Ground truth and prediction of some rows."""
    batches, pairs = EvaluationBatches(dataset, processor, rows), []
    for example in batches:
        batch = batches.collate([example])
        (predictions,) = predict_batch(model, processor, batch, accelerator)
        pairs.append(
            draw_pair(batch["images"][0], predictions["shown"], batch["segments"][0], processor.task, dataset.labels)
        )
    return pairs


def diagnose_model(
    model: torch.nn.Module, processor: MPFormerImageProcessor, loader: DataLoader, accelerator: Accelerator
) -> LayerDiagnostics:
    """Layer-wise diagnostics over a split, see `mpformer_hf.diagnostics`; summed over all processes."""
    was_training, total = model.training, LayerDiagnostics()
    model.eval()
    for batch in tqdm(loader, desc="diagnose", disable=not accelerator.is_local_main_process, leave=False):
        maps, tables = zip(*((segments.map, segments.classes) for segments in batch["segments"]), strict=True)
        inputs = processor(batch["images"], list(maps), list(tables), return_tensors="pt")
        masks, classes = ([x.to(accelerator.device) for x in inputs[key]] for key in ("mask_labels", "class_labels"))
        total += diagnose(model, inputs["pixel_values"].to(accelerator.device), masks, classes)
    model.train(was_training)
    whole = LayerDiagnostics()
    for part in gather_object([total]):
        whole += part
    return whole


def to_cpu(result):
    """A post-processed result with its map on the host."""
    if torch.is_tensor(result):
        return result.cpu()
    return {**result, "segmentation": result["segmentation"].cpu()}


def draw_pair(image: torch.Tensor, result, segments: Segments, task: str, labels: Labels) -> Image.Image:
    """Ground truth at the left, prediction at the right, with a legend."""
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    if task == "semantic":
        truth = semantic_map(segments)
    elif task == "panoptic":
        truth = panoptic_result(segments)
    else:
        known = instance_result(segments)
        rows = [{"id": i, "label_id": label} for i, label in enumerate(known["label_ids"])]
        truth = {"segmentation": np.array(known["masks"]).reshape(-1, *image.shape[1:]), "segments_info": rows}
    names = labels.id2label
    left, right = draw_segmentation(photo, truth, names, legend=False), draw_segmentation(photo, result, names)
    pair = Image.new("RGB", (left.width + 8 + right.width, max(left.height, right.height)), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 8, 0))
    return pair


def most_frequent_class(dataset: SegmentationDataset, stuff_only: bool) -> int:
    """Class with the most pixels in a split, of all classes or of stuff only.

    Raises:
        ValueError: no pixel has such a class.
    """
    areas: dict[int, int] = {}
    for index in range(len(dataset)):
        _, segments = dataset[index]
        for segment, area in zip(*(x.tolist() for x in segments.map.unique(return_counts=True)), strict=True):
            label = segments.classes.get(segment)
            if label is not None and not (stuff_only and label in dataset.labels.things):
                areas[label] = areas.get(label, 0) + area
    if not areas:
        raise ValueError(f"No pixel of the split has a {'stuff ' if stuff_only else ''}class.")
    return max(areas, key=areas.get)


def score_constant(task: str, dataset: SegmentationDataset, label: int) -> dict:
    """Scores of calling every pixel one class, as one segment."""
    scores = Scores(task, dataset.labels)
    for index in range(len(dataset)):
        image, segments = dataset[index]
        everywhere = torch.ones(image.shape[1:], dtype=torch.int64)
        found = {
            "semantic": everywhere * label,
            "panoptic": {"segmentation": everywhere, "segments_info": [{"id": 1, "label_id": label}]},
            "instance": {"masks": [everywhere.bool().numpy()], "label_ids": [label], "scores": [1.0]},
        }
        scores.add(found, segments)
    return scores.compute()
