"""Image processors of MP-Former: preprocessing of images and segmentation maps, and post-processing of outputs.

Label convention: class ids are 0..K-1; 255 (`ignore_index`) is void in label maps.
"""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .boxes import mask_boxes
from .cleaning import check_cleaning, clean
from .image_sizes import check_shape, padded_size, rename_old_fields, size_of, stretched_size
from .images import to_eight_bits
from .label_maps import as_maps, check_maps, encode_rle, resize_map, split_segments
from .postprocessing import (
    ResizeGeometry,
    clean_instances,
    instance_inference,
    instances_to_map,
    panoptic_inference,
    semantic_classes,
    semantic_inference,
    valid_sizes,
)
from .processor_fields import check_fields, check_threshold

# Of saved files; and num_labels, which Mask2Former's processor has and does not use either.
METADATA = {"image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "num_labels"}
OLD = ("max_size", "reduce_labels")
# of from_pretrained and pipeline
LOADING = ("return_unused_kwargs", "trust_remote_code", "code_revision", "use_fast", "backend", "dtype")

logger = logging.getLogger(__name__)
Backend: Any = object  # of the mixin: TorchvisionBackend or PilBackend


class MPFormerImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Arguments of Mask2Former's processor, and those of post-processing.

    size_divisor: the sides of padded images are multiples of it; 0 is 1.
    stretch_to_divisor: images are not padded to multiples of `size_divisor` but resized to them, which changes their
        aspect ratio, as Mask2FormerImageProcessor does; only smaller images of a batch are padded.
    ignore_index: void in segmentation maps of classes.
    do_reduce_labels: id 0 becomes void, other ids become one less; void remains void.
    task: semantic, instance or panoptic; default task of the pipeline.
    threshold, mask_threshold, overlap_mask_area_threshold: defaults of post-processing.
    label_ids_to_fuse: stuff classes, whose panoptic segments are merged.
    category_ids: the dataset's own id of each class, for files of predictions; default: the class ids.
    palette: RGB colour of each class, for pictures; default: the colours of `class_color`.
    """

    size_divisor: int | None
    stretch_to_divisor: bool | None
    ignore_index: int | None
    do_reduce_labels: bool | None
    task: str | None
    threshold: float | None
    mask_threshold: float | None
    overlap_mask_area_threshold: float | None
    label_ids_to_fuse: list[int] | tuple[int, ...] | None
    category_ids: list[int] | tuple[int, ...] | None
    palette: list[list[int]] | tuple[tuple[int, int, int], ...] | None


class MPFormerImageProcessorMixin(Backend):
    """Segmentation maps, padding and post-processing, for both backends."""

    valid_kwargs = MPFormerImageProcessorKwargs
    model_input_names = ("pixel_values", "pixel_mask")
    resample = PILImageResampling.BILINEAR
    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)
    size: ClassVar = {"shortest_edge": 800, "longest_edge": 1333}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_reduce_labels = False
    size_divisor = 32
    stretch_to_divisor = False
    ignore_index = 255
    task = "panoptic"
    threshold = 0.5
    mask_threshold = 0.5
    overlap_mask_area_threshold = 0.8
    label_ids_to_fuse: Sequence[int] = ()
    category_ids: list[int] | None = None
    palette: list[list[int]] | None = None

    def __init__(self, **kwargs):
        kwargs = rename_old_fields(kwargs, dict(self.size))
        kwargs = {name: value for name, value in kwargs.items() if name != "size" or value is not None}
        unknown = sorted(set(kwargs) - set(self.valid_kwargs.__annotations__) - METADATA)
        if unknown:
            logger.warning("%s has no fields %s; they have no effect.", type(self).__name__, ", ".join(unknown))
        super().__init__(**kwargs)
        check_fields(self)

    @classmethod
    def from_dict(cls, fields: dict, **kwargs):
        """A processor of the fields of a file, which `kwargs` override; names of older versions are known."""
        given = {
            name: kwargs.pop(name) for name in [*kwargs] if name in cls.valid_kwargs.__annotations__ or name in OLD
        }
        unknown = sorted(name for name in kwargs if name not in LOADING and not name.startswith("_"))
        if unknown:
            logger.warning("%s has no fields %s; they have no effect.", cls.__name__, ", ".join(unknown))
        size = fields.get("size", cls.size)
        if size is None and "size" not in given and fields.get("do_resize") is not False:
            raise ValueError('size is null in the file of the processor; name it, or set "do_resize" to false.')
        default_size = {**cls.size, **(size if isinstance(size, dict) else {"shortest_edge": size} if size else {})}
        known = rename_old_fields(fields, dict(cls.size))
        return super().from_dict({**known, **rename_old_fields(given, default_size)}, **kwargs)

    # --- Preprocessing ---

    def preprocess(
        self,
        images,
        segmentation_maps=None,
        instance_id_to_semantic_id: dict[int, int] | list[dict[int, int]] | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Resize, normalise and pad images; convert maps to one mask and class per segment.

        Args:
            images: one image or a list: PIL of any mode, or numpy or torch with 1, 3 or 4 channels, first or last;
                converted to 8-bit RGB, see `to_eight_bits`.
            segmentation_maps: per image an integer map of the image's size, of class or segment ids; in a list also
                `[L, H, W]`, layers of segments that overlap.
            instance_id_to_semantic_id: if given (one for all images or one each), maps have segment ids and this gives
                their classes; other ids are void. `do_reduce_labels` also applies to these classes.
            kwargs: any field of the processor, for this call.

        Returns:
            `pixel_values` float32 `[B, 3, H, W]`, zero-padded at the right and bottom to the largest image, rounded up
            to `size_divisor`; `pixel_mask` int64 `[B, H, W]`, 1 = image; with maps also lists `mask_labels` (bool
            `[T, H, W]`, False in the padding) and `class_labels` (int64 `[T]`).

        Raises:
            ValueError: numbers or sizes of images and maps do not fit, or an image is empty or too narrow.
        """
        maps = None if segmentation_maps is None else as_maps(segmentation_maps)
        if kwargs.get("do_convert_rgb", self.do_convert_rgb) and kwargs.get("do_rescale", self.do_rescale):
            images = to_eight_bits(images)
        return super().preprocess(images, maps, instance_id_to_semantic_id, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, maps, instance_id_to_semantic_id, do_convert_rgb, input_data_format, return_tensors, **kwargs
    ) -> BatchFeature:
        images = self._prepare_image_like_inputs(
            images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=kwargs.get("device")
        )
        if not images:
            raise ValueError("images is empty.")
        if kwargs["do_center_crop"] or kwargs["do_pad"] is False:
            raise ValueError("do_center_crop=True and do_pad=False are not supported.")
        if kwargs.get("data_format") not in (None, ChannelDimension.FIRST):
            raise ValueError(f"data_format must be channels_first, got {kwargs['data_format']!r}.")
        for index, image in enumerate(images):
            if kwargs["do_normalize"] and image.shape[0] != len(kwargs["image_mean"]):
                reason = "images are converted to RGB unless do_convert_rgb=False"
                if not do_convert_rgb:
                    reason = "images are not converted to RGB, do_convert_rgb is False"
                channels = f"{image.shape[0]} channels, image_mean has {len(kwargs['image_mean'])}"
                raise ValueError(f"Image {index} has {channels}; {reason}.")
            if kwargs["do_resize"]:
                check_shape(size_of(image), kwargs["size"].longest_edge)
        if maps is not None:
            check_maps(maps, images)
        images = self.transform_images(images, **kwargs)
        sizes = [size_of(image) for image in images]
        divisor = 1 if kwargs["stretch_to_divisor"] else kwargs["size_divisor"] or 1
        padded = padded_size(sizes, divisor, kwargs["pad_size"])
        batch = torch.zeros(len(images), images[0].shape[0], *padded, dtype=torch.float32, device=images[0].device)
        pixel_mask = torch.zeros(len(images), *padded, dtype=torch.int64, device=batch.device)
        for index, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
            batch[index, :, :height, :width] = image
            pixel_mask[index, :height, :width] = 1
        data: dict[str, Any] = {"pixel_values": batch, "pixel_mask": pixel_mask}
        if maps is not None:
            data |= self.transform_maps(maps, instance_id_to_semantic_id, sizes, padded, **kwargs)
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=("mask_labels", "class_labels"))

    def transform_maps(
        self, maps, instance_id_to_semantic_id, sizes, padded, do_reduce_labels, ignore_index, **kwargs
    ) -> dict[str, list[Tensor]]:
        """Convert maps to padded masks and classes; they are resized as their images."""
        classes_of_ids = instance_id_to_semantic_id
        if not isinstance(classes_of_ids, list):
            classes_of_ids = [classes_of_ids] * len(maps)
        if len(classes_of_ids) != len(maps):
            raise ValueError(f"instance_id_to_semantic_id has {len(classes_of_ids)} entries for {len(maps)} images.")
        mask_labels, class_labels = [], []
        for map_, size, id_to_class in zip(maps, sizes, classes_of_ids, strict=True):
            if id_to_class is not None:  # keys are strings after JSON
                id_to_class = {int(segment): int(label) for segment, label in id_to_class.items()}
            masks, classes = split_segments(resize_map(map_, size), id_to_class, do_reduce_labels, ignore_index)
            margin = (0, padded[1] - size[1], 0, padded[0] - size[0])
            mask_labels.append(F.pad(masks, margin) if any(margin) else masks)
            class_labels.append(classes)
        return {"mask_labels": mask_labels, "class_labels": class_labels}

    # --- Post-processing ---

    def _geometries(
        self, masks: Tensor, pixel_mask: Tensor | None, target_sizes: Sequence[tuple[int, int]] | Tensor | None
    ) -> list[ResizeGeometry]:
        batch = len(masks)
        padded = 4 * masks.shape[-2], 4 * masks.shape[-1]
        images = [padded] * batch
        if pixel_mask is not None:
            padded = size_of(pixel_mask)
            images = valid_sizes(pixel_mask)
        if target_sizes is None:
            targets = images
        else:
            sizes = target_sizes.tolist() if torch.is_tensor(target_sizes) else [tuple(size) for size in target_sizes]
            if len(sizes) != batch:
                raise ValueError(f"target_sizes has {len(sizes)} entries for {batch} images.")
            for size in sizes:
                if len(size) != 2 or any(side != int(side) or side < 1 for side in size):
                    raise ValueError(f"target_sizes must be pairs (height, width) of positive integers, got {size}.")
            targets = [(int(height), int(width)) for height, width in sizes]
        return [ResizeGeometry(padded, image, target) for image, target in zip(images, targets, strict=True)]

    def _per_image(self, outputs, target_sizes):
        names = ("class_queries_logits", "masks_queries_logits")
        classes, masks = (torch.as_tensor(getattr(outputs, name)).detach() for name in names)
        for name, logits in zip(names, (classes, masks), strict=True):
            if not torch.isfinite(logits).all():
                raise ValueError(f"{name} has values that are not finite; the model's weights or inputs are broken.")
        pixel_mask = getattr(outputs, "pixel_mask", None)
        pixel_mask = None if pixel_mask is None else torch.as_tensor(pixel_mask)
        return zip(classes, masks, self._geometries(masks, pixel_mask, target_sizes), strict=True)

    def _threshold(self, value: float | None, name: str) -> float:
        """A threshold, by default the processor's.

        Raises:
            ValueError: it is not a number in [0, 1].
        """
        value = getattr(self, name) if value is None else value
        check_threshold(name, value)
        return value

    def post_process_semantic_segmentation(
        self, outputs, target_sizes=None, return_segmentation_scores: bool = False
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """The most likely class of each pixel. Semantic models (`task`) sum class scores at the processed size and
        resize the sums, others resize the masks first, as in the official code.

        Args:
            outputs: [`MPFormerForUniversalSegmentationOutput`] or Mask2Former's, or any object with
                `class_queries_logits` and `masks_queries_logits`, torch or numpy. Padding is cropped by its
                `pixel_mask`, if it has one.
            target_sizes: (height, width) of each result; default: the processed image without padding.
            return_segmentation_scores: also return scores.

        Returns:
            per image int64 `[H, W]`, or an output with `segmentation` int64 `[H, W]` and `segmentation_scores` float32
            `[K, H, W]`, at least 0.
        """
        results: list = []
        for classes, masks, geometry in self._per_image(outputs, target_sizes):
            if not return_segmentation_scores:
                results.append(semantic_classes(classes, masks, geometry, resize_scores=self.task == "semantic"))
                continue
            scores = semantic_inference(classes, masks, geometry, resize_scores=self.task == "semantic")
            fields = {"segmentation": scores.argmax(0), "segmentation_scores": scores}
            results.append(SemanticSegmentationPostProcessorOutput(fields))
        return results

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        target_sizes=None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        max_detections: int = 100,
        nms: float | None = None,
        min_pixels: int = 0,
    ) -> list[dict]:
        """Instances with scores. Classes in `label_ids_to_fuse` (stuff) are left out.

        Args:
            outputs, target_sizes: as in semantic post-processing.
            threshold: smallest score; default: the processor's.
            mask_threshold: pixels of a higher probability belong to a mask; default: the processor's.
            overlap_mask_area_threshold: in a single map, instances of higher scores cover others; those of which less
                than this share of the area is visible are left out. Not used for binary maps and RLE, which may
                overlap.
            return_coco_annotation: `segmentation` is a list of RLE dicts, as pycocotools reads them.
            return_binary_maps: `segmentation` is bool `[n, H, W]`.
            max_detections: number of pairs of query and class with the highest class probabilities to consider.
            nms: instances with at least this IoU with a better one of their class are left out, see `find_duplicates`.
            min_pixels: parts of masks below this size are removed and holes are filled, see `clean_mask`.

        Returns:
            per image a dict: `segmentation`, by default int32 `[H, W]` of ids, -1 = no instance; `segments_info` by
            descending score: `id` (0, 1, ...), `label_id`, `score`, `was_fused` (False), `bbox` (x, y, width, height in
            pixels, of the mask including covered parts).

        Raises:
            ValueError: both return options are set, or an option is out of range.
        """
        check_cleaning("instance", nms, min_pixels)
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps are mutually exclusive.")
        results = []
        for classes, masks, geometry in self._per_image(outputs, target_sizes):
            instances = instance_inference(
                classes,
                masks,
                geometry,
                threshold=self._threshold(threshold, "threshold"),
                mask_threshold=self._threshold(mask_threshold, "mask_threshold"),
                max_detections=max_detections,
                exclude_labels=set(self.label_ids_to_fuse),
            )
            instances = clean_instances(instances, nms, min_pixels)
            kept = list(range(len(instances.scores)))
            segmentation: Tensor | list[dict]
            if return_binary_maps:
                segmentation = instances.masks
            elif return_coco_annotation:
                segmentation = [encode_rle(mask.cpu().numpy()) for mask in instances.masks]
            else:
                overlap = self._threshold(overlap_mask_area_threshold, "overlap_mask_area_threshold")
                segmentation, kept = instances_to_map(instances, overlap)
            boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in mask_boxes(instances.masks).tolist()]
            scores, labels = instances.scores.tolist(), instances.labels.tolist()
            segments = [
                {
                    "id": position,
                    "label_id": labels[index],
                    "was_fused": False,
                    "score": round(scores[index], 6),
                    "bbox": boxes[index],
                }
                for position, index in enumerate(kept)
            ]
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    def post_process_panoptic_segmentation(
        self,
        outputs,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        label_ids_to_fuse: set[int] | None = None,
        target_sizes=None,
        min_pixels: int = 0,
    ) -> list[dict]:
        """Panoptic segments; each pixel belongs to at most one.

        Args:
            outputs, target_sizes: as in semantic post-processing.
            threshold: smallest class probability of a query (exclusive); default: the processor's.
            mask_threshold: pixels of at least this probability belong to a mask; default: the processor's.
            overlap_mask_area_threshold: smallest share of a query's mask that must remain; default: the processor's.
            label_ids_to_fuse: stuff classes; default: the processor's.
            min_pixels: parts of segments below this size are removed and holes are filled, see `remove_small_regions`.

        Returns:
            per image a dict: `segmentation` int32 `[H, W]` of ids, 0 = no segment; `segments_info`: `id` (1, 2, ...),
            `label_id`, `was_fused`, `score`.

        Raises:
            ValueError: an option is out of range.
        """
        check_cleaning("panoptic", None, min_pixels)
        results = []
        for classes, masks, geometry in self._per_image(outputs, target_sizes):
            segmentation, segments = panoptic_inference(
                classes,
                masks,
                geometry,
                threshold=self._threshold(threshold, "threshold"),
                mask_threshold=self._threshold(mask_threshold, "mask_threshold"),
                overlap_mask_area_threshold=self._threshold(overlap_mask_area_threshold, "overlap_mask_area_threshold"),
                label_ids_to_fuse=set(self.label_ids_to_fuse if label_ids_to_fuse is None else label_ids_to_fuse),
            )
            results.append(clean({"segmentation": segmentation, "segments_info": segments}, None, min_pixels))
        return results


class MPFormerImageProcessor(MPFormerImageProcessorMixin, TorchvisionBackend):
    """Image processor of MP-Former with torchvision; for its fields see [`MPFormerImageProcessorKwargs`]."""

    def transform_images(
        self, images, *, do_resize, size, resample, stretch_to_divisor, size_divisor, disable_grouping, **kwargs
    ) -> list[Tensor]:
        """Resize, rescale and normalise `[C, H, W]` images, without padding."""
        groups, order = group_images_by_shape(images, disable_grouping=disable_grouping)
        steps = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        transformed = {}
        for shape, stacked in groups.items():
            if do_resize:
                target = stretched_size(stacked.shape[-2:], size, size_divisor) if stretch_to_divisor else size
                stacked = self.resize(stacked, size=target, resample=resample)
            transformed[shape] = self.rescale_and_normalize(stacked, *(kwargs[step] for step in steps))
        return reorder_images(transformed, order)


class MPFormerImageProcessorPil(MPFormerImageProcessorMixin, PilBackend):
    """Image processor of MP-Former with PIL and NumPy; for its fields see [`MPFormerImageProcessorKwargs`]."""

    def transform_images(
        self, images, *, do_resize, size, resample, stretch_to_divisor, size_divisor, **kwargs
    ) -> list[Tensor]:
        """Resize, rescale and normalise `[C, H, W]` images, without padding."""
        transformed = []
        for image in images:
            if do_resize:
                target = stretched_size(image.shape[-2:], size, size_divisor) if stretch_to_divisor else size
                image = self.resize(image, size=target, resample=resample)
            if kwargs["do_rescale"]:
                image = self.rescale(image, kwargs["rescale_factor"])
            if kwargs["do_normalize"]:
                image = self.normalize(image, kwargs["image_mean"], kwargs["image_std"])
            transformed.append(torch.from_numpy(np.ascontiguousarray(image)))
        return transformed
