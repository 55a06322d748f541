"""Score a model on a split, at the original image size."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.dataset import SegmentationDataset
from ..data.segments import Segments
from ..data.writers.format import ImageRecord, PredictionFormat, describe_segments
from ..inference.exported import Model
from ..inference.result_files import write_image
from ..metrics.average_precision import as_rle
from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.image_sizes import size_of
from ..model.label_maps import encode_part
from ..utils.progress import progress
from ..utils.threads import in_threads
from .details import EvaluationDetails
from .diagnostics import LayerDiagnostics, diagnose
from .drawing import DrawnSides, draw_pair, draw_sides
from .inputs import model_inputs
from .object_matches import ObjectCounts
from .task_metrics import TaskMetrics, metric_names

logger = logging.getLogger(__name__)


class EvaluationDataset(Dataset):
    """Images with their segments at the original size; `collate` makes model inputs.

    Args:
        dataset: the split.
        processor: resizes, normalises and pads.
        rows: rows of the split to use.
        with_targets: also make the targets of the loss.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        processor: MPFormerImageProcessor,
        rows: Sequence[int],
        with_targets: bool = False,
    ):
        self.dataset, self.processor, self.rows, self.with_targets = dataset, processor, rows, with_targets

    def __len__(self) -> int:
        return len(self.rows)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image."""
        return self.dataset.image_size(self.rows[index])

    def __getitem__(self, index: int) -> tuple[int, Tensor, Segments]:
        return self.rows[index], *self.dataset[self.rows[index]]

    def collate(self, examples: list) -> dict:
        """`inputs` of the model, and lists: `index`, `images` (uint8), `segments`, `sizes` (height, width)."""
        index, images, segments = (list(column) for column in zip(*examples, strict=True))
        try:
            if self.with_targets:
                inputs = model_inputs(self.processor, images, segments)
            else:
                inputs = dict(self.processor(images, return_tensors="pt"))
        except ValueError as error:
            raise ValueError(f"Row {' or '.join(map(str, index))}: {error}") from error
        return {
            "inputs": inputs,
            "index": index,
            "images": images,
            "segments": segments,
            "sizes": [size_of(image) for image in images],
        }


class SameSizeBatches(Sampler):
    """Batches of images of equal size, so that no prediction depends on the padding of other images.

    Args:
        dataset: its images are read once for their sizes.
        batch_size: largest number of images of a batch.
    """

    def __init__(self, dataset: EvaluationDataset, batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[tuple | None, list[int]] = {}
        for index in range(len(self.dataset)):
            size = self.dataset.image_size(index) if self.batch_size > 1 else None
            group = waiting.setdefault(size, [])
            group.append(index)
            if len(group) == self.batch_size:
                yield waiting.pop(size)
        yield from waiting.values()


def evaluation_loader(
    dataset: SegmentationDataset,
    processor: MPFormerImageProcessor,
    accelerator: Accelerator,
    batch_size: int = 1,
    with_targets: bool = False,
) -> DataLoader:
    """Data loader of the images of this process, in batches of equal size. Every image is evaluated once, by one
    process; `with_targets` also with the loss."""
    rows = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    batches = EvaluationDataset(dataset, processor, rows, with_targets)
    return DataLoader(batches, batch_sampler=SameSizeBatches(batches, batch_size), collate_fn=batches.collate)


def batches_with_progress(loader: Any, title: str, accelerator: Accelerator) -> Iterator[dict]:
    """Batches of a loader, with the number of images that are left."""
    options = {"unit": "image", "leave": False, "disable": not accelerator.is_local_main_process}

    def read(rows: list[int]) -> dict:
        return loader.collate_fn([loader.dataset[row] for row in rows])

    with progress(total=len(loader.dataset), desc=title, **options) as bar:
        for _, reading in in_threads(read, loader.batch_sampler):
            batch = reading.result()
            yield batch
            bar.update(len(batch["index"]))


@torch.no_grad()
def evaluate_model(
    model: Model,
    processor: MPFormerImageProcessor,
    loader: Any,
    accelerator: Accelerator,
    pictures: Path | None = None,
    num_pictures: int = 0,
    max_detections: int = 100,
    details: EvaluationDetails | None = None,
    all_scores: bool = False,
    writers: Sequence[PredictionFormat] = (),
    own_metrics: Sequence[Any] = (),
) -> dict:
    """Scores in [0, 1] (None if not defined), `images` and `images_per_second`, if the loader makes targets `loss`, a
    mean over images, and of joined datasets `by_dataset`, the scores of each.

    Args:
        model: not wrapped by DDP, since processes may have different numbers of images. Its training mode is restored.
        processor: its `task` decides what is scored.
        loader: see `evaluation_loader`.
        pictures: folder for overlays of the first images of this process.
        num_pictures: number of overlays.
        max_detections: number of best-scored instances per image that are counted.
        details: is filled.
        all_scores: see `TaskMetrics`.
        writers: formats that the predictions are written in.
        own_metrics: further metrics, with `add(predictions, segments)`, called with the results of an image by kind
            (see `predict_batch`; masks of instances are RLEs) and its ground truth, and `compute()`, which returns a
            dict of scores of the images of this process.
    """
    dataset: SegmentationDataset = loader.dataset.dataset
    task, labels = processor.task, dataset.labels
    scores = TaskMetrics(task, labels, max_detections, dataset.score, all_scores)
    of_sources = {name: TaskMetrics(task, labels, max_detections, dataset.score) for name in dataset.sources}
    things, drawn, images, records, start = "instance" in scores.metrics, 0, 0, [], time.perf_counter()
    if details is not None and things:
        details.objects = ObjectCounts(len(labels.names), processor.threshold)
    config: Any = model.config
    losses: list[float] = []
    crowded: list[int] = []  # numbers of objects of images that have more than can be found
    most = min(config.num_queries, max_detections) if task == "instance" else config.num_queries
    was_training = model.training
    model.eval()
    for batch in batches_with_progress(loader, "evaluate", accelerator):
        for row, predictions in enumerate(predict_batch(model, processor, batch, accelerator, max_detections, things)):
            score, segments = scores.add(predictions, batch["segments"][row]), batch["segments"][row]
            images += 1
            if source := dataset.source_of(batch["index"][row]):
                of_sources[source].add(predictions, segments)
            for metric in own_metrics:
                metric.add(predictions, segments)
            if "loss" in predictions:
                losses.append(predictions["loss"])
            if task != "semantic" and len(segments.classes) > most:
                crowded.append(len(segments.classes))
            if details is not None:
                details.add(score, batch["index"][row], predictions, segments, labels.things)
            if writers:
                records.append(write_predictions(writers, dataset, batch["index"][row], predictions, task))
            if pictures is not None and drawn < num_pictures:
                picture = draw_pair(batch["images"][row], predictions["drawn"], segments, task, labels)
                write_image(picture, pictures / f"{batch['index'][row]:05d}.png")
                drawn += 1
    model.train(was_training)
    seconds = time.perf_counter() - start
    images = sum(gather_object([images]))
    records, crowded = gather_object(records), gather_object(crowded)
    if crowded:
        text = "%d of %d images have more objects (up to %d) than can be found: num_queries is %d, max_detections %d."
        logger.warning(text, len(crowded), images, max(crowded), config.num_queries, max_detections)
    if accelerator.is_main_process:
        for writer in writers:
            writer.finish(sorted(records, key=lambda record: record.name))
    results = scores.compute()
    if of_sources:
        names = metric_names(task, dataset.score)
        computed = {source: one.compute() for source, one in of_sources.items()}
        results["by_dataset"] = {source: {name: row[name] for name in names} for source, row in computed.items()}
    if details is not None:
        details.gather()
        details.confusion = scores.confusion
    losses = gather_object(losses)
    results |= {"loss": sum(losses) / len(losses)} if losses else {}
    for metric in own_metrics:
        results |= metric.compute()
    return {**results, "images": images, "images_per_second": round(images / seconds, 3)}


def write_predictions(
    writers: Sequence[PredictionFormat], dataset: SegmentationDataset, index: int, predictions: dict, task: str
) -> ImageRecord:
    """Write the files of one image; returns its record."""
    result = predictions["result"]
    image_id, file_name, name = dataset.identity(index)
    height, width = (result if task == "semantic" else result["segmentation"]).shape[-2:]
    segments = describe_segments(result, task, dataset.labels.id2label)
    record = ImageRecord(image_id, file_name, name, height, width, segments)
    for writer in writers:
        writer.write(record, result)
    return record


def predict_batch(
    model: Model,
    processor: MPFormerImageProcessor,
    batch: dict,
    accelerator: Accelerator,
    max_detections: int = 100,
    things: bool = False,
) -> list[dict]:
    """Results of each image of a batch of `EvaluationDataset`, on the CPU: by kind, as `TaskMetrics.add` takes them;
    `drawn`, the result to draw; and `result`, all of it, as `PredictionFormat.write` takes it."""
    inputs = send_to_device(batch["inputs"], model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with accelerator.autocast():
        outputs = model(**inputs)
    results = results_of(outputs, batch["sizes"], processor, max_detections, things)
    loss = getattr(outputs, "loss", None)
    return results if loss is None else [{**result, "loss": float(loss)} for result in results]


def results_of(
    outputs,
    image_sizes: list[tuple[int, int]],
    processor: MPFormerImageProcessor,
    max_detections: int = 100,
    things: bool = False,
) -> list[dict]:
    """Results of model outputs at (height, width) `image_sizes`, see `predict_batch`; with `things` also the instances
    of panoptic segmentation."""
    sizes: dict[str, Any] = {"target_sizes": image_sizes}
    instances: list[dict] = [{} for _ in image_sizes]
    if processor.task == "instance" or things:
        options: dict[str, Any] = {"threshold": 0.0, "max_detections": max_detections, "return_binary_maps": True}
        results = processor.post_process_instance_segmentation(outputs, **sizes, **options)
        instances = [instance_prediction(send_to_device(result, "cpu"), processor.threshold) for result in results]
    if processor.task == "instance":
        return instances
    semantic = send_to_device(processor.post_process_semantic_segmentation(outputs, **sizes), "cpu")
    if processor.task == "semantic":
        return [{"semantic": map_, "drawn": map_, "result": map_} for map_ in semantic]
    panoptic = send_to_device(processor.post_process_panoptic_segmentation(outputs, **sizes), "cpu")
    return [
        {**things, "semantic": map_, "panoptic": result, "drawn": result, "result": result}
        for things, map_, result in zip(instances, semantic, panoptic, strict=True)
    ]


def instance_prediction(result: dict, threshold: float) -> dict:
    """All instances for the metric, and those of at least a score to draw."""
    segments, masks = result["segments_info"], []
    for mask, (x, y, width, height) in zip(result["segmentation"], (row["bbox"] for row in segments), strict=True):
        masks.append(as_rle(encode_part(mask[y : y + height, x : x + width].numpy(), y, x, *mask.shape)))
    above = [index for index, segment in enumerate(segments) if segment["score"] >= threshold]
    return {
        "instance": {
            "masks": masks,
            "label_ids": [segment["label_id"] for segment in segments],
            "scores": [segment["score"] for segment in segments],
        },
        "drawn": {"segmentation": result["segmentation"][above], "segments_info": [segments[i] for i in above]},
        "result": result,
    }


@torch.no_grad()
def draw_rows(
    model: Model,
    processor: MPFormerImageProcessor,
    dataset: SegmentationDataset,
    rows: list[int],
    accelerator: Accelerator,
) -> list[DrawnSides]:
    """Ground truth and prediction of some rows of a split."""
    batches, pictures = EvaluationDataset(dataset, processor, rows), []
    for row, image, segments in (batches[index] for index in range(len(rows))):
        (predictions,) = predict_batch(model, processor, batches.collate([(row, image, segments)]), accelerator)
        pictures.append(draw_sides(image, predictions["drawn"], segments, processor.task, dataset.labels, legend=False))
    return pictures


def diagnose_model(
    model: Model, processor: MPFormerImageProcessor, loader: DataLoader, accelerator: Accelerator
) -> LayerDiagnostics:
    """Layer-wise diagnostics of a split, see `mpformer_hf.evaluation.diagnostics`, over all processes."""
    was_training, total = model.training, LayerDiagnostics()
    model.eval()
    for batch in batches_with_progress(loader, "diagnose", accelerator):
        inputs = model_inputs(processor, batch["images"], batch["segments"])
        given = {name: inputs[name] for name in ("pixel_values", "mask_labels", "class_labels")}
        total += diagnose(model, **send_to_device(given, accelerator.device))
    model.train(was_training)
    summed = LayerDiagnostics()
    for part in gather_object([total]):
        summed += part
    return summed
