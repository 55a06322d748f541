"""Data collator and metrics for `transformers.Trainer`.

trainer = Trainer(
    model,
    TrainingArguments("outputs/yours", eval_strategy="epoch", remove_unused_columns=False, batch_eval_metrics=True,
                      label_names=["mask_labels", "class_labels"], metric_for_best_model="pq"),
    train_dataset=open_dataset(arguments, "train"),
    eval_dataset=validation,
    data_collator=SegmentationCollator(processor),
    compute_metrics=SegmentationMetrics(processor, validation),
    processing_class=processor,
)
"""

import os
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

from torch import Tensor
from transformers import EvalPrediction

from ..data.dataset import SegmentationDataset
from ..data.segments import Segments
from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.image_sizes import size_of
from .evaluator import results_of
from .inputs import model_inputs
from .task_metrics import TaskMetrics, metric_names

LABEL_NAMES = ["mask_labels", "class_labels"]


class SegmentationCollator:
    """Examples of a `SegmentationDataset` to model inputs.

    Args:
        processor: resizes, normalises and pads.
        augment: changes an image (uint8 `[3, H, W]`) and its segments before that; for training sets only.
    """

    def __init__(
        self,
        processor: MPFormerImageProcessor,
        augment: Callable[[Tensor, Segments], tuple[Tensor, Segments]] | None = None,
    ):
        self.processor, self.augment = processor, augment

    def __call__(self, examples: list[tuple[Tensor, Segments]]) -> dict:
        """Inputs of the model, see `model_inputs`."""
        if self.augment is not None:
            examples = [self.augment(*example) for example in examples]
        images, segments = zip(*examples, strict=True)
        return model_inputs(self.processor, images, segments)


class SegmentationMetrics:
    """`compute_metrics` of a Trainer with `batch_eval_metrics=True`: AP, PQ or mIoU at the original image size.

    Args:
        processor: its `task` decides what is scored, its thresholds what is found.
        dataset: the Trainer's `eval_dataset`, which is read in order.
        max_detections: number of best-scored instances per image that are counted for AP.

    Raises:
        ValueError: there are several processes, or the processor's stuff classes are not those of the dataset.
    """

    def __init__(self, processor: MPFormerImageProcessor, dataset: SegmentationDataset, max_detections: int = 100):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("SegmentationMetrics is for one process; mpformer train evaluates on several.")
        stuff = dataset.labels.stuff if processor.task == "panoptic" else []
        if sorted(processor.label_ids_to_fuse) != sorted(stuff):
            raise ValueError(
                f"label_ids_to_fuse of the processor is {processor.label_ids_to_fuse}, expected {stuff}: the stuff "
                "classes of the dataset, none for instance segmentation."
            )
        self.processor, self.dataset, self.max_detections = processor, dataset, max_detections
        self.reset()

    def reset(self) -> None:
        """Forget the images so far."""
        self.metrics = TaskMetrics(self.processor.task, self.dataset.labels, self.max_detections, self.dataset.score)
        self.row = 0

    def __call__(self, prediction: EvalPrediction, compute_result: bool | None = None) -> dict[str, float]:
        """Add a batch of logits (the model's outputs but for the loss).

        Returns:
            with `compute_result` the scores in [0, 1] without those that are not defined; else nothing.

        Raises:
            ValueError: `batch_eval_metrics` is not set, or other images are evaluated than those of the dataset.
        """
        if compute_result is None:
            raise ValueError("SegmentationMetrics needs TrainingArguments(batch_eval_metrics=True).")
        classes, masks, *pixel_mask = prediction.predictions
        outputs = SimpleNamespace(
            class_queries_logits=classes, masks_queries_logits=masks, pixel_mask=pixel_mask[0] if pixel_mask else None
        )
        last = self.row + len(classes)
        if last > len(self.dataset):
            self.reset()
            raise ValueError(
                f"The Trainer evaluates more images than the {len(self.dataset)} of SegmentationMetrics, or an earlier "
                "evaluation was interrupted; then try again."
            )
        segments = [self.dataset[row][1] for row in range(self.row, last)]
        for labels, part in zip(prediction.label_ids[LABEL_NAMES.index("class_labels")], segments, strict=True):
            if Counter(labels.tolist()) - Counter(part.classes.values()):
                self.reset()
                raise ValueError("The Trainer evaluates other images than those of SegmentationMetrics.")
        sizes = [size_of(part.map) for part in segments]
        results = results_of(outputs, sizes, self.processor, self.max_detections)
        for result, part in zip(results, segments, strict=True):
            self.metrics.add(result, part)
        self.row = last
        if not compute_result:
            return {}
        if self.row != len(self.dataset):
            seen = self.row
            self.reset()
            raise ValueError(f"The Trainer evaluated {seen} images, SegmentationMetrics has {len(self.dataset)}.")
        scores = self.metrics.compute()
        self.reset()
        names = metric_names(self.processor.task, self.dataset.score)
        return {name: scores[name] for name in names if scores[name] is not None}
