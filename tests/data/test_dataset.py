"""Datasets of every layout, from real parquet files; what cannot be read is one sentence."""

import contextlib
import json
import os
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Image as ImageColumn
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.data.arguments import DataArguments, TrainingDataArguments
from mpformer_hf.data.labels import as_rows
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation.evaluator import EvaluationDataset
from mpformer_hf.training import finetune
from mpformer_hf.training.arguments import TransformArguments
from mpformer_hf.training.batches import SeededSampler, TrainingDataset
from mpformer_hf.training.packing import Unpacker
from mpformer_hf.utils.files import write_json
from tests import datasets_on_disk as make
from tests.datasets_on_disk import opened
from tests.runs import flags


class Runs:
    """Unpickling this creates a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def sign(tmp_path):
    """Exists if something was executed."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def test_code_and_pickles_in_a_dataset_folder_are_not_executed(tmp_path, sign):
    folder = make.coco_panoptic(tmp_path / "data")
    code = f"import os\nos.mkdir({str(sign)!r})\n"
    for name in ("data.py", "panoptic.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(code)
    (folder / "state.pkl").write_bytes(pickle.dumps(Runs(sign)))
    open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")[0]
    (folder / "panoptic.json").unlink()
    with contextlib.suppress(ValueError):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")


def map_of(*rows):
    return np.repeat(np.array(rows, dtype=np.uint8)[:, None], 60, axis=1).repeat(40 // len(rows), axis=0)


def test_semantic_maps(tmp_path):
    data = opened(make.semantic(tmp_path / "d", [map_of(0, 2), map_of(1, 255)]), "semantic")
    assert data.labels.names == ["road", "car", "sky"] and len(data) == 2
    image, segments = data[0]
    assert image.dtype == torch.uint8 and image.shape == (3, 40, 60)
    assert segments.classes == {0: 0, 2: 2} and segments.map.shape == (40, 60)
    assert data[1][1].classes == {1: 1}


def test_other_column_names_and_flags(tmp_path):
    folder = make.semantic(tmp_path / "d", [map_of(0, 1)], columns=("pixel_values", "annotation"))
    assert opened(folder, "semantic")[0][1].classes == {0: 0, 1: 1}
    folder = make.semantic(tmp_path / "e", [map_of(0, 1)], columns=("photo", "truth"))
    assert opened(folder, "semantic", image_column="photo", label_column="truth")[0][1].classes == {0: 0, 1: 1}
    with pytest.raises(ValueError, match="none of the columns image, pixel_values, only photo, truth"):
        opened(folder, "semantic")
    with pytest.raises(ValueError, match="no column 'foto'"):
        opened(folder, "semantic", image_column="foto", label_column="truth")


def test_a_part_of_the_images_drawn_by_a_seed(shapes):
    def areas(seed):
        arguments = DataArguments(dataset_name=str(shapes), task="panoptic")
        data = open_dataset(arguments, "train", 3, sample_seed=seed)
        assert len(data) == 3
        return [row["segments_info"][0]["area"] for row in data.rows]

    first = areas(None)
    assert areas(1) == areas(1) and {str(areas(seed)) for seed in range(4)} != {str(first)}
    assert len({str(areas(seed)) for seed in range(4)}) > 1
    with pytest.raises(ValueError, match="train_samples_seed draws max_train_samples images: give their number too"):
        TrainingDataArguments(train_samples_seed=1)
    with pytest.raises(ValueError, match="train_samples_seed needs the whole dataset: leave out streaming"):
        TrainingDataArguments(train_samples_seed=0, max_train_samples=3, streaming=True)


def test_reduce_labels_keeps_void(tmp_path):
    data = opened(make.semantic(tmp_path / "d", [map_of(0, 1, 3, 255)]), "semantic", do_reduce_labels=True)
    assert data[0][1].classes == {1: 0, 3: 2}


def test_names_from_a_flag_and_limits(tmp_path):
    folder = make.semantic(tmp_path / "d", [map_of(0, 1)] * 4, names=None)
    with pytest.raises(ValueError, match="has no class names: give --id2label"):
        opened(folder, "semantic")
    (tmp_path / "names.json").write_text(json.dumps({"0": "a", "1": "b"}))
    data = open_dataset(
        DataArguments(dataset_name=str(folder), task="semantic", id2label=str(tmp_path / "names.json")), "train", 3
    )
    assert data.labels.names == ["a", "b"] and len(data) == 3
    batches = EvaluationDataset(data, MPFormerImageProcessor(), range(1, 3))
    assert len(batches) == 2 and batches[0][0] == 1 and torch.equal(batches[1][1], data[2][0])
    (tmp_path / "list.json").write_text('["a", "b"]')
    for file in ("list.json", "none.json"):
        with pytest.raises(ValueError, match=r"id2label: .*json"):
            opened(folder, "semantic", id2label=str(tmp_path / file))
    (tmp_path / "twice.json").write_text('{"0": "a", "1": "a"}')
    with pytest.raises(ValueError, match="classes of the same name: a"):
        opened(folder, "semantic", id2label=str(tmp_path / "twice.json"))


SEGMENTS = [
    {"id": 1, "category_id": 0, "isthing": 0, "iscrowd": 0},
    {"id": 70000, "category_id": 1, "isthing": 1, "iscrowd": 0},
    {"id": 300, "category_id": 1, "isthing": 1, "iscrowd": 1},
]


def ids_of(*rows):
    return np.repeat(np.array(rows)[:, None], 60, axis=1).repeat(40 // len(rows), axis=0)


def test_panoptic_maps(tmp_path):
    data = opened(make.panoptic(tmp_path / "d", ids_of(1, 70000, 300, 0), SEGMENTS), "panoptic")
    assert data.labels.things == {1} and data.labels.stuff == [0, 2]
    segments = data[0][1]
    assert segments.classes == {1: 0, 70000: 1} and segments.crowds == {300: 1}
    assert segments.map[[0, 10, 20, 30], 0].tolist() == [1, 70000, 300, 0]


def test_category_ids_with_gaps(tmp_path):
    categories = [{"id": 7, "name": "cat", "isthing": 1}, {"id": 200, "name": "wall", "isthing": 0}]
    rows = [{"id": 1, "category_id": 200, "iscrowd": 0}, {"id": 2, "category_id": 7, "iscrowd": 0}]
    data = opened(make.panoptic(tmp_path / "d", ids_of(1, 2), rows, categories=categories), "panoptic")
    assert data.labels.names == ["cat", "wall"] and data.labels.things == {0}
    assert data[0][1].classes == {1: 1, 2: 0}


def test_batches_for_training_and_evaluation(tmp_path):
    data = opened(make.shapes(tmp_path / "d"), "panoptic")
    processor = MPFormerImageProcessor(size={"height": 96, "width": 96})
    args = TransformArguments(augmentation="lsj", crop_size=[64, 96])
    batches = TrainingDataset(data, args, processor)
    batch = Unpacker(processor, torch.device("cpu"))(batches.collate([batches[0, 5], batches[1, 6]]))
    assert batch["pixel_values"].shape == (2, 3, 64, 96)
    for masks, classes in zip(batch["mask_labels"], batch["class_labels"], strict=True):
        assert masks.shape == (len(classes), 64, 96) and masks.any((1, 2)).all() and (masks.sum(0) <= 1).all()
    batches = EvaluationDataset(data, processor, range(2))
    batch = batches.collate([batches[0], batches[1]])
    assert batch["inputs"]["pixel_values"].shape == (2, 3, 96, 96) and batch["sizes"] == [(64, 64)] * 2


def test_the_order_depends_on_the_seed_and_goes_on_anywhere():
    order = list(islice(SeededSampler(5, seed=3), 12))
    rows, draws = zip(*order, strict=True)
    assert sorted(rows[:5]) == sorted(rows[5:10]) == list(range(5)) and rows[:5] != rows[5:10]
    assert len(set(draws)) == 12
    for start in (0, 4, 5, 7):
        assert list(islice(SeededSampler(5, seed=3, start=start), 12 - start)) == order[start:]
    assert list(islice(SeededSampler(5, seed=4), 12)) != order


def test_augmentation_depends_on_its_draw_alone(tmp_path):
    data = opened(make.shapes(tmp_path / "d"), "panoptic")
    batches = TrainingDataset(data, TransformArguments(crop_size=[64, 96]), MPFormerImageProcessor())
    state = torch.get_rng_state()
    first = batches[0, 5]
    assert torch.equal(torch.get_rng_state(), state), "the model's random numbers are left alone"
    torch.rand(3)
    again, other = batches[0, 5], batches[0, 6]
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and not torch.equal(first[0], other[0])


def test_images_become_rgb_or_are_named(tmp_path):
    images = [make.photo(mode=mode) for mode in ("RGBA", "L", "P")]
    data = opened(make.semantic(tmp_path / "d", [map_of(0, 1)] * 3, images), "semantic")
    assert all(data[i][0].shape == (3, 40, 60) for i in range(3))
    deep = Image.fromarray(np.zeros((40, 60), dtype=np.int32))
    data = opened(make.semantic(tmp_path / "e", [map_of(0, 1)] * 2, [make.photo(), deep]), "semantic")
    with pytest.raises(ValueError, match=r"Row 1: the image has mode I .32 bits, signed or floats., expected unsigned"):
        data[1]


@pytest.mark.parametrize(
    "build, task, message",
    [
        (lambda f: make.semantic(f, [map_of(0, 1)]), "panoptic", "task panoptic needs a column segments_info"),
        (lambda f: make.panoptic(f, ids_of(1, 70000, 300, 0), SEGMENTS), "semantic", "use --task panoptic"),
        (
            lambda f: make.semantic(f, [map_of(0, 7)]),
            "semantic",
            r"Row 0: label has ids \[7\] that are not in id2label",
        ),
        (
            lambda f: make.semantic(f, [map_of(0, 1)], [make.photo(20, 30)]),
            "semantic",
            "label map is 40x60, the image 20x30",
        ),
        (
            lambda f: make.panoptic(f, ids_of(1, 5), SEGMENTS),
            "panoptic",
            r"Row 0: label has segment ids \[5\] that are not in segments_info",
        ),
        (
            lambda f: make.panoptic(f, ids_of(1, 1), [{**SEGMENTS[0], "category_id": 9}]),
            "panoptic",
            "Row 0: segment 1 has category_id 9, which is not in id2label",
        ),
        (
            lambda f: make.panoptic(f, ids_of(1, 1), [{"id": 1, "category_id": 0}]),
            "panoptic",
            "does not say which classes are things",
        ),
    ],
)
def test_bad_datasets_are_one_sentence(tmp_path, build, task, message):
    folder = build(tmp_path / "d")
    with pytest.raises(ValueError, match=message) as error:
        opened(folder, task)[0]
    assert "\n" not in str(error.value)


def test_folders_that_are_no_dataset(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        opened(tmp_path / "nothing", "semantic")
    with pytest.raises(ValueError, match="is not a dataset"):
        opened(tmp_path, "semantic")
    (tmp_path / "panoptic.json").write_text("{}")
    make.photo().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"panoptic\.json has 1 problem: it has no list of images"):
        opened(tmp_path, "semantic")
    with pytest.raises(ValueError, match="is a file"):
        opened(tmp_path / "a.png", "semantic")
    folder = make.semantic(tmp_path / "d", [map_of(0, 1)])
    with pytest.raises(ValueError, match="Cannot load split 'test'"):
        opened(folder, "semantic", split="test")


def test_segments_info_as_a_dict_of_lists():
    rows = [{"id": 1, "category_id": 2}, {"id": 3, "category_id": 4}]
    assert as_rows({"id": [1, 3], "category_id": [2, 4]}) == rows == as_rows(rows)


def broken_images(folder):
    """Three rows; the second image is truncated, the third label is not an image."""
    rows, names = [], {"0": "road", "1": "car"}
    for index in range(3):
        image, label = folder / "data" / f"image{index}.png", folder / "data" / f"label{index}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        make.photo().save(image)
        Image.fromarray(np.zeros((40, 60), dtype=np.uint8)).save(label)
        rows.append({"image": str(image), "label": str(label)})
    (folder / "data" / "image1.png").write_bytes((folder / "data" / "image1.png").read_bytes()[:200])
    (folder / "data" / "label2.png").write_text("no image")
    make.write(folder / "data", rows, {"image": ImageColumn(), "label": ImageColumn()}, {})
    write_json(names, folder / "data" / "id2label.json")
    return folder / "data"


def test_images_that_cannot_be_read_are_named(tmp_path):
    split = open_dataset(DataArguments(dataset_name=str(broken_images(tmp_path / "d")), task="semantic"), "train")
    assert split[0][0].shape == (3, 40, 60)
    with pytest.raises(ValueError, match=r"Row 1 \(.*image1\.png\): it cannot be decoded"):
        split[1]
    with pytest.raises(ValueError, match=r"Row 2 \(.*label2\.png\): it is not an image file"):
        split[2]
    assert split.image_size(0) == split.image_size(1) == (40, 60)  # of the header, which is not damaged


def test_a_flipped_byte_in_a_label_png_is_noticed(tmp_path):
    folder = make.coco_panoptic(tmp_path / "coco")
    file = folder / "panoptic" / "one.png"
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 255
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"Row 0 \(.*one\.png\): it cannot be decoded: broken PNG file"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_invalid_row_stops_training_in_one_sentence(workers, shapes, tmp_path):
    argv = flags(broken_images(tmp_path / "d"), tmp_path / "out", task="semantic", dataloader_num_workers=workers)
    with pytest.raises(ValueError, match=r"^Row [12] \(.*\): it "):
        finetune.main([*argv, "--train_split", "train", "--eval_split", "train"])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_and_named_if_that_is_asked_for(workers, tmp_path, capsys):
    options = {"task": "semantic", "dataloader_num_workers": workers, "skip_bad_images": True, "max_train_steps": 1}
    argv = flags(broken_images(tmp_path / "d"), tmp_path / "out", **options)
    results = finetune.main([*argv, "--train_split", "train", "--eval_split", "train"])
    assert results["last"]["images"] == 1 and len(results["skipped_images"]) == 4  # two of each split
    assert (
        json.loads((tmp_path / "out" / "all_results.json").read_text())["skipped_images"] == results["skipped_images"]
    )
    assert "4 images were left out: Row 1 (" in capsys.readouterr().out
    (tmp_path / "d" / "data" / "image0.png").write_text("no image")
    with pytest.raises(ValueError, match="All 3 images are invalid; the first one: Row 0"):
        open_dataset(
            DataArguments(dataset_name=str(tmp_path / "d" / "data"), task="semantic", skip_bad_images=True), "train"
        )


def test_rows_are_named_by_their_number_in_the_file(tmp_path):
    folder = str(broken_images(tmp_path / "d"))
    data = DataArguments(dataset_name=folder, task="semantic", validation_share=0.34, skip_bad_images=True)
    skipped = []
    for split in ("train", "validation"):
        try:
            skipped += open_dataset(data, split).skipped
        except ValueError as error:  # its only image is invalid
            skipped.append(str(error).split("first one: ")[1])
    assert sorted(error.split(" (")[0] for error in skipped) == ["Row 1", "Row 2"]
