"""Turn foreign checkpoints into folders for `from_pretrained`, and MP-Former into plain Mask2Former.

python scripts/convert_checkpoint.py official model_final.pth converted --dataset coco-instance
python scripts/convert_checkpoint.py official model_final.pkl converted --id2label names.json --task panoptic
python scripts/convert_checkpoint.py to-mask2former outputs/yours plain

`official` reads detectron2 checkpoints of MP-Former and Mask2Former (R50, R101, Swin; images, not video). Pickles are
read without running any code in them. `to-mask2former` writes a folder that transformers loads without this package.
"""

import argparse
import codecs
import collections
import json
import pickle
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script: find the package `mpformer_hf`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from transformers import Mask2FormerImageProcessor

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.conversion import convert_checkpoint, read_config
from mpformer_hf.publishing import card_metadata
from training.labels import RELEASES

PLAIN = {"task": "panoptic", "shortest_edge": 800, "longest_edge": 1333, "threshold": 0.5, "names": [], "things": []}
LICENCE = "The weights of the public MP-Former and Mask2Former releases are licensed CC BY-NC 4.0."
CARD = """---
{metadata}
---

# {title}

Converted from the detectron2 checkpoint `{source}`: {queries} queries, {classes} classes, {backbone} backbone. {note}
"""
# All that a pickle of numpy arrays needs, under the module names of numpy 1 and 2; none of it runs code of the file.
NUMPY = {
    **{
        f"{module}.multiarray._reconstruct": np._core.multiarray._reconstruct
        for module in ("numpy.core", "numpy._core")
    },
    **{f"{module}.multiarray.scalar": np._core.multiarray.scalar for module in ("numpy.core", "numpy._core")},
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": codecs.encode,
    "collections.OrderedDict": collections.OrderedDict,
}
DTYPES = [type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")]


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays and refuses everything else."""

    def find_class(self, module: str, name: str):
        try:
            return NUMPY[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The `model` entry of a detectron2 checkpoint: `.pth` of torch, or `.pkl`, a pickle of numpy arrays.

    Raises:
        ValueError: not there, truncated, not a checkpoint, or it asks for code to be run.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                content = ArrayUnpickler(file, encoding="latin1").load()
        else:
            allowed = [value for value in NUMPY.values() if value is not codecs.encode]
            with torch.serialization.safe_globals([*allowed, *DTYPES]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        told = next((line for line in lines if "GLOBAL" in line or "asks for" in line), None)
        if told is None:
            raise ValueError(f"{path} is no checkpoint or is truncated: {lines[0]}") from error
        raise ValueError(f"{path} is refused, since reading it could run code that it brings: {told}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no checkpoint or is truncated: {str(error).splitlines()[0]}") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ValueError(f"{path} has no entry 'model', so it is no detectron2 checkpoint.")
    return {key: torch.as_tensor(value) for key, value in model.items()}


def prepare_folder(path: Path) -> Path:
    """
    Raises:
        ValueError: the folder holds something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not empty; name another folder.")
    return path


def class_names(args: argparse.Namespace, release: dict, count: int) -> tuple[list[str], list[int]]:
    """Class names and stuff ids of a checkpoint with `count` classes; one with as many classes as the dataset has
    things is an instance model.

    Raises:
        ValueError: the names do not fit the checkpoint.
    """
    if args.id2label:
        names = [name for _, name in sorted((int(i), n) for i, n in json.loads(args.id2label.read_text()).items())]
        things = set(range(count))
    else:
        names, things = release["names"], set(release["things"])
        if names and count == len(things):
            names, things = [names[i] for i in sorted(things)], set(range(count))
    if names and len(names) != count:
        raise ValueError(f"The checkpoint has {count} classes, but there are {len(names)} names.")
    return names, sorted(set(range(len(names))) - things)


def convert_official(args: argparse.Namespace) -> None:
    """Read, convert, check, and only then write."""
    folder = prepare_folder(args.destination)
    weights = read_checkpoint(args.source)
    release = RELEASES.get(args.dataset, PLAIN)
    names, stuff = class_names(args, release, read_config(weights).num_labels)
    fields = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}} if names else {}
    model = convert_checkpoint(weights, **fields)
    config = model.config
    processor = MPFormerImageProcessor(
        task=args.task or ("instance" if release["things"] and not stuff else release["task"]),
        size={"shortest_edge": release["shortest_edge"], "longest_edge": release["longest_edge"]},
        threshold=release["threshold"],
        label_ids_to_fuse=stuff,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    card = CARD.format(
        metadata=card_metadata(license="cc-by-nc-4.0"),
        title=folder.resolve().name,
        source=args.source.name,
        queries=config.num_queries,
        classes=config.num_labels,
        backbone=config.backbone_config.model_type,
        note=LICENCE,
    )
    (folder / "README.md").write_text(card)
    print(f"{len(weights)} tensors -> {folder}: {config.num_queries} queries, {config.num_labels} classes. {LICENCE}")


def convert_to_mask2former(args: argparse.Namespace) -> None:
    """Write a plain Mask2Former folder, image processor included."""
    folder = prepare_folder(args.destination)
    if not (args.source / "config.json").is_file():
        raise ValueError(f"{args.source} is no folder of a saved model: it has no config.json.")
    model = MPFormerForUniversalSegmentation.from_pretrained(args.source)
    own = MPFormerImageProcessor.from_pretrained(args.source)
    shared = ("size", "do_resize", "do_rescale", "do_normalize", "image_mean", "image_std", "do_reduce_labels")
    fields = {name: getattr(own, name) for name in (*shared, "ignore_index", "rescale_factor", "size_divisor")}
    plain = model.to_mask2former()
    folder.mkdir(parents=True, exist_ok=True)
    plain.save_pretrained(folder)
    Mask2FormerImageProcessor(**fields).save_pretrained(folder)
    print(f"A plain Mask2Former of {plain.num_parameters():,} parameters -> {folder}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    official = commands.add_parser("official", help="a detectron2 checkpoint to a folder for from_pretrained")
    official.set_defaults(convert=convert_official)
    official.add_argument("--dataset", choices=sorted(RELEASES), help="class names, task, sizes and thresholds of it")
    official.add_argument("--id2label", type=Path, help="JSON file of class names")
    official.add_argument("--task", choices=["semantic", "instance", "panoptic"], help="default task of the pipeline")
    plain = commands.add_parser("to-mask2former", help="a saved MP-Former to a plain Mask2Former")
    plain.set_defaults(convert=convert_to_mask2former)
    for command in (official, plain):
        command.add_argument("source", type=Path, help="what to convert")
        command.add_argument("destination", type=Path, help="new or empty folder")
    args = parser.parse_args(argv)
    try:
        args.convert(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
