"""Tests of `memory`."""

from types import SimpleNamespace

import pytest
import torch

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.training.memory import peak_memory
from tests.runs import PROCESSES


def peak_of(connection, task):
    """Child process: MiB that one large image adds to the largest resident memory."""
    generator = torch.Generator().manual_seed(0)
    outputs = SimpleNamespace(
        masks_queries_logits=torch.randn(1, 100, 256, 512, generator=generator),
        class_queries_logits=torch.randn(1, 100, 20, generator=generator),
        pixel_mask=None,
    )
    before = peak_memory(torch.device("cpu"))
    processor = MPFormerImageProcessor(threshold=0.0, overlap_mask_area_threshold=0.0)
    result = getattr(processor, f"post_process_{task}_segmentation")(outputs, target_sizes=[(1024, 2048)])[0]
    after = peak_memory(torch.device("cpu"))
    segmentation = result if task == "semantic" else result["segmentation"]
    connection.send((tuple(segmentation.shape), after - before))


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_a_hundred_queries_of_a_large_image_stay_below_a_gigabyte_and_a_half(task):
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=peak_of, args=(there, task))
    process.start()
    process.join(120)
    shape, peak = here.recv()
    assert shape == (1024, 2048) and 10 < peak < 1536
