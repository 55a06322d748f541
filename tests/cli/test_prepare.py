"""`mpformer prepare` and shards of WebDataset: the same images, segments and ids as in the original."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.data.segments import Segments
from mpformer_hf.training import finetune
from mpformer_hf.training.arguments import TransformArguments
from mpformer_hf.training.batches import StreamSampler, TrainingDataset
from tests import datasets_on_disk, official_folders
from tests.data.test_layouts import CASES, ONE_SPLIT
from tests.runs import flags


def opened(folder, task, split="train", **fields):
    return open_dataset(DataArguments(dataset_name=str(folder), task=task, **fields), split)


def test_prepare_does_not_write_one_split_twice(tmp_path):
    folder = official_folders.cvat(tmp_path / "cvat")
    with pytest.raises(SystemExit, match="is of no split"):
        mpformer(["prepare", str(folder), str(tmp_path / "out"), "--task", "instance"])
    argv = ["prepare", str(folder), str(tmp_path / "out"), "--task", "instance", "--validation_share", "0.5"]
    mpformer(argv)
    ids = [{opened(tmp_path / "out", "instance", split).identity(0)[0]} for split in ("train", "validation")]
    assert not ids[0] & ids[1] and len(opened(tmp_path / "out", "instance")) == 1
    with pytest.raises(SystemExit, match="must be different names of letters"):
        mpformer([*argv[:2], str(tmp_path / "new"), *argv[3:], "--splits", "train-a", "val"])
    masks = official_folders.mask_images(tmp_path / "masks")
    names = (masks / "id2label.json").rename(tmp_path / "names.json")
    mpformer(["prepare", str(masks), str(tmp_path / "named"), "--task", "semantic", "--id2label", str(names)])
    assert opened(tmp_path / "named", "semantic").labels.names == ["sky", "road", "car"]


def masks_of(segments: Segments) -> list[tuple]:
    """Class, crowd, mask and area of each segment, in a fixed order."""
    layers = segments.map.view(-1, *segments.map.shape[-2:])
    rows = [
        (label, i in segments.crowds, (layers == i).any(0).numpy().tobytes(), segments.areas.get(i))
        for i, label in (segments.classes | segments.crowds).items()
    ]
    return sorted(rows, key=str)


@pytest.mark.parametrize("name", CASES)
def test_a_prepared_dataset_equals_the_original(name, tmp_path):
    build, task, _ = CASES[name]
    folder = build(tmp_path / "data")
    splits = ["train"] if any(name.startswith(one) for one in ONE_SPLIT) else ["train", "val"]
    mpformer(["prepare", str(folder), str(tmp_path / "out"), "--task", task, "--splits", *splits])
    for split in splits:
        before, after = opened(folder, task, split), opened(tmp_path / "out", task, split)
        assert after.labels.names == before.labels.names and after.labels.things == before.labels.things
        assert after.labels.category_ids == before.labels.category_ids and len(after) == len(before)
        assert after.labels.palette == before.labels.palette
        for index in range(len(before)):
            assert after.identity(index) == before.identity(index)
            (image, segments), (other, truth) = after[index], before[index]
            assert torch.equal(image, other) and masks_of(segments) == masks_of(truth)
    stream = opened(tmp_path / "out", task, "train", streaming=True)
    assert len(list(stream.rows)) == len(opened(folder, task, "train"))


def test_what_cannot_be_prepared(tmp_path):
    folder = official_folders.coco_instances(tmp_path / "data")
    with pytest.raises(SystemExit, match="for split 'tset'; it has"):
        mpformer(["prepare", str(folder), str(tmp_path / "out"), "--task", "instance", "--splits", "train", "tset"])
    (folder / "val2017" / "000000397133.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"Row 0 \(.*000000397133\.jpg\)"):
        mpformer(["prepare", str(folder), str(tmp_path / "out"), "--task", "instance"])
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".writing*"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(SystemExit, match="is not an empty folder"):
        mpformer(["prepare", str(folder), str(tmp_path / "out"), "--task", "instance"])


def write_shards(folder: Path) -> Path:
    """COCO panoptic as tar files of `KEY.jpg`, `KEY.png` and `KEY.segments_info.json`."""
    source = official_folders.coco_panoptic(folder / "source")
    (folder / "shards").mkdir()
    for split in official_folders.SPLITS:
        content = json.loads((source / "annotations" / f"panoptic_{split}2017.json").read_text())
        for number, row in enumerate(content["annotations"]):
            with tarfile.open(folder / "shards" / f"{split}-{number:06d}.tar", "w") as tar:
                key = Path(row["file_name"]).stem
                tar.add(source / f"{split}2017" / f"{key}.jpg", f"{key}.jpg")
                tar.add(source / "annotations" / f"panoptic_{split}2017" / f"{key}.png", f"{key}.png")
                text = json.dumps(row["segments_info"]).encode()
                info = tarfile.TarInfo(f"{key}.segments_info.json")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text))
    (folder / "shards" / "panoptic_categories.json").write_text(json.dumps(content["categories"]))
    return folder / "shards"


def uneven_parquet(folder: Path) -> Path:
    """Two files of one split, with 6 and 3 images."""
    datasets_on_disk.shapes(folder / "whole", train=9)
    (folder / "parts").mkdir()
    for file in (folder / "whole").rglob("*.json"):
        shutil.copy(file, folder / "parts")
    rows = Dataset.from_parquet(str(next((folder / "whole").rglob("train*.parquet"))))
    rows = rows.add_column("image_id", list(range(9)))
    for number, part in enumerate((range(6), range(6, 9))):
        rows.select(part).to_parquet(folder / "parts" / f"train-{number:05d}-of-00002.parquet")
    return folder / "parts"


def opened_images(folder):
    dataset = opened(folder, "panoptic", "train")
    return [dataset[index] for index in range(len(dataset))]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_each_image_of_uneven_shards_is_used_once_in_an_epoch(processes, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # seconds after each epoch
    streamed = opened(uneven_parquet(tmp_path), "panoptic", "train", streaming=True)
    batches = TrainingDataset(streamed, TransformArguments(augmentation="none"), MPFormerImageProcessor())
    batches.augmented = lambda image, segments, index, seed: int(image.sum())
    expected = sorted(int(image.sum()) for image, _ in opened_images(tmp_path / "parts"))
    orders = []
    for start in (0, 9, 4):
        seen = [[] for _ in range(processes)]
        for process in range(processes):
            loader = DataLoader(batches, 1, sampler=StreamSampler(streamed.rows, 0, 4, start), num_workers=workers)
            shard = prepare_data_loader(loader, num_processes=processes, process_index=process, put_on_device=False)
            stream = iter(shard)
            seen[process] = [next(stream).item() for _ in range(-(-9 // processes))]
        orders.append([image for pair in zip(*seen, strict=True) for image in pair])
    first, second, resumed = orders
    assert sorted(first[:9]) == sorted(second[:9]) == expected and first[:9] != second[:9] and len(set(expected)) == 9
    assert resumed[:9] == first[4:9] + second[:4]


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_of_webdataset(streaming, tmp_path):
    shards = write_shards(tmp_path)
    expected = opened(tmp_path / "source", "panoptic", "train")
    dataset = opened(shards, "panoptic", "train", streaming=streaming)
    rows = sorted(dataset.rows, key=lambda row: row["image_id"])
    assert [row["image_id"] for row in rows] == ["000000000009", "000000000025"]
    for index, row in enumerate(rows):
        image, segments = dataset.decode(row, index)
        assert torch.equal(image, expected[index][0]) and masks_of(segments) == masks_of(expected[index][1])
    if streaming:
        results = finetune.main(
            flags(shards, tmp_path / "out", streaming="true", max_train_steps=2, eval_split="validation")
        )
        assert np.isfinite(results["last"]["pq"])
