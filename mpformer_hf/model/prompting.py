"""The pilot as a prompt: boxes or rough masks in, refined masks out.

In training, pilot queries learn to reconstruct ground-truth masks (MP-Former, section 3). At inference, masks of a
person or a program can take their place. Matching queries cannot attend to pilot queries, so the ordinary predictions
do not change. A model refines the kinds of prompts that its `pilot_noise` had in training; clean masks alone teach it
little.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from .configuration_mpformer import MPFormerConfig
from .mask_piloting import Pilot, build_pilot
from .pilot_noise import is_geometric
from .postprocessing import ResizeGeometry
from .targets import Targets
from .transformer_decoder import DecoderMemory, QueryStates, compute_masks

UNKNOWN = -1  # label of a prompt whose class is not known
CLEAN_PILOT = (
    "the pilot of this model was trained on clean masks only, so masks of boxes may be poor: train it with "
    "--pilot_noise box box shift outline clean --pilot_noise_scale 0.5"
)
MOST_QUERIES = 300  # pilot queries of one pass
MARGIN = 0.1  # of a box's sides, by which the mask may leave it


def prompt_note(config: MPFormerConfig) -> str:
    """What to expect of the prompts of a model; empty if its pilot was trained for them."""
    return "" if is_geometric(config.pilot_noises, float(config.pilot_noise_scale)) else CLEAN_PILOT


@dataclass
class ImageFeatures:
    """What the decoder reads of one image; it is computed once for any number of prompts.

    Attributes:
        mask_features: `[1, mask_feature_size, H / 4, W / 4]`.
        memory: what the queries attend to.
        matching: states of the matching queries in each layer, which prompts attend to.
        size: (H, W) of the padded image in pixels.
    """

    mask_features: Tensor
    memory: DecoderMemory
    matching: list[QueryStates]
    size: tuple[int, int]


@dataclass
class EncodedImage:
    """An image for `Predictor.refine`.

    Attributes:
        features: see `ImageFeatures`.
        geometry: sizes of the padded input, of the resized image in it, and of the image.
    """

    features: ImageFeatures
    geometry: ResizeGeometry


@dataclass
class RefinedMasks:
    """Results for the P prompts of an image, in their order.

    Attributes:
        mask_logits: float32 `[P, H / 4, W / 4]`; above 0 is inside.
        label_ids: int64 `[P]`, the class that the model believes in; of unknown prompts the one that was tried with the
            highest probability.
        scores: float32 `[P]` in [0, 1]: `raw_scores` of the given class, or of the best one if it is unknown; for a
            calibrated model (`mpformer calibrate`) the mean IoU of masks with this raw score.
    """

    mask_logits: Tensor
    label_ids: Tensor
    scores: Tensor


def boxes_to_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Filled rectangles.

    Args:
        boxes: `[P, 4]`, (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
        size: (H, W) of the image.

    Returns:
        uint8 `[P, H, W]`; pixels whose centre is inside, at least one.

    Raises:
        ValueError: a box is not finite, has no area or lies outside of the image.
    """
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    height, width = size
    check_boxes(boxes, size)
    inside = []
    for axis, side in ((1, height), (0, width)):  # rows, columns
        first = (boxes[:, axis] + 0.5).floor().clamp(0, side - 1)[:, None]
        stop = torch.maximum((boxes[:, axis + 2] + 0.5).floor()[:, None], first + 1)
        pixel = torch.arange(side, device=boxes.device)
        inside.append((pixel >= first) & (pixel < stop))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None]).to(torch.uint8)


def check_boxes(boxes: Tensor, size: tuple[int, int]) -> None:
    """Check boxes, see `boxes_to_masks`.

    Raises:
        ValueError: a box is not finite, has no area or lies outside of the image.
    """
    height, width = size
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        if not (x0 < x1 and y0 < y1 and abs(x0) + abs(y0) + abs(x1) + abs(y1) < float("inf")):
            raise ValueError(f"Box {index} has no area: x from {x0:g} to {x1:g}, y from {y0:g} to {y1:g}.")
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise ValueError(f"Box {index} is outside of the image of {height}x{width} pixels.")


def check_mask(mask: Tensor, index: int, size: tuple[int, int]) -> None:
    """
    Raises:
        ValueError: a mask is of another size or empty.
    """
    if tuple(mask.shape) != tuple(size):
        raise ValueError(f"Mask {index} has shape {tuple(mask.shape)}, expected {tuple(size)}.")
    if not mask.any():
        raise ValueError(f"Mask {index} is empty.")


def enlarge_boxes(boxes: Tensor) -> Tensor:
    """Boxes `[P, 4]` with sides that are `MARGIN` of the width and height further out: what is beyond is not of the
    object that a box is given for."""
    margin = MARGIN * (boxes[:, 2:] - boxes[:, :2])
    return torch.cat((boxes[:, :2] - margin, boxes[:, 2:] + margin), dim=1)


def check_prompts(masks: Tensor, labels: Tensor | None, size: tuple[int, int], num_labels: int) -> Tensor:
    """Labels of the prompts, int64 `[P]`; all unknown if there are none.

    Raises:
        ValueError: shapes do not fit, a mask is empty or a class does not exist.
    """
    for index, mask in enumerate(masks):
        check_mask(mask, index, size)
    labels = torch.full((len(masks),), UNKNOWN) if labels is None else torch.as_tensor(labels).reshape(-1)
    if labels.is_floating_point() and len(labels):
        raise ValueError(f"labels has dtype {labels.dtype}, expected integers.")
    if len(labels) != len(masks):
        raise ValueError(f"There are {len(masks)} prompts, but {len(labels)} labels.")
    invalid = labels[(labels < UNKNOWN) | (labels >= num_labels)]
    if len(invalid):
        raise ValueError(f"Class {int(invalid[0])} does not exist: 0 to {num_labels - 1}, or -1 if it is not known.")
    return labels.long()


def prompt_pilot(
    masks: Tensor, labels: Tensor, classes: list[int], level_shapes: list[tuple[int, int]], config: MPFormerConfig
) -> Pilot:
    """A pilot of prompts, without noise: one group for each of `classes`, which is the class of unknown prompts in it.

    Args:
        masks: uint8 `[P, H, W]`.
        labels: int64 `[P]`, -1 = unknown.
        classes: classes that are tried.
        level_shapes: (height, width) of the decoder's feature levels.
        config: of the model.
    """
    plain = copy.copy(config)
    plain.pilot_groups, plain.pilot_query_budget = len(classes), None
    plain.pilot_noise, plain.pilot_noise_scale, plain.pilot_label_noise = "point", 0.0, 0.0
    targets = Targets(masks, labels.clamp(min=0), [len(masks)])
    pilot = build_pilot(targets, level_shapes, plain)
    tried = torch.tensor(classes, device=masks.device)[:, None].expand(-1, len(masks))
    pilot.noisy_labels = torch.where(labels == UNKNOWN, tried, labels).view(1, -1)
    return pilot


def class_chunks(num_labels: int, prompts: int, any_unknown: bool) -> list[list[int]]:
    """Classes to try in each pass; a pass has at most `MOST_QUERIES` pilot queries, or one class."""
    if not any_unknown:
        return [[0]]
    size = max(1, MOST_QUERIES // max(1, prompts))
    return [list(range(first, min(first + size, num_labels))) for first in range(0, num_labels, size)]


@torch.no_grad()
def refine_masks(
    model: PreTrainedModel, features: ImageFeatures, masks: Tensor, labels: Tensor, rounds: int
) -> RefinedMasks:
    """Refine prompts.

    Args:
        model: `MPFormerForUniversalSegmentation`.
        features: of the image.
        masks: uint8 `[P, H, W]`.
        labels: int64 `[P]`, -1 = unknown.
        rounds: the results are the prompts of the next round, until none changes.

    Raises:
        ValueError: there are no rounds.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    for _ in range(rounds):
        refined = refine_once(model, features, masks, labels)
        before, masks = masks, masks_of_logits(refined.mask_logits, features.size, masks)
        labels = torch.where(labels == UNKNOWN, refined.label_ids, labels)
        if torch.equal(before, masks):
            break
    return refined


def refine_once(model: PreTrainedModel, features: ImageFeatures, masks: Tensor, labels: Tensor) -> RefinedMasks:
    """One round of `refine_masks`."""
    shapes, unknown = features.memory.shapes, labels == UNKNOWN
    probability = features.mask_features.new_full((len(masks),), -1.0, dtype=torch.float32)
    label_ids = torch.zeros_like(labels)
    embeddings = features.mask_features.new_zeros(len(masks), features.mask_features.shape[1])
    for classes in class_chunks(model.config.num_labels, len(masks), bool(unknown.any())) if len(masks) else []:
        pilot = prompt_pilot(masks, labels, classes, shapes, model.config)
        decoded = model.model.transformer_module.decode(features.memory, pilot, matching=features.matching)
        states, found = (
            x[0, : pilot.num_queries].unflatten(0, (len(classes), len(masks)))
            for x in (decoded.normed_states[-1], decoded.mask_embeddings[-1])
        )
        probabilities = model.class_predictor(states).float().softmax(-1)[..., :-1]
        own, group = probabilities.gather(2, pilot.noisy_labels.view(*states.shape[:2], 1))[..., 0].max(0)
        group = torch.where(unknown, group, 0)
        best = torch.where(unknown, group + classes[0], probabilities[0].argmax(-1))
        better = own > probability
        probability, label_ids = torch.where(better, own, probability), torch.where(better, best, label_ids)
        chosen = found[group, torch.arange(len(masks), device=masks.device)]
        embeddings = torch.where(better[:, None], chosen, embeddings)
    logits = compute_masks(embeddings[None], features.mask_features)[0].float()
    scores = apply_calibration(raw_scores(probability, logits), model.config.prompt_calibration)
    return RefinedMasks(logits, label_ids, scores)


def raw_scores(probability: Tensor, logits: Tensor) -> Tensor:
    """Probability of the class x IoU that the mask has if its probabilities are right: sum of the probabilities inside
    / (area + sum of the probabilities outside).

    Args:
        probability: float32 `[P]`.
        logits: float32 `[P, h, w]`.
    """
    mask, inside = logits.sigmoid().flatten(1), (logits > 0).flatten(1)
    return probability * (mask * inside).sum(1) / (inside.sum(1) + (mask * ~inside).sum(1)).clamp(min=1e-6)


def masks_of_logits(logits: Tensor, size: tuple[int, int], before: Tensor) -> Tensor:
    """Masks uint8 `[P, H, W]` of mask logits `[P, H / 4, W / 4]`; where one would be empty, the one before."""
    if not len(before):
        return before
    masks = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0] > 0
    there = masks.flatten(1).any(1)[:, None, None]
    return torch.where(there, masks.to(torch.uint8), before)


def prepare_mask(mask: Tensor, geometry: ResizeGeometry) -> Tensor:
    """A mask of an image, bool `[H, W]`, as one of the padded input; a mask that disappears when it is resized becomes
    the pixel in its middle."""
    resized = F.interpolate(mask[None, None].float(), size=geometry.image, mode="nearest-exact")[0, 0] > 0
    if not resized.any():
        places = zip(mask.nonzero(as_tuple=True), geometry.image, geometry.target, strict=True)
        row, column = (int(x.float().mean() * side / own) for x, side, own in places)
        resized[row, column] = True
    (height, width), (padded_height, padded_width) = geometry.image, geometry.padded
    return F.pad(resized, (0, padded_width - width, 0, padded_height - height))


def apply_calibration(scores: Tensor, knots: list[list[float]] | None) -> Tensor:
    """Calibrated scores.

    Args:
        scores: float32 `[P]`.
        knots: of `mpformer calibrate`; constant beyond the first and last one. None: scores are returned as they are.
    """
    if knots is None:
        return scores
    x, y = (torch.tensor(values, device=scores.device) for values in knots)
    after = torch.searchsorted(x, scores.contiguous()).clamp(1, len(x) - 1)
    share = ((scores - x[after - 1]) / (x[after] - x[after - 1])).clamp(0, 1)
    return y[after - 1] + share * (y[after] - y[after - 1])
