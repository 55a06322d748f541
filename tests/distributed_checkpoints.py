"""One process of two: fine-tunes each saved model of a folder for three steps. Run by `test_distributed.py`.

python -m tests.distributed_checkpoints FOLDER
"""

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from mpformer_hf import MPFormerForUniversalSegmentation
from tests.tiny import batch_of

STEPS = 3


def fine_tune(folder: Path, rank: int, static_graph: bool) -> torch.Tensor:
    """Sums of all weights after the last step."""
    model = MPFormerForUniversalSegmentation.from_pretrained(folder).train()
    wrapped = DistributedDataParallel(model, static_graph=static_graph)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-3)
    for step in range(STEPS):
        torch.manual_seed(2 * step + rank)
        wrapped(**batch_of((2, 0) if (step + rank) % 2 else (1, 3))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        sums = [fine_tune(folder, rank, static_graph) for static_graph in (False, True)]
        others = [torch.zeros_like(sums[0]) for _ in range(2)]
        torch.distributed.all_gather(others, sums[0])
        torch.testing.assert_close(others[0], others[1], rtol=0, atol=0)  # the same weights in both processes
        torch.testing.assert_close(sums[0], sums[1], rtol=1e-6, atol=1e-6)
        print(folder.name)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
