"""Score a model on a split, at the original image size."""

import time
from pathlib import Path

import evaluate
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mpformer_hf import MPFormerImageProcessor, draw_segmentation
from mpformer_hf.diagnostics import LayerDiagnostics, diagnose

from .batches import EvaluationBatches
from .data import VOID_CLASS, SegmentationDataset, Segments

METRICS = Path(__file__).parent / "metrics"
TASK_METRICS = {  # single numbers, the main one first
    "semantic": ("mean_iou", "pixel_accuracy"),
    "panoptic": ("pq", "sq", "rq", "pq_things", "pq_stuff", "mean_iou", "pixel_accuracy"),
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


class Scores:
    """The metrics of a task, fed image by image.

    Args:
        task: semantic or panoptic.
        dataset: gives the classes.
    """

    def __init__(self, task: str, dataset: SegmentationDataset):
        labels = dataset.labels
        self.names = labels.names
        count = {"num_labels": len(labels.names)}
        self.mean_iou = evaluate.load(str(METRICS / "mean_iou"), **count)
        self.panoptic = None
        if task == "panoptic":
            self.panoptic = evaluate.load(str(METRICS / "panoptic_quality"), thing_ids=labels.things, **count)

    def add(self, semantic, panoptic: dict | None, segments: Segments) -> None:
        """One image: its class map, its panoptic result (panoptic task only), and the truth."""
        self.mean_iou.add(prediction=semantic, reference=semantic_map(segments))
        if self.panoptic is not None:
            self.panoptic.add(prediction=panoptic, reference=panoptic_result(segments))

    def compute(self) -> dict:
        """All scores; per-class lists become dicts by class name."""
        results = {} if self.panoptic is None else self.panoptic.compute()
        results |= self.mean_iou.compute()
        for name in [name for name in results if name.startswith("per_class")]:
            results[name] = dict(zip(self.names, results[name], strict=True))
        return results


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
) -> dict:
    """Scores of a model, in [0, 1], with `images_per_second`.

    Args:
        model: prepared or bare; is in training mode again afterwards if it was.
        processor: its `task` decides what is scored.
        loader: see `evaluation_loader`.
        pictures: folder for overlays of this process's first images.
    """
    task, dataset = processor.task, loader.dataset.dataset
    scores, drawn, seen, start = Scores(task, dataset), 0, 0, time.perf_counter()
    if isinstance(model, DistributedDataParallel):
        model = model.module  # shares may differ in length, so no forward may wait for the others
    was_training = model.training
    model.eval()
    for batch in tqdm(loader, desc="evaluate", disable=not accelerator.is_local_main_process, leave=False):
        inputs = {name: value.to(accelerator.device) for name, value in batch["inputs"].items()}
        with accelerator.autocast():
            outputs = model(**inputs)
        semantic = processor.post_process_semantic_segmentation(outputs, target_sizes=batch["sizes"])
        results = semantic
        if task == "panoptic":
            results = processor.post_process_panoptic_segmentation(outputs, target_sizes=batch["sizes"])
        for row in range(len(batch["index"])):
            result = to_cpu(results[row])
            scores.add(semantic[row].cpu(), result if task == "panoptic" else None, batch["segments"][row])
            if pictures is not None and drawn < num_pictures:
                picture = draw_pair(batch["images"][row], result, batch["segments"][row], task, dataset.labels.id2label)
                pictures.mkdir(parents=True, exist_ok=True)
                picture.save(pictures / f"{batch['index'][row]:05d}.png")
                drawn += 1
        seen += len(batch["index"])
    model.train(was_training)
    seconds = time.perf_counter() - start
    images = sum(gather_object([seen]))
    return {**scores.compute(), "images": images, "images_per_second": round(images / seconds, 3)}


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


def draw_pair(image: torch.Tensor, result, segments: Segments, task: str, id2label: dict[int, str]) -> Image.Image:
    """Ground truth at the left, prediction at the right, with a legend."""
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    truth = semantic_map(segments) if task == "semantic" else panoptic_result(segments)
    left, right = draw_segmentation(photo, truth, id2label, legend=False), draw_segmentation(photo, result, id2label)
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
    scores = Scores(task, dataset)
    for index in range(len(dataset)):
        _, segments = dataset[index]
        everywhere = torch.ones_like(segments.map)
        panoptic = {"segmentation": everywhere, "segments_info": [{"id": 1, "label_id": label}]}
        scores.add(everywhere * label, panoptic, segments)
    return scores.compute()
