"""Batches for training and evaluation, and the order of training images."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

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

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor, dict[int, int]]:
        """A pair of `SeededOrder`."""
        index, seed = draw
        image, segments = self.dataset[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return *augment(self.transform, image, segments.map, segments.classes), segments.classes

    def collate(self, examples: list) -> dict:
        """`pixel_values`, `pixel_mask`, `mask_labels`, `class_labels` of the model."""
        images, maps, tables = (list(column) for column in zip(*examples, strict=True))
        return dict(self.processor(images, maps, tables, do_resize=False, return_tensors="pt"))


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
