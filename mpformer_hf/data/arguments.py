"""Which dataset is read, and how."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..utils.arguments import CheckedArguments, argument, option

MEMORY = "memory:"  # beginning of the names of datasets in memory
Task = Literal["semantic", "instance", "panoptic"]


@dataclass
class DataArguments(CheckedArguments):
    """The dataset and how to read it."""

    _argument_group_name = "data"
    _advanced: ClassVar[tuple[str, ...]] = (
        *("dataset_config_name", "image_column", "label_column", "void_label"),
        *("allow_outside_files", "synonyms"),
    )

    dataset_name: str = argument("data", "dataset: Hub name, or local folder of any layout", "")
    dataset_config_name: str | None = option(None, "Configuration of the dataset, such as v2.0 of Mapillary Vistas.")
    task: Task = option("panoptic", "Segmentation task.")
    train_split: str = option("train", "Split to train on.")
    eval_split: str = option("validation", "Split to evaluate on.")
    image_column: str | None = option(None, "Column of the images; default: image or pixel_values.")
    label_column: str | None = option(
        None, "Column of the labels; default: objects, label, annotation or segmentation."
    )
    id2label: str | None = option(None, "JSON file of class names, or ade20k, ...; default: from the dataset.")
    do_reduce_labels: bool = option(False, "Class 0 of the label maps is void, every other class one less.")
    void_label: int = option(
        255, "Id of void in semantic label maps, in addition to 255 (which may be a class).", within="[0, 65535]"
    )
    validation_share: float | None = option(
        None, "Evaluate on this share of the training split, drawn by seed 0, and train on the rest.", within="(0, 1)"
    )
    skip_bad_images: bool = option(False, "Read all images first, and leave out and name those that are invalid.")
    allow_outside_files: bool = option(
        False, "Read files that the dataset names outside of its folder (absolute paths, links)."
    )
    ignore_labels: list[str] = option(
        [], "Classes to treat as void: not trained on, not scored, not background. The model does not have them."
    )
    annotated_classes: list[str] = option(
        [], "Classes that are completely labelled in every image. Others may occur without labels. Default: all."
    )
    incomplete: bool = option(
        False, "Some objects have no label; unmatched predictions are then never false positives."
    )
    join: list[str] = option([], "Further datasets; classes of one name become one, and each dataset knows its own.")
    synonyms: str | None = option(None, 'join: JSON file of other names of classes, {"automobile": "car"}.')
    streaming: bool = option(False, "Stream the dataset instead of downloading it first.")
    max_eval_samples: int | None = option(None, "Use only the first images of the evaluation split.", within="[1, inf)")

    def __post_init__(self):
        super().__post_init__()
        for name in ("validation_share", "skip_bad_images"):
            if self.streaming and getattr(self, name):
                raise ValueError(f"{name} needs the whole dataset: leave out streaming.")
        for name in ("annotated_classes", "incomplete"):
            if self.task == "semantic" and getattr(self, name):
                raise ValueError(f"{name} is for objects: in semantic maps, unknown pixels are void (255).")
        for name in ("streaming", "ignore_labels", "annotated_classes", "id2label"):
            if self.join and getattr(self, name):
                raise ValueError(f"{name} is for one dataset: leave it out, or join.")
        if self.synonyms and not self.join:
            raise ValueError("synonyms is for the classes of several datasets: give join too.")
        if self.validation_share and self.train_split == self.eval_split:
            raise ValueError("validation_share divides the training split: eval_split must have another name.")


@dataclass
class ModelDataArguments(DataArguments):
    """The dataset that a saved model is applied to."""

    task: Task | None = option(None, "Segmentation task; default: the model's.")  # type: ignore[assignment]


@dataclass
class TrainingDataArguments(DataArguments):
    """The dataset, and which of its images are trained on."""

    _advanced: ClassVar[tuple[str, ...]] = (*DataArguments._advanced, "shuffle_buffer")

    shuffle_buffer: int = option(1000, "streaming: size of the shuffle buffer, in images.", within="[1, inf)")
    join_weights: list[float] = option(
        [],
        "join: how often each dataset is drawn, DATA first; default: each image once in an epoch.",
        within="(0, inf)",
    )
    drop_empty: bool = option(False, "Leave out training images without any object, as detectron2 does for instances.")
    max_train_samples: int | None = option(None, "Use only the first images of the training split.", within="[1, inf)")
    train_samples_seed: int | None = option(
        None, "Draw max_train_samples at random by this seed; default: the first images.", within="[0, 4294967295]"
    )
    dataloader_num_workers: int = option(2, "Worker processes of the training data loader.", within="[0, 1024]")

    def __post_init__(self):
        super().__post_init__()
        if self.streaming and self.train_samples_seed is not None:
            raise ValueError("train_samples_seed needs the whole dataset: leave out streaming.")
        if self.join_weights and len(self.join_weights) != 1 + len(self.join):
            raise ValueError(f"join_weights has {len(self.join_weights)} numbers for {1 + len(self.join)} datasets.")
        if self.train_samples_seed is not None and self.max_train_samples is None:
            raise ValueError("train_samples_seed draws max_train_samples images: give their number too.")


@dataclass
class PreparationArguments(CheckedArguments):
    """What is written as parquet files."""

    _argument_group_name = "preparation"

    dataset: str = argument("data", "dataset: Hub name, or local folder of any layout")
    output: Path = argument("output", "new folder")
    task: Task = option(help="Task that the labels are for.")
    splits: list[str] = option(["train", "validation"], "Splits; their names are kept.")
    validation_share: float | None = option(None, "Share of the first split that is the second one.", within="(0, 1)")
    id2label: str | None = option(None, "JSON file of class names, or ade20k, ...; default: from the dataset.")
    version: str | None = option(None, "Configuration of the dataset, such as v2.0 of Mapillary Vistas.")
    image_column: str | None = option(None, "Column of the images; default: image or pixel_values.")
    label_column: str | None = option(None, "Column of the labels; default: objects, label or annotation.")
    do_reduce_labels: bool = option(False, "Class 0 of the label maps is void, every other class one less.")
    void_label: int = option(255, "Id of void in semantic label maps, in addition to 255.", within="[0, 65535]")
    skip_bad_images: bool = option(False, "Read all images first, and leave out and name those that are invalid.")
    allow_outside_files: bool = option(
        False, "Read files that the dataset names outside of its folder (absolute paths, links)."
    )
    workers: int = option(os.cpu_count() or 1, "Threads that read images.", within="[1, 1024]")


@dataclass
class CheckArguments(CheckedArguments):
    """What is checked, and what is drawn."""

    _argument_group_name = "check"

    splits: list[str] = option(["train", "validation"], "Splits to read.")
    sample: int | None = option(None, "Read this many images of each split; default: all.", within="[1, inf)")
    output: str = option("", "New folder for pictures of the first images with their annotations.")
    num_pictures: int = option(8, "output: number of pictures of each split.", within="[1, 1000]")
