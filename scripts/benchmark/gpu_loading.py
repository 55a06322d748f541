"""Loading: generated JPEG images of 1280x960 with 20 objects, decoded, augmented by large-scale jitter and collated."""

import io
import time
from itertools import islice

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from PIL import Image

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.data.dataset import SegmentationDataset
from mpformer_hf.data.labels import Labels
from mpformer_hf.data.segments import Segments
from training.arguments import parse_arguments
from training.finetune import training_loader

IMAGES, HEIGHT, WIDTH = 16, 960, 1280


def encode(pixels: np.ndarray, kind: str) -> dict:
    """An image file, as a column that is not decoded."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def generated_dataset(objects: int) -> SegmentationDataset:
    """Images of coarse noise with rectangles; a segment id each, in an 8-bit PNG map."""
    draw, columns = np.random.default_rng(0), {"image": [], "label": []}
    for _ in range(IMAGES):
        coarse = Image.fromarray(draw.integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8))
        map_ = np.zeros((HEIGHT, WIDTH), np.uint8)
        for index in range(1, objects + 1):
            y, x = draw.integers(0, HEIGHT - 100), draw.integers(0, WIDTH - 100)
            map_[y : y + draw.integers(20, 400), x : x + draw.integers(20, 400)] = index
        columns["image"].append(encode(np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)), "jpeg"))
        columns["label"].append(encode(map_, "png"))

    def read(row: dict) -> Segments:
        map_ = torch.from_numpy(np.array(row["label"], dtype=np.int32))
        return Segments(map_, {index: index % 80 for index in range(1, objects + 1)})

    return SegmentationDataset(
        Dataset.from_dict(columns),
        "image",
        read,
        Labels([str(i) for i in range(80)], {i: i for i in range(80)}, set(range(80))),
    )


def loading_row(side: int, objects: int, workers: int, batches: int) -> dict:
    """Images per second, in total and per worker, in batches of 4, and megabytes of an image in a batch."""
    sizes = ["--crop_size", str(side), str(side), "--per_device_train_batch_size", "4"]
    args = parse_arguments([*sizes, "--augmentation", "lsj", "--dataloader_num_workers", str(workers)])
    loader = training_loader(args, generated_dataset(objects), MPFormerImageProcessor(), PartialState(), 0)
    stream = iter(loader)
    for _ in range(1 + 2 * workers):  # prefetched batches
        first, _ = next(stream)
    start = time.perf_counter()
    images = sum(len(rows) for _, rows in islice(stream, batches))
    speed = images / (time.perf_counter() - start)
    size = sum(x.numel() * x.element_size() for x in first.values() if isinstance(x, torch.Tensor))
    result = {"images_per_second": round(speed, 2), "per_worker": round(speed / max(1, workers), 2)}
    return result | {"workers": workers, "mb_per_image": round(size / 4 / 1e6, 2)}
