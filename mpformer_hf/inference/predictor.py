"""Inference on images of any size: batches, prompts, test-time augmentation, sliding windows.

Augmented views: semantic score maps are averaged, as in the official code. For segments the queries of each view are
assigned to those of the first view, and the class and mask probabilities of those that agree are averaged. Windows are
merged after post-processing, see `windows.py`.
"""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..model.cleaning import check_cleaning, clean
from ..model.image_sizes import size_of
from ..model.images import to_image_tensor
from ..model.matcher import mask_costs
from ..model.postprocessing import ResizeGeometry, resize_masks, valid_sizes
from ..model.prompting import (
    EncodedImage,
    RefinedMasks,
    boxes_to_masks,
    check_boxes,
    check_mask,
    enlarge_boxes,
    prepare_mask,
)
from ..model.ranges import check_range
from .arguments import InferenceOptions, LoadingArguments
from .exported import Model, is_exported
from .loading import load_for_inference, load_processor
from .result import Result
from .windows import (
    Box,
    ScoreMap,
    SegmentJoiner,
    segments_to_instances,
    segments_to_panoptic,
    window_boxes,
    window_segments,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES |= {"bf16": torch.bfloat16, "fp16": torch.float16}
POSTPROCESS = {task: f"post_process_{task}_segmentation" for task in ("semantic", "instance", "panoptic")}
MIN_VIEW_IOU = 0.5  # queries of two views with a smaller one are not of one object
OUTPUTS = ("class_queries_logits", "masks_queries_logits", "pixel_mask")  # that post-processing needs
WINDOWS = 4  # that go through the model at once


class Predictor:
    """Segments images, with a model and its processor.

    Args:
        model: `MPFormerForUniversalSegmentation`, on its device and of any dtype, or an `ExportedModel`; used in
            evaluation mode.
        processor: an MP-Former image processor.
        task: semantic, instance or panoptic; None = the processor's.
        options: see `InferenceOptions`.
    """

    def __init__(self, model: Model, processor, task: str | None = None, options: InferenceOptions | None = None):
        self.model, self.processor, self.options = model, processor, options or InferenceOptions()
        self.task = task or processor.task
        if self.task not in POSTPROCESS:
            raise ValueError(f"task must be semantic, instance or panoptic, got {self.task!r}.")
        check_cleaning(self.task, self.options.nms, self.options.min_pixels)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        task: str | None = None,
        options: InferenceOptions | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,
        **kwargs,
    ) -> "Predictor":
        """Predictor of a saved model.

        Args:
            name: folder or Hub name of an MP-Former or Mask2Former, or a file of `mpformer export`.
            task: semantic, instance or panoptic; None = the processor's.
            options: see `InferenceOptions`.
            device: of the model; None = that of this process, an accelerator if there is one.
            dtype: of weights and activations: float32, bfloat16 or float16.
            compile: compile the layers of the model, see `compile_model`.
            kwargs: others of `from_pretrained`, such as `revision` and `token`.

        Raises:
            ValueError: it cannot be loaded.
        """
        if unknown := sorted(set(kwargs) - {"revision", "token", "cache_dir", "local_files_only"}):
            raise ValueError(f"Unknown argument {unknown[0]}; threshold, window, ... are fields of InferenceOptions.")
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        if device is None:
            device = "cpu" if is_exported(name) else PartialState().device
        model = load_for_inference(name, device, dtype, compile, **kwargs)
        return cls(model, load_processor(name, **kwargs), task, options)

    @classmethod
    def from_arguments(
        cls, args: LoadingArguments, task: str | None = None, options: InferenceOptions | None = None
    ) -> "Predictor":
        """The predictor of a command."""
        revision = {"revision": args.revision} if args.revision else {}
        return cls.from_pretrained(args.model, task, options, args.device, args.dtype, args.compile, **revision)

    def __call__(self, images: Any) -> Any:
        """Segment images of any sizes.

        Args:
            images: one image, a list, or an iterator: see `to_image_tensor`.

        Returns:
            a `Result`, on the CPU; for a list a list of them, and for an iterator an iterator.

        Raises:
            ValueError: an image is of another kind, or too narrow for the processor's size.
        """
        if isinstance(images, Iterator) and not hasattr(images, "read"):  # a file is an iterator of lines
            return (self(image) for image in images)
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        tensors = [to_image_tensor(image) for image in images]
        about = (self.model.config.id2label, self.processor.category_ids, self.processor.palette)
        found = zip(tensors, self.predict(tensors), strict=True)
        return [Result(image, self.task, result, *about) for image, result in found]

    @torch.no_grad()
    def predict(self, images: list[Tensor]) -> list:
        """Post-processed results of images, as files of results need them.

        Args:
            images: uint8 `[3, H, W]`; batches of equal sizes are fastest.

        Returns:
            per image, on the CPU: semantic: int64 `[H, W]`; panoptic: result of the processor's post-processing;
            instance: the same with `segmentation` bool `[n, H, W]`.

        Raises:
            ValueError: an image is too narrow for the processor's size.
        """
        if self.options.window is not None:
            results = [self.predict_windows(image, self.options.window) for image in images]
        else:
            results = self.predict_full(images)
        if self.task == "semantic":
            return results
        return [clean(result, self.options.nms, self.options.min_pixels) for result in results]

    # --- Prompts ---

    @torch.no_grad()
    def encode(self, image: Any, scale: float = 1.0) -> EncodedImage:
        """Features of an image for any number of calls of `refine`.

        Args:
            image: see `to_image_tensor`.
            scale: image size relative to the processor's; somewhat larger images have finer masks.

        Raises:
            ValueError: the scale is out of range.
        """
        check_range("scale", scale, "(0, 16]")
        image = to_image_tensor(image)
        inputs = self.scaled_inputs([image], scale)
        (resized,) = valid_sizes(inputs["pixel_mask"])
        geometry = ResizeGeometry(size_of(inputs["pixel_mask"]), resized, size_of(image))
        return EncodedImage(self.model.encode(inputs["pixel_values"]), geometry)

    @torch.no_grad()
    def refine(
        self,
        image: Any,
        masks: Tensor | None = None,
        boxes: Tensor | None = None,
        labels: Any = None,
        rounds: int = 1,
        limits: Tensor | None = None,
    ) -> dict:
        """Refine boxes or rough masks, see `prompting.py`.

        Args:
            image: see `to_image_tensor`, or what `encode` made of it (at another scale).
            masks: `[P, H, W]`, non-zero = inside; or
            boxes: `[P, 4]`, (x0, y0, x1, y1) in pixels of the image, x1 and y1 exclusive.
            labels: class of each prompt, its id or name; -1 or None: not known.
            rounds: number of rounds, see `MPFormerForUniversalSegmentation.refine`.
            limits: boxes `[P, 4]` that the refined masks do not leave; default: none for masks, and boxes enlarged by a
                tenth of their sides.

        Returns:
            the form of an instance result, on the CPU: `segmentation`, bool `[P, H, W]`, and `segments_info` with `id`,
            `label_id` and `score` of each prompt.

        Raises:
            ValueError: a prompt is invalid.
        """
        if (masks is None) == (boxes is None):
            raise ValueError("Give either masks or boxes.")
        encoded = image if isinstance(image, EncodedImage) else self.encode(image)
        labels = [self.label_id(label) for label in labels] if isinstance(labels, (list, tuple)) else labels
        if masks is None:
            found = list(self.refine_boxes(encoded, boxes, labels, rounds, limits))
        else:
            found = list(self.refine_masks(encoded, torch.as_tensor(masks), labels, rounds, limits))
        height, width = encoded.geometry.target
        empty = torch.zeros(0, height, width, dtype=torch.bool)
        return {
            "segmentation": torch.stack([mask for mask, _ in found]) if found else empty,
            "segments_info": [{"id": index, **info} for index, (_, info) in enumerate(found)],
        }

    def label_id(self, label: int | str | None) -> int:
        """Id of a class that is given by id or name; -1 for None.

        Raises:
            ValueError: the model has no class of this name.
        """
        ids = {name: number for number, name in self.model.config.id2label.items()}
        if isinstance(label, str) and label not in ids:
            raise ValueError(f"The model has no class {label!r}, only {', '.join(ids)}.")
        return -1 if label is None else ids[label] if isinstance(label, str) else label

    @torch.no_grad()
    def refine_boxes(
        self, encoded: EncodedImage, boxes: Any, labels: Any, rounds: int = 1, limits: Tensor | None = None
    ) -> Iterator[tuple[Tensor, dict]]:
        """The mask, bool `[H, W]`, and `label_id` and `score` of each box, one after the other, see `refine`."""
        geometry = encoded.geometry
        boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        check_boxes(boxes, geometry.target)  # errors are in pixels of the image
        (height, width), (own_height, own_width) = geometry.image, geometry.target
        scaled = boxes * boxes.new_tensor([width / own_width, height / own_height] * 2)
        refined = self.model.refine(encoded.features, None, scaled, labels, rounds)
        yield from each_mask(refined, geometry, enlarge_boxes(boxes) if limits is None else limits)

    @torch.no_grad()
    def refine_masks(
        self, encoded: EncodedImage, masks: Iterable[Tensor], labels: Any, rounds: int = 1, limits: Tensor | None = None
    ) -> Iterator[tuple[Tensor, dict]]:
        """The refined mask, bool `[H, W]`, and `label_id` and `score` of each mask `[H, W]`, one after the other, see
        `refine`: of large images not all are in memory at once."""
        prepared = []
        for index, mask in enumerate(masks):
            check_mask(mask, index, encoded.geometry.target)
            prepared.append(prepare_mask(mask != 0, encoded.geometry))
        given = torch.stack(prepared) if prepared else torch.zeros(0, *encoded.features.size)
        refined = self.model.refine(encoded.features, given, None, labels, rounds)
        yield from each_mask(refined, encoded.geometry, limits)

    # --- Full images ---

    def predict_full(self, images: list[Tensor], scores: bool = False) -> list:
        """Results without windows; with `scores` the class scores `[K, H, W]` instead (semantic only)."""
        sizes = [size_of(image) for image in images]
        if not self.options.uses_tta:
            return self.postprocess(self.forward_scaled(images, 1.0), sizes, scores)
        if self.task == "semantic":
            maps = (self.mean_scores(image) for image in images)
            return [map_ if scores else map_.argmax(0) for map_ in maps]
        return [self.postprocess(self.merge_views(image), [size])[0] for image, size in zip(images, sizes, strict=True)]

    def forward_scaled(self, images: list[Tensor], scale: float):
        """Model outputs for images resized to `scale` times the processor's size."""
        with self.model.evaluating():
            return self.model(**self.scaled_inputs(images, scale))

    def scaled_inputs(self, images: list[Tensor], scale: float):
        """Inputs of the model, resized to `scale` times the processor's size."""
        size = {name: round(scale * side) for name, side in dict(self.processor.size).items() if side is not None}
        return self.processor(images, size=size, return_tensors="pt").to(self.model.device, self.model.dtype)

    def postprocess(self, outputs, sizes: list[tuple[int, int]], scores: bool = False) -> list:
        """Model outputs to results of (height, width) `sizes`, on the CPU."""
        process = getattr(self.processor, POSTPROCESS[self.task])
        if self.task == "semantic":
            results = process(outputs, target_sizes=sizes, return_segmentation_scores=scores)
            return [(result.segmentation_scores if scores else result).cpu() for result in results]
        binary = {"return_binary_maps": True} if self.task == "instance" else {}
        results = process(outputs, threshold=self.options.threshold, target_sizes=sizes, **binary)
        return [{**result, "segmentation": result["segmentation"].cpu()} for result in results]

    # --- Augmented views ---

    def views(self, image: Tensor) -> Iterator[tuple[bool, Any]]:
        """Whether a view is mirrored, and the model's outputs for it."""
        for scale in self.options.scales:
            for mirrored in (False, True) if self.options.flip else (False,):
                yield mirrored, self.forward_scaled([image.flip(-1) if mirrored else image], scale)

    def mean_scores(self, image: Tensor) -> Tensor:
        """Class scores, float32 `[K, H, W]`, mean over the views."""
        total, count = torch.zeros(()), 0
        for mirrored, outputs in self.views(image):
            (scores,) = self.postprocess(outputs, [size_of(image)], scores=True)
            scores = scores.flip(-1) if mirrored else scores
            total = scores if count == 0 else total.add_(scores)
            count += 1
        return total.div_(count)

    def merge_views(self, image: Tensor):
        """Outputs for one image from all views, at the first view's resolution. Queries of other views that agree with
        one of the first view are averaged with it; others are added, if they see an object."""
        merged: QueryMeans | None = None
        for mirrored, outputs in self.views(image):
            (size,) = valid_sizes(outputs.pixel_mask)
            cells = -(-size[0] // 4), -(-size[1] // 4)  # without padding, at the resolution of the masks
            if merged is None:
                (rows, columns), (height, width) = cells, size
            logits = outputs.masks_queries_logits[0]
            logits = resize_masks(logits, ResizeGeometry(size_of(logits), cells, (rows, columns)))
            masks = (logits.flip(-1) if mirrored else logits).sigmoid()
            classes = outputs.class_queries_logits[0].float().softmax(-1)
            if merged is None:
                merged = QueryMeans(classes, masks)
            else:
                merged.add(classes, masks)
        pixel_mask = torch.zeros(1, 4 * rows, 4 * columns, dtype=torch.int64)
        pixel_mask[:, :height, :width] = 1
        assert merged is not None  # there is at least one scale
        classes, masks = merged.means()
        return SimpleNamespace(
            class_queries_logits=classes.clamp(min=1e-12).log()[None],
            masks_queries_logits=torch.logit(masks, eps=1e-6)[None],
            pixel_mask=pixel_mask,
        )

    # --- Windows ---

    def predict_windows(self, image: Tensor, window: int):
        """Result for one image, from windows of this side in pixels."""
        size = size_of(image)
        boxes = window_boxes(size, window, self.options.overlap)
        if self.task == "semantic":
            scores = ScoreMap(boxes, size, round(window * self.options.overlap))
            for box, found in zip(boxes, self.in_batches(image, boxes), strict=True):
                scores.add(box, found)
            return scores.classes
        joiner = SegmentJoiner()
        for box, found in zip(boxes, self.in_batches(image, boxes), strict=True):
            joiner.add(box, window_segments(found, box, size))
        if self.task == "instance":
            return segments_to_instances(joiner.joined(), size)
        return segments_to_panoptic(joiner.joined(), size, set(self.processor.label_ids_to_fuse))

    def in_batches(self, image: Tensor, boxes: list[Box]) -> Iterator[Any]:
        """The result of each window, or its class scores in semantic segmentation. All windows have one size, and
        several go through the model at once; their results, which are large, are made one by one."""
        is_semantic = self.task == "semantic"
        for first in range(0, len(boxes), WINDOWS):
            parts = [image[:, y0:y1, x0:x1] for y0, y1, x0, x1 in boxes[first : first + WINDOWS]]
            if self.options.uses_tta:
                yield from (self.predict_full([part], is_semantic)[0] for part in parts)
                continue
            outputs = self.forward_scaled(parts, 1.0)
            for index, part in enumerate(parts):
                own = SimpleNamespace(**{name: getattr(outputs, name)[index : index + 1] for name in OUTPUTS})
                yield self.postprocess(own, [size_of(part)], is_semantic)[0]


def each_mask(refined: RefinedMasks, geometry: ResizeGeometry, limits: Tensor | None) -> Iterator[tuple[Tensor, dict]]:
    """Masks of refined prompts at the size of the image, cut at their limits, on the CPU; and class and score."""
    rows = zip(refined.mask_logits, refined.label_ids.tolist(), refined.scores.tolist(), strict=True)
    for index, (logits, label, score) in enumerate(rows):
        mask = resize_masks(logits[None], geometry)[0].cpu() > 0
        if limits is not None:
            mask &= boxes_to_masks(limits[index], geometry.target)[0].bool()
        yield mask, {"label_id": label, "score": round(score, 6)}


class QueryMeans:
    """Means of class and mask probabilities over the queries of several views that agree.

    Args:
        classes: `[Q, K + 1]` of the first view.
        masks: `[Q, h, w]`.
    """

    def __init__(self, classes: Tensor, masks: Tensor):
        self.classes, self.masks = classes.clone(), masks.clone()
        self.counts = torch.ones(len(classes), device=classes.device)

    def add(self, classes: Tensor, masks: Tensor) -> None:
        """Add another view, whose masks are aligned with those of the first."""
        mean_classes, mean_masks = self.means()
        order, agree = match_queries(mean_classes, mean_masks, classes, masks)
        rows = agree.nonzero()[:, 0]
        self.classes[rows] += classes[order[rows]]
        self.masks[rows] += masks[order[rows]]
        self.counts[rows] += 1
        others = torch.ones(len(classes), dtype=torch.bool, device=classes.device)
        others[order[rows]] = False
        others &= classes[:, -1] < 0.5
        self.classes = torch.cat((self.classes, classes[others]))
        self.masks = torch.cat((self.masks, masks[others]))
        self.counts = torch.cat((self.counts, self.counts.new_ones(int(others.sum()))))

    def means(self) -> tuple[Tensor, Tensor]:
        """Class and mask probabilities."""
        return self.classes / self.counts[:, None], self.masks / self.counts[:, None, None]


def match_queries(classes: Tensor, masks: Tensor, other_classes: Tensor, other_masks: Tensor) -> tuple[Tensor, Tensor]:
    """Assign the queries of another view to those of the first, by class and mask probabilities.

    Args:
        classes, other_classes: `[P, K + 1]`, `[Q, K + 1]`.
        masks, other_masks: `[P, h, w]`, `[Q, h, w]`.

    Returns:
        int64 `[P]`, for each query of the first view the one of the other view (0 if it has none), and bool `[P]`,
        whether both agree: the IoU of their mask probabilities (sum of minima / sum of maxima) is at least 0.5, and
        their most probable class is the same.
    """
    _, dice = mask_costs(torch.logit(other_masks.flatten(1), eps=1e-6), masks.flatten(1))
    cost = dice - other_classes @ classes.T
    other, first = (torch.from_numpy(x).to(classes.device) for x in linear_sum_assignment(cost.cpu().numpy()))
    order = torch.zeros(len(classes), dtype=torch.int64, device=classes.device)
    order[first] = other
    agree = torch.zeros(len(classes), dtype=torch.bool, device=classes.device)
    one, two = masks[first].flatten(1), other_masks[other].flatten(1)
    iou = torch.minimum(one, two).sum(1) / torch.maximum(one, two).sum(1).clamp(min=1e-6)
    agree[first] = (iou >= MIN_VIEW_IOU) & (other_classes[other].argmax(1) == classes[first].argmax(1))
    return order, agree
