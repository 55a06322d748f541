"""Training batches, and the order of training images."""

from collections.abc import Callable, Iterator
from itertools import count
from queue import Full, Queue
from threading import Event, Thread

import torch
from datasets import IterableDataset
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..data.dataset import SegmentationDataset
from ..data.segments import Segments
from ..model.image_processing_mpformer import MPFormerImageProcessor
from .arguments import TransformArguments
from .packing import pack
from .transforms import augment, build_transform

READ_AHEAD = 64  # rows of a stream


class SeededSampler(Sampler):
    """An endless shuffled order that depends on the seed only, with a new permutation in each epoch.

    Yields pairs (row, seed of its augmentation). The order does not depend on the model's random numbers, the number of
    processes or of loader workers, so different runs use the same images, and a run can resume anywhere.

    Args:
        length: number of rows of the dataset.
        seed: seed of orders and augmentations.
        start: number of pairs to skip.
        weights: float `[length]`, how often each row is drawn; None: once in an epoch.
    """

    def __init__(self, length: int, seed: int, start: int = 0, weights: Tensor | None = None):
        self.length, self.seed, self.start, self.weights = length, seed, start, weights

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, skipped = divmod(self.start, self.length)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            if self.weights is None:
                rows = torch.randperm(self.length, generator=generator)
            else:
                rows = torch.multinomial(self.weights, self.length, replacement=True, generator=generator)
            draws = torch.randint(2**62, (self.length,), generator=generator)
            yield from zip(rows[skipped:].tolist(), draws[skipped:].tolist(), strict=True)
            epoch, skipped = epoch + 1, 0


class StreamSampler(Sampler):
    """The order of `SeededSampler` for a streamed split, whose length is unknown: shuffled by a buffer.

    Yields triples (number in the epoch, seed of the augmentation, row). Every process reads the whole stream, of which
    accelerate gives it its batches, and loader workers decode and augment rows; so each image is used once in an epoch,
    whatever the number of processes, of workers and of shards. Rows are read ahead in a thread.

    Args:
        rows: a streamed split, with images that are not decoded.
        seed: seed of order and augmentation.
        buffer: size of the shuffle buffer, in images.
        start: number of rows to skip.
    """

    def __init__(self, rows: IterableDataset, seed: int, buffer: int, start: int = 0):
        self.rows, self.seed, self.start = rows.shuffle(seed=seed, buffer_size=buffer), seed, start

    def __iter__(self) -> Iterator[tuple[int, int, dict]]:
        rows: Queue = Queue(READ_AHEAD)
        stop = Event()
        Thread(target=self.fill, args=(rows, stop), daemon=True).start()
        try:
            while True:
                triple, error = rows.get()
                if error is not None:
                    raise error
                yield triple
        finally:
            stop.set()

    def fill(self, rows: Queue, stop: Event) -> None:
        """Put the triples from `start` on, or an error, into a queue, until `stop` is set."""

        def put(item: tuple) -> None:
            while not stop.is_set():
                try:
                    return rows.put(item, timeout=0.1)
                except Full:
                    pass

        try:
            for number, triple in enumerate(self.read()):
                if stop.is_set():
                    return
                if number >= self.start:
                    put((triple, None))
        except Exception as error:  # raised where the rows are used
            put((None, error))

    def read(self) -> Iterator[tuple[int, int, dict]]:
        """The triples, epoch by epoch."""
        for epoch in count():
            self.rows.set_epoch(epoch)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            number = -1
            for number, row in enumerate(self.rows):
                yield number, int(torch.randint(2**62, (), generator=generator)), row
            if number < 0:
                raise ValueError("The streamed split has no image.")


class TrainingDataset(Dataset):
    """Augmented images with segments; `collate` makes packed batches.

    Args:
        dataset: the split.
        transforms: augmentation.
        processor: images are padded as it does.
        own: function of (uint8 image `[3, H, W]`, int32 segment ids `[L, H, W]`, classes of the ids) that is called
            after the augmentation, and returns the same.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        transforms: TransformArguments,
        processor: MPFormerImageProcessor,
        own: Callable | None = None,
    ):
        self.dataset, self.processor, self.transform = dataset, processor, build_transform(transforms, own)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: tuple) -> tuple[Tensor, Tensor, Segments, int] | ValueError:
        """Image, map of segment ids, segments before the augmentation, and row, for what a sampler yields; or the error
        of an invalid row, which a worker process would otherwise report as a traceback."""
        index, seed, *streamed = draw
        try:
            row = streamed[0] if streamed else self.dataset.rows[index]
            return self.augmented(*self.dataset.decode(row, index), index, seed)
        except ValueError as error:
            return error

    def augmented(self, image: Tensor, segments: Segments, index: int, seed: int):
        """See `__getitem__`; the global random state is restored."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's only; a device's is for the model
            try:
                return *augment(self.transform, image, segments.map, segments.classes), segments, index
            except RuntimeError as error:  # of an image that has no pixels after it is resized
                height, width = image.shape[1:]
                raise ValueError(f"Row {index}: a {width}x{height} image cannot be augmented: {error}.") from error

    def collate_with_rows(self, examples: list) -> tuple[dict | ValueError, list[int]]:
        """Result of `collate` and the rows of the examples, or the error of an invalid row and no rows."""
        for example in examples:
            if isinstance(example, ValueError):
                return example, []
        return self.collate(examples), [example[3] for example in examples]

    def collate(self, examples: list) -> dict:
        """A packed batch, see `packing.py`."""
        images, maps, segments = (list(column) for column in zip(*(example[:3] for example in examples), strict=True))
        divisor = 1 if self.processor.stretch_to_divisor else self.processor.size_divisor or 1
        return pack(images, maps, segments, divisor, self.processor.task)
