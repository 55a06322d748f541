"""Batches in few bytes become exactly what the image processor makes."""

import pytest
import torch

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.data.segments import VOID, Segments
from mpformer_hf.training.packing import Unpacker, number_targets, pack

PROCESSORS = [
    {},
    {"image_mean": [0.4, 0.5, 0.3], "image_std": [0.2, 0.3, 0.25], "size_divisor": 48},
    {"do_normalize": False},
    {"do_rescale": False, "image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]},
]


def example(generator, layers=None, size=(40, 60), ids=(3, 900, 70000, 5)):
    """An image, a map of ids with some that are void, and the classes of the ids."""
    shape = size if layers is None else (layers, *size)
    choices = torch.tensor([*ids, 0, VOID], dtype=torch.int32)
    map_ = choices[torch.randint(len(choices), shape, generator=generator)]
    if layers is not None:  # each id in one layer
        for index, own in enumerate(ids):
            map_[[i for i in range(layers) if i != index % layers]] *= map_[0] != own
            map_ = torch.where((map_ == own) & (torch.arange(layers)[:, None, None] != index % layers), 0, map_)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    return image, map_, {own: index % 3 for index, own in enumerate(ids)} | {12345: 1}


@pytest.mark.parametrize("fields", PROCESSORS)
def test_unpacked_batches_equal_the_processors(fields):
    processor, generator = MPFormerImageProcessor(**fields), torch.Generator().manual_seed(0)
    examples = [
        example(generator),
        example(generator, size=(33, 64), ids=(7,)),
        example(generator, layers=2),
        example(generator, ids=()),
    ]
    images, maps, tables = (list(column) for column in zip(*examples, strict=True))
    segments = [Segments(map_, table) for map_, table in zip(maps, tables, strict=True)]
    fixed = {"do_resize": False, "ignore_index": VOID, "do_reduce_labels": False}
    expected = processor(images, maps, tables, **fixed, return_tensors="pt")
    batch = Unpacker(processor, torch.device("cpu"))(pack(images, maps, segments, processor.size_divisor))
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    for name in ("mask_labels", "class_labels"):
        for ours, theirs in zip(batch[name], expected[name], strict=True):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


def test_maps_are_bytes_as_long_as_numbers_fit():
    map_ = torch.arange(256, dtype=torch.int32).view(16, 16) + 1000
    table = {1000 + index: index for index in range(256)}
    numbers, classes = number_targets(map_, table)
    assert numbers.dtype == torch.int16 and torch.equal(numbers[0].flatten().long(), torch.arange(1, 257))
    assert classes.tolist() == list(range(256))
    del table[1000]
    numbers, _ = number_targets(map_, table)
    assert numbers.dtype == torch.uint8 and numbers[0, 0, 0] == 0 and numbers.max() == 255


def test_a_batch_is_small():
    images = [torch.zeros(3, 1024, 1024, dtype=torch.uint8)] * 2
    maps = [torch.randint(0, 20, (1024, 1024), dtype=torch.int32)] * 2
    batch = pack(images, maps, [Segments(map_, {own: 0 for own in range(20)}) for map_ in maps], 32)
    size = sum(x.numel() * x.itemsize for x in batch.values() if torch.is_tensor(x))
    assert size / 2 < 4.1 * 2**20, "MiB of an image of 1024x1024 with 20 objects"
