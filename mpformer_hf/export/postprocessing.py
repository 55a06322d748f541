"""Post-processing as a part of exported models, with outputs of fixed shapes.

The rules are those of `postprocessing.py` for images without padding; what depends on the data there (how many segments
remain) is a score of 0 here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.postprocessing import logit_of

RESULTS = {
    "semantic": ("segmentation",),
    "instance": ("scores", "labels", "masks"),
    "panoptic": ("segmentation", "scores", "labels"),
}


class Postprocessing(nn.Module):
    """Logits of an image batch to results at the size of the input.

    Args:
        task: semantic, instance or panoptic.
        stuff: classes whose panoptic segments are merged, and that are no instances.
        threshold: smallest score of a panoptic segment; instances are all returned, with their scores.
        mask_threshold, overlap_mask_area_threshold: as in the image processor.
        detections: number of instances of an image.
    """

    def __init__(
        self,
        task: str,
        stuff: list[int],
        threshold: float,
        mask_threshold: float,
        overlap_mask_area_threshold: float,
        detections: int = 100,
    ):
        super().__init__()
        self.task, self.stuff, self.detections = task, stuff, detections
        self.threshold, self.mask_threshold = threshold, mask_threshold
        self.overlap_mask_area_threshold = overlap_mask_area_threshold

    def forward(self, class_logits: Tensor, mask_logits: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            class_logits: `[B, Q, K + 1]`.
            mask_logits: `[B, Q, H / 4, W / 4]`.

        Returns:
            semantic: class ids, int64 `[B, H, W]`. Instance: scores, float32 `[B, N]`, descending; labels, int64
            `[B, N]`; masks, bool `[B, N, H, W]`. Panoptic: segment ids, int64 `[B, H, W]`, 0 = no segment, i =
            query i - 1; scores, float32 `[B, Q]`, 0 = no segment; labels, int64 `[B, Q]`.
        """
        size = [4 * side for side in mask_logits.shape[-2:]]
        if self.task == "instance":
            return self.instances(class_logits, mask_logits, size)
        probabilities = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False).sigmoid()
        if self.task == "semantic":
            classes = class_logits.softmax(-1)[..., :-1].transpose(1, 2)
            scores = classes @ probabilities.flatten(2)
            return (scores.argmax(1).unflatten(1, size),)
        return self.panoptic(class_logits, probabilities)

    def instances(self, class_logits: Tensor, mask_logits: Tensor, size: list[int]) -> tuple[Tensor, ...]:
        """The best pairs of query and class; stuff has the score 0."""
        probabilities = class_logits.softmax(-1)[..., :-1]
        classes = probabilities.shape[-1]
        count = min(self.detections, probabilities.shape[1] * classes)
        scores, pairs = probabilities.flatten(1).topk(count, dim=1)
        labels, queries = pairs % classes, pairs // classes
        chosen = mask_logits.gather(1, queries[..., None, None].expand(-1, -1, *mask_logits.shape[-2:]))
        logits = F.interpolate(chosen, size=size, mode="bilinear", align_corners=False)
        masks = logits > logit_of(self.mask_threshold)
        area = masks.float().sum((2, 3))
        scores = scores * (logits.sigmoid() * masks).sum((2, 3)) / (area + 1e-6)
        for label in self.stuff:
            scores = torch.where(labels == label, torch.zeros_like(scores), scores)
        scores, order = scores.sort(dim=1, descending=True)
        masks = masks.gather(1, order[..., None, None].expand(-1, -1, *masks.shape[-2:]))
        return scores, labels.gather(1, order), masks

    def panoptic(self, class_logits: Tensor, probabilities: Tensor) -> tuple[Tensor, ...]:
        """The query with the largest score x mask probability at each pixel, if its mask covers it."""
        scores, labels = class_logits.softmax(-1).max(-1)
        queries = class_logits.shape[1]
        kept = (labels != class_logits.shape[-1] - 1) & (scores > self.threshold)
        weighted = torch.where(kept, scores, torch.zeros_like(scores))[..., None, None] * probabilities
        winner = weighted.argmax(1)
        inside = probabilities >= self.mask_threshold
        covered = inside.gather(1, winner[:, None])[:, 0] & kept.any(1)[:, None, None]
        index = torch.arange(queries, device=winner.device)[:, None, None]
        wins = winner[:, None] == index
        area, largest = inside.float().sum((2, 3)), wins.float().sum((2, 3))
        visible = (wins & covered[:, None]).float().sum((2, 3))
        kept = kept & (area > 0) & (visible > 0) & (largest >= self.overlap_mask_area_threshold * area)
        is_stuff = torch.zeros_like(kept)
        for label in self.stuff:
            is_stuff = is_stuff | (labels == label)
        same = (labels[:, :, None] == labels[:, None]) & (kept & is_stuff)[:, :, None] & (kept & is_stuff)[:, None]
        first = torch.where(is_stuff & kept, same.float().argmax(2), torch.arange(queries, device=kept.device))
        ids = torch.where(kept, first + 1, torch.zeros_like(first))
        segmentation = ids.gather(1, winner.flatten(1)).view_as(winner) * covered
        remains = kept & (first == torch.arange(queries, device=kept.device))
        return segmentation, torch.where(remains, scores, torch.zeros_like(scores)), labels
