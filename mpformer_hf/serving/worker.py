"""The thread that runs the model: waiting images are predicted together."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Job:
    """What a request asks for.

    Attributes:
        image: uint8 `[3, H, W]`.
        options: jobs of equal options, and images of equal size, may be computed together.
        future: its result.
    """

    image: Tensor
    options: Any
    future: Future = field(default_factory=Future)

    def fits(self, other: "Job") -> bool:
        """Whether both can be computed together."""
        return self.options == other.options and self.image.shape == other.image.shape


class BatchWorker:
    """A thread that computes waiting jobs, those that fit together.

    Args:
        work: makes the results of some images, uint8 `[3, H, W]` of equal size, with the options of their jobs.
        batch: most images of a batch.
    """

    def __init__(self, work: Callable[[list[Tensor], Any], list], batch: int):
        self.work, self.batch = work, batch
        self.waiting: queue.Queue[Job] = queue.Queue()
        threading.Thread(target=self.run, daemon=True).start()

    def submit(self, image: Tensor, options: Any) -> Future:
        """Add an image; the future has its result."""
        job = Job(image, options)
        self.waiting.put(job)
        return job.future

    def run(self) -> None:
        """Compute for ever. Images whose clients have gone are left out."""
        left: Job | None = None
        while True:
            batch = [left or self.waiting.get()]
            left = None
            while len(batch) < self.batch and not self.waiting.empty():
                job = self.waiting.get()
                if not job.fits(batch[0]):
                    left = job
                    break
                batch.append(job)
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if batch and not self.compute(batch) and len(batch) > 1:
                for job in batch:  # only those that fail alone get the error
                    self.compute([job])

    def compute(self, batch: list[Job]) -> bool:
        """Compute a batch; returns whether that worked. The error of a single image is its result."""
        try:
            results = self.work([job.image for job in batch], batch[0].options)
        except Exception as error:  # of many kinds; the service must continue
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            return False
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)
        return True
