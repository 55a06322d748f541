"""Rows of parts: post-processing, image processor, and operators with their own backward passes."""

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Mask2FormerImageProcessor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.model import chunks, mask_losses
from mpformer_hf.model.deformable_attention import weighted_row_sum

from .measuring import compare
from .models import DEVICE

SHORT = 7  # factor on the rounds of calls that take less than a second


def postprocessing_rows(args: argparse.Namespace, rounds: int) -> dict:
    """Panoptic, to 1024x2048: 33 confident queries whose noisy masks tile the image, and 67 no-object queries."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(100, 2, 1, 1, generator=generator)
    grid = torch.stack(torch.meshgrid(torch.linspace(0, 1, 256), torch.linspace(0, 1, 512), indexing="ij"))
    distance = (grid - centres).norm(dim=1)
    nearest = distance[:33].min(0).values
    masks = (60 * (nearest - distance) + 4).clamp(-10, 6) + torch.randn(100, 256, 512, generator=generator) / 4
    classes = torch.randn(1, 100, 134, generator=generator)
    classes[:, :33, :133] += 12 * nn.functional.one_hot(torch.arange(33), 133)
    classes[:, 33:, 133] += 12
    outputs = Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=classes.to(DEVICE), masks_queries_logits=masks[None].to(DEVICE)
    )
    ours, theirs = MPFormerImageProcessor(threshold=0.5), Mask2FormerImageProcessor()
    sizes = {"target_sizes": [(1024, 2048)]}
    works = {
        "transformers": lambda: theirs.post_process_panoptic_segmentation(outputs, threshold=0.5, **sizes),
        "ours": lambda: ours.post_process_panoptic_segmentation(outputs, **sizes),
    }
    return {"panoptic post-processing, 100 queries to 1024x2048": compare(works, SHORT * rounds)}


def processor_rows(args: argparse.Namespace, rounds: int) -> dict:
    """8 images of 1024x1024 with 30 segments each."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, 1024, 1024), dtype=torch.uint8, generator=generator) for _ in range(8)]
    coarse = torch.randint(1, 31, (8, 1, 16, 16), generator=generator).float()
    maps = [map_[0].int().numpy() for map_ in nn.functional.interpolate(coarse, scale_factor=64)]
    tables = [{index: index % 80 for index in range(1, 31)}] * 8
    size = {"shortest_edge": 1024, "longest_edge": 1024}
    ours, theirs = MPFormerImageProcessor(size=size), Mask2FormerImageProcessor(size=size, ignore_index=255)
    flags = {"return_tensors": "pt"}
    works = {
        "transformers": lambda: theirs(images, maps, instance_id_to_semantic_id=tables, **flags),
        "ours": lambda: ours(images, maps, instance_id_to_semantic_id=tables, **flags),
    }
    return {"image processor, 8 images of 1024x1024, 30 segments": compare(works, SHORT * rounds)}


def operator_rows(args: argparse.Namespace, rounds: int) -> dict:
    """Custom backward passes against PyTorch's, forward and backward, at the sizes of a training step at 512x512."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    table, rows = draw(2 * 8 * 5836, 32).requires_grad_(), torch.randint(2 * 8 * 5836, (2 * 8 * 5376, 48)).int()
    weights, upstream = draw(2 * 8 * 5376, 48).requires_grad_(), draw(2 * 8 * 5376, 32)

    def sample(gather: Callable) -> None:
        gather(table, rows, weights).backward(upstream)

    def embedding_bag(table: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    counts, points, targets = [400, 400], 12544, 40  # 10 predictions x 20 targets, matching and pilot
    uncertain, random, candidates = points * 3 // 4, points // 4, points * 3
    embeddings, features = draw(800, 256).requires_grad_(), draw(2, candidates + random, 256).requires_grad_()
    truth, target = torch.rand(targets, candidates + random), torch.arange(800) % targets

    def checkpointed(embeddings, features, truth, target, counts, uncertain, random):
        def chunk_losses(embeddings, features, target):
            logits = embeddings @ features.T
            with torch.no_grad():
                selected = logits[:, :-random].abs().topk(uncertain, dim=1, largest=False, sorted=False).indices
            sampled = torch.cat((logits.gather(1, selected), logits[:, -random:]), dim=1)
            return torch.stack(mask_losses.point_losses(sampled, mask_losses.truth_at(truth, target, selected, random)))

        parts, _ = chunks.make_chunks(counts, features.shape[1], features.device)
        parts = [
            checkpoint(
                chunk_losses,
                embeddings[chunk.rows[0]],
                features[chunk.images][0],
                target[chunk.rows[0]],
                use_reentrant=False,
            )
            for chunk in parts
        ]
        return torch.cat(parts, dim=1)

    def losses(function: Callable) -> None:
        sum(loss.sum() for loss in function(embeddings, features, truth, target, counts, uncertain, random)).backward()

    return {
        "operator, deformable sampling of a layer, forward and backward": compare(
            {"embedding_bag": lambda: sample(embedding_bag), "ours": lambda: sample(weighted_row_sum)}, rounds
        ),
        "operator, mask losses, forward and backward": compare(
            {
                "torch.utils.checkpoint": lambda: losses(checkpointed),
                "ours": lambda: losses(mask_losses.UncertainPointLosses.apply),
            },
            rounds,
        ),
    }
