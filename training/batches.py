"""Training batches, and the order of training images."""

from collections.abc import Iterator

import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.data.dataset import SegmentationDataset
from mpformer_hf.data.segments import Segments

from .arguments import TransformArguments
from .packing import pack
from .transforms import augment, build_transform


class SeededSampler(Sampler):
    """An endless shuffled order that depends on the seed only, with a new permutation in each epoch.

    Yields pairs (row, seed of its augmentation). The order does not depend on the model's random numbers, the number of
    processes or of loader workers, so different runs use the same images, and a run can resume anywhere.

    Args:
        length: number of rows of the dataset.
        seed: seed of orders and augmentations.
        start: number of pairs to skip.
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


class TrainingDataset(Dataset):
    """Augmented images with segments; `collate` makes packed batches.

    Args:
        dataset: the split.
        transforms: augmentation.
        processor: images are padded as it does.
    """

    def __init__(self, dataset: SegmentationDataset, transforms: TransformArguments, processor: MPFormerImageProcessor):
        self.dataset, self.processor, self.transform = dataset, processor, build_transform(transforms)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor, dict[int, int], int]:
        """Image, map of segment ids, classes of the ids, and row, for a pair of `SeededSampler`; or the error of an
        invalid row, which a worker process would otherwise report as a traceback."""
        index, seed = draw
        try:
            return self.augmented(*self.dataset[index], index, seed)
        except ValueError as error:
            return error

    def augmented(self, image: Tensor, segments: Segments, index: int, seed: int):
        """See `__getitem__`; the global random state is restored."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's only; a device's is for the model
            try:
                return *augment(self.transform, image, segments.map, segments.classes), segments.classes, index
            except RuntimeError as error:  # of an image that has no pixels after it is resized
                height, width = image.shape[1:]
                raise ValueError(f"Row {index}: a {width}x{height} image cannot be augmented: {error}.") from error

    def collate_with_rows(self, examples: list) -> tuple[dict, list[int]]:
        """Result of `collate` and the rows of the examples, or the error of an invalid row and no rows."""
        for example in examples:
            if isinstance(example, ValueError):
                return example, []
        return self.collate(examples), [example[3] for example in examples]

    def collate(self, examples: list) -> dict:
        """A packed batch, see `packing.py`."""
        images, maps, tables = (list(column) for column in zip(*(example[:3] for example in examples), strict=True))
        divisor = 1 if self.processor.stretch_to_divisor else self.processor.size_divisor or 1
        return pack(images, maps, tables, divisor)


class StreamedTrainingDataset(IterableDataset):
    """Endless training examples from a streamed dataset; each process reads its own shards.

    Args:
        batches: augments and collates.
        seed: seed of order and augmentation.
        buffer: size of the shuffle buffer, in images.
        process, processes: index of this process, and number of processes.
    """

    def __init__(self, batches: TrainingDataset, seed: int, buffer: int, process: int = 0, processes: int = 1):
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
                try:
                    yield self.batches.augmented(*self.batches.dataset.decode(row, index), index, draw)
                except ValueError as error:
                    yield error
            if index < 0:
                return  # a worker without a shard
            epoch += 1
