"""`mpformer convert`: official checkpoints and Mask2Formers to MP-Former, MP-Former to a plain Mask2Former."""

from pathlib import Path
from typing import Any

from transformers import Mask2FormerImageProcessor

from ..data.names import check_names
from ..data.releases import RELEASES, categories_of
from ..inference.loading import load_model, load_processor
from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..utils.files import check_new_folder, read_json, write_new_folder
from .arguments import ConversionArguments
from .conversion import convert_checkpoint, infer_config
from .detectron2_checkpoint import read_checkpoint
from .publishing import write_card

GENERIC = {"task": "panoptic", "shortest_edge": 800, "longest_edge": 1333, "threshold": 0.5, "names": [], "things": []}
LICENCE = "The weights of the public MP-Former and Mask2Former releases are licensed CC BY-NC 4.0."
TEXT = """Converted from the detectron2 checkpoint `{source}`: {queries} queries, {classes} classes, {backbone}
backbone. {licence}"""


def class_names(args: ConversionArguments, release: dict, count: int) -> tuple[list[str], list[int]]:
    """Class names and stuff ids of a checkpoint with `count` classes. A checkpoint with as many classes as the dataset
    has things is an instance model.

    Raises:
        ValueError: the number of names is not the checkpoint's number of classes.
    """
    if args.id2label:
        names = [name for _, name in sorted(check_names(read_json(args.id2label), str(args.id2label)).items())]
        things = set(release["things"]) if len(names) == len(release["names"]) else set(range(count))
    else:
        names, things = release["names"], set(release["things"])
        if names and count == len(things):
            names, things = [names[i] for i in sorted(things)], set(range(count))
    if names and len(names) != count:
        raise ValueError(f"The checkpoint has {count} classes, but there are {len(names)} names.")
    return names, sorted(set(range(len(names))) - things)


def category_ids(dataset: str | None, names: list[str], task: str) -> list[int] | None:
    """The dataset's own ids of the classes, for files of predictions; None if they are the class ids or unknown."""
    if dataset not in RELEASES:
        return None
    ids = {row["name"]: row["id"] for row in categories_of(dataset)}
    if dataset == "ade20k" and task == "semantic":
        ids = {name: i + 1 for name, i in ids.items()}  # 0 is "other" in its label maps
    chosen: list[Any] = [ids.get(name) for name in names]
    return None if None in chosen or chosen == list(range(len(names))) else chosen


def convert_official(args: ConversionArguments) -> None:
    """Convert an official checkpoint; nothing is written unless everything fits."""
    weights = read_checkpoint(Path(args.source))
    release = RELEASES[args.dataset] if args.dataset else GENERIC
    names, stuff = class_names(args, release, infer_config(weights).num_labels)
    fields = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}} if names else {}
    model = convert_checkpoint(weights, **fields)
    config = model.config
    processor = MPFormerImageProcessor(
        task=args.task or ("instance" if release["things"] and not stuff else release["task"]),
        size={"shortest_edge": release["shortest_edge"], "longest_edge": release["longest_edge"]},
        threshold=release["threshold"],
        label_ids_to_fuse=stuff,
    )
    processor.category_ids = category_ids(args.dataset, names, processor.task)
    if args.dataset in RELEASES:
        colors = {row["name"]: row.get("color") for row in categories_of(args.dataset)}
        palette: list[Any] = [colors.get(name) for name in names]
        processor.palette = palette if all(palette) else None
    if processor.task == "panoptic" and not stuff:
        print("note: no class is known as stuff; give --dataset, or set label_ids_to_fuse in preprocessor_config.json")
    text = TEXT.format(
        source=Path(args.source).name,
        queries=config.num_queries,
        classes=config.num_labels,
        backbone=config.backbone_config.model_type,
        licence=LICENCE,
    )
    with write_new_folder(args.destination) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_card(folder, text, license="cc-by-nc-4.0")
    print(f"{len(weights)} tensors -> {args.destination}: {config.num_queries} queries, {config.num_labels} classes.")
    print(LICENCE)


def convert_from_mask2former(args: ConversionArguments) -> None:
    """Write a Mask2Former of transformers as an MP-Former folder, with the values of its image processor."""
    model, processor = load_model(args.source), load_processor(args.source)
    if args.task:
        processor.task = args.task
    with write_new_folder(args.destination) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f"MP-Former of {model.num_parameters():,} parameters -> {args.destination}; default task {processor.task}")


def mask2former_processor(own: MPFormerImageProcessor) -> Mask2FormerImageProcessor:
    """The image processor of a plain Mask2Former: all fields that both have."""
    values = {name: getattr(own, name, None) for name in Mask2FormerImageProcessor.valid_kwargs.__annotations__}
    return Mask2FormerImageProcessor(**{name: value for name, value in values.items() if value is not None})


def convert_to_mask2former(args: ConversionArguments) -> None:
    """Write a plain Mask2Former folder, including the image processor."""
    plain, processor = load_model(args.source).to_mask2former(), mask2former_processor(load_processor(args.source))
    with write_new_folder(args.destination) as folder:
        plain.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f"Mask2Former of {plain.num_parameters():,} parameters -> {args.destination}")


def convert(args: ConversionArguments) -> None:
    """Convert a checkpoint.

    Raises:
        ValueError: the source cannot be read or converted, or the destination is not empty.
    """
    check_new_folder(args.destination)
    kinds = {
        "official": convert_official,
        "from-mask2former": convert_from_mask2former,
        "to-mask2former": convert_to_mask2former,
    }
    kinds[args.kind](args)
