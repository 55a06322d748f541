"""One process of two: a training step on half of a batch. Run twice by `test_distributed.py`.

python -m tests.distributed_step FOLDER RANK
"""

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from mpformer_hf import MPFormerForUniversalSegmentation
from mpformer_hf.model.criterion import MPFormerCriterion


def step(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Loss and gradients with frozen batch norms, at points that do not depend on the number of images."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    points = torch.rand(1, 256, 2, generator=torch.Generator().manual_seed(1))
    draw, MPFormerCriterion.candidate_points = (
        MPFormerCriterion.candidate_points,
        lambda _, batch, *__: points.expand(batch, -1, -1),
    )
    try:
        loss = model(**batch, generator=torch.Generator().manual_seed(0)).loss
        loss.backward()
    finally:
        MPFormerCriterion.candidate_points = draw
    return loss.detach()


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    case = torch.load(folder / "case.pt", weights_only=True)
    model = DistributedDataParallel(MPFormerForUniversalSegmentation.from_pretrained(folder / "model").train())
    loss = step(model, {name: values[rank * 2 : rank * 2 + 2] for name, values in case.items()})
    torch.distributed.all_reduce(loss)
    if rank == 0:
        grads = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
        torch.save({"loss": loss / 2, "grads": grads}, folder / "result.pt")
    del model  # before the process group: otherwise torch 2.11 may hang
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
