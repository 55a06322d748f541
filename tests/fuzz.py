"""Broken files and flags, drawn by a seed: each must give the right result or an error of one sentence.

python -m tests.fuzz --cases 1500 --seed 0

Every case changes one valid input. Then it must end with the result of the valid input ("right") or, unless the change
is harmless, with an error of one line ("sentence"). The other outcomes are failures: harmless inputs that are refused,
tracebacks, other results without an error, and cases that do not end. `tests/kills.py` is about runs that are killed.
"""

import argparse
import copy
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli import predict
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.inference.loading import load_model, load_processor
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.training import finetune
from mpformer_hf.training.arguments import parse_arguments
from tests import datasets_on_disk as make
from tests.runs import flags
from tests.tiny import tiny_model

OUTCOMES = ("right", "sentence", "refused", "traceback", "silently wrong", "hang")
LIMIT = 60  # seconds of a case
NUMBERS = [-1, 0.5, 10**12, 1e308, float("nan"), float("inf")]
JUNK = [None, "", "text", [], [None], {}, {"a": 1}, *NUMBERS]


class Hang(BaseException):
    """A case took longer than `LIMIT`."""


@contextmanager
def quiet():
    """Nothing is printed."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


class Case:
    """A changed input.

    Args:
        what: the change, for the list of failures.
        harmless: whether an error is a failure.
        use: reads the input; returns what is compared.
        expected: the result of the valid input.
    """

    def __init__(self, what: str, harmless: bool, use: Callable[[], object], expected: object):
        self.what, self.harmless, self.use, self.expected = what, harmless, use, expected

    def outcome(self) -> tuple[str, str]:
        """One of `OUTCOMES`, and the error if there was one."""

        def stop(*_):
            raise Hang

        signal.signal(signal.SIGALRM, stop)
        signal.alarm(LIMIT)
        try:
            with quiet():
                result = self.use()
        except (ValueError, FloatingPointError, OSError) as error:
            text = str(error)
            good = text and "\n" not in text and "object at 0x" not in text and len(text) < 2000
            return ("refused" if self.harmless else "sentence" if good else "traceback"), text
        except SystemExit as error:  # argparse: usage and one sentence
            return ("sentence" if error.code == 2 else "traceback"), str(error)
        except Hang:
            return "hang", ""
        except Exception as error:
            return "traceback", f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        return ("right" if result == self.expected else "silently wrong"), ""


# --- Annotations and images of a COCO folder ---


def read_all(folder: Path, task: str) -> bytes:
    """All images and segments of a folder."""
    split = open_dataset(DataArguments(dataset_name=str(folder), task=task), "train")
    content = [json.dumps([split.labels.names, sorted(split.labels.things)]).encode()]
    for index in range(len(split)):
        image, segments = split[index]
        content += [image.numpy().tobytes(), segments.map.numpy().tobytes()]
        content.append(json.dumps([sorted(segments.classes.items()), sorted(segments.crowds.items())]).encode())
    return b"".join(content)


HARMFUL = {  # key: values that it may not have
    "images": JUNK,
    "annotations": [None, "text", {}, 3, [None], [3], ["a"]],
    "categories": JUNK,
    "file_name": JUNK,
    "height": [None, "40", [], 0, 41, *NUMBERS],
    "width": [None, "60", {}, 0, 61, *NUMBERS],
    "image_id": JUNK,
    "category_id": JUNK,
    "iscrowd": ["0", "1", None, [], 2, *NUMBERS],
    "isthing": ["0", "1", None, [], 2, *NUMBERS],
    "name": [None, [], {}, 3, *NUMBERS],
    "segments_info": [None, "text", 3, {"a": 1}, [None], [3], [{}]],
    "segmentation": [
        *[value for value in JUNK if value != 0],
        [[]],
        [[1, 1, 5, 5]],
        [[1, 1, 5, 5, 7, 7, 9]],
        [[1, 1, 1e9, 1, 1e9, 1e9]],
        [[1, 1, float("nan"), 1, 5, 5]],
        [["a"] * 6],
        {"size": [40, 60], "counts": [10, 20]},
        {"size": [40, 60], "counts": "oo"},
        {"size": [60, 40], "counts": [2400]},
        {"size": [40], "counts": [2400]},
    ],
}
UNUSED = ("info", "licenses", "area", "bbox", "date_captured", "supercategory")


def paths_of(value, path=()):
    """All places of a JSON value where there is a key of a mapping."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from paths_of(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths_of(inner, (*path, index))


def change_json(content: dict, draw: random.Random) -> tuple[dict, str, bool]:
    """A changed copy of COCO annotations, the change, and whether it is harmless."""
    content = copy.deepcopy(content)
    places = [place for place in paths_of(content) if place[-1] in HARMFUL or place[-1] == "id"]
    place = draw.choice(places)
    parent = content
    for step in place[:-1]:
        parent = parent[step]
    key, how = place[-1], draw.random()
    own_id = key == "id" and place[0] == "annotations" and len(place) == 3  # which nothing refers to
    if how < 0.15:
        unused = draw.choice(UNUSED)
        parent[unused] = draw.choice(JUNK)
        of_object = place[0] == "annotations" and "segments_info" not in place  # whose area decides its size for AP
        harmless = unused != "area" or not of_object
        return content, f"{place[:-1]} {unused} = {parent[unused]!r}", harmless
    if how < 0.35:
        del parent[key]
        return content, f"without {place}", own_id or key in ("height", "width", "iscrowd")
    parent[key] = draw.choice(HARMFUL.get(key, [value for value in JUNK if value not in (0, 10**12)]))
    return content, f"{place} = {parent[key]!r}", own_id


def coco_cases(folder: Path, draw: random.Random, task: str):
    """Cases of COCO annotations and of the files that they refer to."""
    source = (make.coco_instances if task == "instance" else make.coco_panoptic)(folder / "valid")
    file = "annotations/instances_train2017.json" if task == "instance" else "panoptic.json"
    expected = read_all(source, task)
    valid = json.loads((source / file).read_text())
    pictures = [path.relative_to(source) for path in sorted(source.rglob("*.png"))]
    while True:
        shutil.rmtree(folder / "changed", ignore_errors=True)
        shutil.copytree(source, folder / "changed")
        harmless, how = False, draw.random()
        if how < 0.7:
            content, what, harmless = change_json(valid, draw)
            (folder / "changed" / file).write_text(json.dumps(content))
        elif how < 0.85 or not pictures:
            text = (source / file).read_text()
            end = draw.randrange(len(text) - 1)
            what = f"{file} ends after {end} bytes"
            (folder / "changed" / file).write_text(text[:end])
        else:
            picture = draw.choice(pictures)
            content = (source / picture).read_bytes()
            what, changed = change_bytes(content, draw)
            what = f"{picture}: {what}"
            (folder / "changed" / picture).write_bytes(changed)
        yield Case(what, harmless, lambda: read_all(folder / "changed", task), expected)


def change_bytes(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A truncated, emptied, overwritten or flipped file."""
    kind = draw.choice(["truncated", "empty", "text", "flipped"])
    if kind == "truncated":
        end = draw.randrange(len(content))
        return f"truncated to {end} bytes", content[:end]
    if kind == "flipped":
        place = draw.randrange(len(content))
        return f"byte {place} flipped", content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
    return kind, b"" if kind == "empty" else b"this is no image"


# --- Saved models ---


def logits_of(folder: Path) -> bytes:
    """Result of a saved model for one image."""
    model, processor = load_model(str(folder)), load_processor(str(folder))
    image = torch.from_numpy(np.array(make.photo())).permute(2, 0, 1)
    result = Predictor(model, processor).predict([image])[0]
    return result["segmentation"].numpy().tobytes() + json.dumps(result["segments_info"]).encode()


MODEL_FIELDS = (
    *("num_queries", "hidden_dim", "decoder_layers", "num_attention_heads", "encoder_layers", "dim_feedforward"),
    *("pilot_groups", "pilot_label_noise", "backbone_config", "id2label", "feature_strides"),
)
PROCESSOR_FIELDS = ("size", "threshold", "mask_threshold", "task", "image_mean", "image_std", "label_ids_to_fuse")


def model_cases(folder: Path, draw: random.Random):
    """Cases of config.json, preprocessor_config.json and model.safetensors."""
    source = folder / "valid"
    tiny_model().save_pretrained(source)
    size = {"shortest_edge": 64, "longest_edge": 96}
    MPFormerImageProcessor(task="panoptic", size=size, threshold=0.0).save_pretrained(source)
    expected, changed = logits_of(source), folder / "changed"
    while True:
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(source, changed)
        how = draw.random()
        if how < 0.5:
            name, fields = draw.choice([("config.json", MODEL_FIELDS), ("preprocessor_config.json", PROCESSOR_FIELDS)])
            content = json.loads((source / name).read_text())
            key = draw.choice(fields)
            value = draw.choice([None, "text", -1, float("nan"), {"a": 1}, []])
            content[key] = value
            what = f"{name} {key} = {value!r}"
            (changed / name).write_text(json.dumps(content))
        elif how < 0.75:
            name = draw.choice(["config.json", "preprocessor_config.json", "model.safetensors"])
            content = (source / name).read_bytes()
            end = draw.randrange(len(content) - 2)
            what = f"{name} ends after {end} bytes"
            (changed / name).write_bytes(content[:end])
        else:
            weights = load_file(source / "model.safetensors")
            key = draw.choice(
                [name for name in sorted(weights) if "pilot_class" not in name and "num_batches" not in name]
            )
            kind = draw.choice(["missing", "nan", "inf", "shape"])
            if kind == "missing":
                del weights[key]
            elif kind == "shape":
                weights[key] = torch.zeros(*weights[key].shape, 2)
            else:
                weights[key].view(-1)[0] = float(kind)
            what = f"{key}: {kind}"
            save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
        yield Case(what, False, lambda: logits_of(changed), expected)


# --- Flags and run folders ---


def flag_cases(folder: Path, draw: random.Random):
    """One flag of a short training run has an unusual value: it is refused, or the run is whole."""
    shapes = make.shapes(folder / "shapes", train=2, validation=1)
    base = {"max_train_steps": 1, "max_eval_samples": 1, "num_pictures": 0, "eval_steps": 1}
    left_out = {"output_dir", "push_to_hub", "hub_model_id", "dataset_name", "torch_compile"}  # compiling takes minutes
    names = sorted(set(parse_arguments([]).as_dict()) - left_out)
    number = 0
    while True:
        name = draw.choice(names)
        value = draw.choice(["nan", "inf", "-inf", "-1", "0", "0.5", "1e9", "text", "null", "[1", "{}", "2 1", "true"])
        number += 1
        output = folder / f"out{number}"
        argv = flags(shapes, output, **{**base, name: value})

        def use(argv=argv, output=output):
            AcceleratorState._reset_state(reset_partial_state=True)
            try:
                results = finetune.main(argv)
            finally:
                shutil.rmtree(output, ignore_errors=True)
            return "whole" if results["steps"] >= 1 and "last" in results else results

        yield Case(f"--{name} {value}", False, use, "whole")


def result_cases(folder: Path, draw: random.Random):
    """A file of an earlier `mpformer predict` is broken: it is written again."""
    source, photos = folder / "model", folder / "photos"
    tiny_model().save_pretrained(source)
    size = {"shortest_edge": 64, "longest_edge": 96}
    MPFormerImageProcessor(task="panoptic", size=size, threshold=0.0).save_pretrained(source)
    photos.mkdir()
    for index in range(3):
        make.photo(40 + index, 60).save(photos / f"{index}.png")
    argv = [str(source), str(photos), str(folder / "changed")]

    def content() -> dict:
        files = sorted(path for path in (folder / "changed").rglob("*") if path.is_file())
        return {path: json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes() for path in files}

    def use() -> dict:
        AcceleratorState._reset_state(reset_partial_state=True)
        predict.main(argv)
        return content()

    with quiet():
        expected = use()
    while True:
        with quiet():
            use()
        files = sorted((folder / "changed" / "results").iterdir())
        file = draw.choice([*files, folder / "changed" / "settings.json"])
        what, changed = change_bytes(file.read_bytes(), draw)
        file.write_bytes(changed)
        yield Case(f"{file.name}: {what}", file.name != "settings.json", use, expected)
        if file.name == "settings.json":
            shutil.rmtree(folder / "changed")


KINDS = {
    "COCO instances": (lambda folder, draw: coco_cases(folder, draw, "instance"), 8),
    "COCO panoptic": (lambda folder, draw: coco_cases(folder, draw, "panoptic"), 8),
    "saved models": (model_cases, 4),
    "flags": (flag_cases, 3),
    "results of predict": (result_cases, 1),
}


def run(cases: int, seed: int, kinds=tuple(KINDS)) -> tuple[dict[str, Counter], list[str]]:
    """Run about as many cases; returns the outcomes by kind, and a line for each bad one."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    table, failures = {}, []
    total = sum(KINDS[kind][1] for kind in kinds)
    for kind in kinds:
        make_cases, weight = KINDS[kind]
        table[kind] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            stream = make_cases(Path(folder), random.Random(f"{kind} {seed}"))
            for _ in range(max(1, cases * weight // total)):
                case = next(stream)
                outcome, error = case.outcome()
                table[kind][outcome] += 1
                if outcome not in ("right", "sentence"):
                    failures.append(f"{outcome}: {kind}: {case.what}: {error}")
    logging.disable(logging.NOTSET)
    return table, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100, help="number of changed inputs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of inputs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table, failures = run(args.cases, args.seed, args.kinds)
    print("\n".join(failures))
    print(f"| input | cases | {' | '.join(OUTCOMES)} |\n|---|---|{'---|' * len(OUTCOMES)}")
    for kind, counts in table.items():
        print(f"| {kind} | {counts.total()} | {' | '.join(str(counts[name]) for name in OUTCOMES)} |")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
