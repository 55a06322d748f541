"""Batches for training and evaluation, and the order of training images."""

from collections.abc import Iterator, Sequence

import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler

from mpformer_hf import MPFormerImageProcessor

from .adapters import Segments
from .arguments import TransformArguments
from .data import SegmentationDataset
from .transforms import augment, build_transform


class SeededOrder(Sampler):
    """An endless shuffled order that depends on the seed alone: epoch after epoch, each a permutation of its own.

    Yields pairs (row, seed of its augmentation). The model's random numbers, the number of processes and of loader
    workers do not change it, so runs that differ elsewhere see the same images, and a run can go on at any place.

    Args:
        length: rows of the dataset.
        seed: of orders and augmentations.
        start: pairs to leave out at the beginning.
    """

    def __init__(self, length: int, seed: int, start: int = 0):
        self.length, self.seed, self.start = length, seed, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, skipped = divmod(self.start, self.length)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            rows = torch.randperm(self.length, generator=generator)
            draws = torch.randint(2**62, (self.length,), generator=generator)
            yield from zip(rows[skipped:].tolist(), draws[skipped:].tolist(), strict=True)
            epoch, skipped = epoch + 1, 0


class TrainingBatches(Dataset):
    """Augmented images and segments, and their collation into model inputs.

    Args:
        dataset: the split.
        transforms: augmentation.
        processor: normalises, pads and splits segments into masks.
    """

    def __init__(self, dataset: SegmentationDataset, transforms: TransformArguments, processor: MPFormerImageProcessor):
        self.dataset, self.processor, self.transform = dataset, processor, build_transform(transforms)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor, dict[int, int], int]:
        """Image, map, classes and row of a pair of `SeededOrder`."""
        index, seed = draw
        return self.augmented(*self.dataset[index], index, seed)

    def augmented(self, image: Tensor, segments: Segments, index: int, seed: int):
        """See `__getitem__`; the global random numbers are left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's; a device's belongs to the model
            return *augment(self.transform, image, segments.map, segments.classes), segments.classes, index

    def collate_with_rows(self, examples: list) -> tuple[dict, list[int]]:
        """`collate`, and the rows that the examples come from."""
        return self.collate(examples), [example[3] for example in examples]

    def collate(self, examples: list) -> dict:
        """`pixel_values`, `pixel_mask`, `mask_labels`, `class_labels` of the model."""
        images, maps, tables = (list(column) for column in zip(*(example[:3] for example in examples), strict=True))
        return dict(self.processor(images, maps, tables, do_resize=False, return_tensors="pt"))


class StreamedBatches(IterableDataset):
    """The same from a dataset that is read while it is used: endless, each process its own shards.

    Args:
        batches: augments and collates.
        seed: of order and augmentation.
        buffer: images to choose the next one from.
        process, processes: this process and their number.
    """

    def __init__(self, batches: TrainingBatches, seed: int, buffer: int, process: int = 0, processes: int = 1):
        rows = batches.dataset.rows.shuffle(seed=seed, buffer_size=buffer)
        self.rows = split_dataset_by_node(rows, rank=process, world_size=processes)
        self.batches, self.seed = batches, seed * processes + process

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, dict[int, int], int]]:
        worker = torch.utils.data.get_worker_info()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + (worker.id if worker else 0))
        epoch = 0
        while True:
            self.rows.set_epoch(epoch)
            index = -1
            for index, row in enumerate(self.rows):
                draw = int(torch.randint(2**62, (), generator=generator))
                yield self.batches.augmented(*self.batches.dataset.decode(row, index), index, draw)
            if index < 0:
                return  # a worker without a shard
            epoch += 1


class EvaluationBatches(Dataset):
    """Images as the processor resizes them, with their segments at the original size.

    Args:
        dataset: the split.
        processor: resizes, normalises and pads.
        rows: the rows to yield.
    """

    def __init__(self, dataset: SegmentationDataset, processor: MPFormerImageProcessor, rows: Sequence[int]):
        self.dataset, self.processor, self.rows = dataset, processor, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Segments]:
        return self.rows[index], *self.dataset[self.rows[index]]

    def collate(self, examples: list) -> dict:
        """`inputs` of the model, and lists: `index`, `images` (uint8), `segments`, `sizes` (height, width)."""
        index, images, segments = (list(column) for column in zip(*examples, strict=True))
        return {
            "inputs": dict(self.processor(images, return_tensors="pt")),
            "index": index,
            "images": images,
            "segments": segments,
            "sizes": [tuple(image.shape[1:]) for image in images],
        }
