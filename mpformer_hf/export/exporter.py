"""Export of the inference model to files of several runtimes, alone or from 8-bit images to results."""

import json
import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..inference.exported import SUFFIXES, runtimes_of, settings_folder, suffix_of
from ..inference.loading import load_model, load_processor
from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.modeling_mpformer import MPFormerForUniversalSegmentation
from ..utils.files import write_atomically
from .arguments import ExportArguments
from .postprocessing import RESULTS, Postprocessing
from .precision import check_photos, convert_to_half, quantize
from .targets import TARGETS, Target
from .windows import replace_window_attention

logger = logging.getLogger(__name__)
STRIDE, LARGEST_BATCH, LONGEST_SIDE = 32, 64, 8192
OUTPUTS = ["class_queries_logits", "masks_queries_logits"]
TOLERANCE = 1e-3  # for mask logits, whose magnitude is in the tens


class ExportableModel(nn.Module):
    """The model as a function of one tensor with two outputs."""

    def __init__(self, model: MPFormerForUniversalSegmentation):
        super().__init__()
        self.model = model
        encoder: Any = model.model.pixel_level_module.encoder
        encoder.set_attn_implementation("eager")  # fused attention cannot be exported to ONNX
        self.smallest_side = STRIDE * (replace_window_attention(encoder) + 1)
        self.input_name, self.output_names, self.dtype = "pixel_values", OUTPUTS, torch.float32

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """float `[B, 3, H, W]` -> class logits `[B, Q, K + 1]` and mask logits `[B, Q, H / 4, W / 4]`."""
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in OUTPUTS)


class EndToEndModel(nn.Module):
    """From 8-bit images to results: normalisation, the model and post-processing.

    Args:
        model: returns class and mask logits of `pixel_values`.
        processor: its normalisation, task and thresholds are used.
        detections: number of instances of an image.

    Raises:
        ValueError: the processor has a `pad_size`, or a size of another form.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ExportableModel, processor: MPFormerImageProcessor, detections: int):
        super().__init__()
        if processor.pad_size is not None:
            raise ValueError(
                "A graph with post-processing has no padding: set pad_size of the image processor to null."
            )
        size = dict(processor.size)
        if processor.do_resize and not (size.get("shortest_edge") or size.get("height")):
            raise ValueError("The size of the image processor must have shortest_edge, or height and width.")
        self.model, self.smallest_side = model, model.smallest_side
        self.input_name, self.output_names, self.dtype = "image", RESULTS[processor.task], torch.uint8
        self.postprocessing = Postprocessing(
            processor.task,
            list(processor.label_ids_to_fuse),
            processor.threshold,
            processor.mask_threshold,
            processor.overlap_mask_area_threshold,
            detections,
        )
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
        scale = processor.rescale_factor if processor.do_rescale else 1.0
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) / scale)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) / scale)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """uint8 `[B, 3, H, W]`, sides multiples of 32, to results, see `Postprocessing.forward`."""
        return self.postprocessing(*self.model((image.float() - self.mean) / self.std))


Exportable = ExportableModel | EndToEndModel


class Exported(NamedTuple):
    """What was traced: the smallest image side in pixels if the image size is dynamic, else None, and the largest
    absolute difference of a logit; None: not compared."""

    smallest_side: int | None
    difference: float | None


def random_images(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Noise: 8-bit values, or normalised ones."""
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return (64 * noise + 128).clamp(0, 255).to(dtype) if dtype == torch.uint8 else noise.to(dtype)


def export_program(
    model: Exportable, height: int, width: int, dynamic: bool, check: Callable[[ExportedProgram, Tensor], float | None]
) -> Exported:
    """`torch.export` with a dynamic batch size and, where the backbone allows it, dynamic image size.

    Args:
        model: the model.
        height, width: of the traced images.
        dynamic: whether sizes may be dynamic; else the program takes one image of this size.
        check: returns the largest difference of a logit of what is made of the program, for images of another batch
            size and another size, if they are dynamic; if it is above `TOLERANCE` or fails, the image size is not.

    Raises:
        ValueError: the model cannot be exported.
    """
    rows, columns = (
        Dim(name, min=model.smallest_side // STRIDE, max=LONGEST_SIDE // STRIDE) for name in ("rows", "columns")
    )
    batch = {0: Dim("batch", min=1, max=LARGEST_BATCH)}
    sizes = {**batch, 2: STRIDE * rows, 3: STRIDE * columns}
    example = torch.zeros(2 if dynamic else 1, 3, height, width, dtype=model.dtype)
    kinds = ({},) if not dynamic else (batch,) if min(height, width) < model.smallest_side else (sizes, batch)
    for free in kinds:
        try:
            with torch.no_grad():
                program = torch.export.export(model, (example,), dynamic_shapes={model.input_name: free or None})
            grow = STRIDE if 2 in free else 0
            difference = check(
                program, random_images((3 if free else 1, 3, height + grow, width + 2 * grow), model.dtype)
            )
        except Exception as error:  # of many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            if difference is None or difference <= TOLERANCE:
                return Exported(model.smallest_side if 2 in free else None, difference)
            reason = f"its outputs differ from the model's by {difference:.1e}"
        if 2 in free:
            logger.warning("The image size cannot be dynamic: %s", reason)
    raise ValueError(f"The model cannot be exported at {height}x{width}: {reason}; nothing was saved.")


def largest_difference(model: Exportable, images: Tensor, outputs: Iterable[Tensor]) -> float:
    """Largest absolute difference between outputs and those of the model, and of integers and masks the share that
    differs; infinite if outputs are not finite."""
    with torch.no_grad():
        expected = model(images)
    if model.output_names == RESULTS["instance"]:
        expected, outputs = (without_order(*results) for results in (expected, outputs))
    differences = [
        (ours - theirs).abs().max() if ours.is_floating_point() else (ours != theirs).float().mean()
        for ours, theirs in zip(expected, outputs, strict=True)
    ]
    largest = torch.stack(differences).max().item()
    return largest if math.isfinite(largest) else math.inf


def without_order(scores: Tensor, labels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, sums of scores by class, and number of masks at each pixel: the same for instances of equal scores in
    another order."""
    by_class = torch.zeros(len(scores), int(labels.max()) + 1).scatter_add(1, labels, scores)
    return scores, by_class, masks.long().sum(1)


def save_and_compare(
    model: Exportable, target: Target, file: Path, metadata: dict[str, str], program: ExportedProgram, images: Tensor
) -> float | None:
    """Save a traced model; returns the largest difference of the outputs of the file, None if it cannot be run."""
    target.save(program, file, [model.input_name], list(model.output_names), metadata)
    return largest_difference(model, images, runtimes_of(file)[0].open(file)(images)) if target.runs else None


def describe(name: str, processor: MPFormerImageProcessor, id2label: dict[int, str], smallest: int) -> dict[str, str]:
    """What a program without transformers needs to know, as JSON: labels, and every field of the image processor. Sides
    of images are multiples of `multiple`, and at least `smallest_side`, in pixels."""
    size = {side: value for side, value in dict(processor.size).items() if value is not None}
    fields = {**processor.to_dict(), "size": size, "category_ids": processor.category_ids, "palette": processor.palette}
    fields |= {"labels": list(id2label.values()), "smallest_side": smallest}
    fields |= {"multiple": math.lcm(STRIDE, processor.size_divisor or 1)}
    return {
        "model": Path(name).name,
        **{field: json.dumps(value, ensure_ascii=False) for field, value in fields.items()},
    }


def fix_size(processor: Any, height: int, width: int) -> None:
    """Let an image processor make images of one size: padded to a square, or stretched to another shape."""
    processor.do_resize, processor.size, processor.pad_size = True, {"height": height, "width": width}, None
    if height == width:
        processor.size = {"shortest_edge": height, "longest_edge": height}
        processor.pad_size = {"height": height, "width": width}


def export(args: ExportArguments) -> Exported:
    """Export a saved model; the file is compared with the model before it is put in place. The image processor and the
    configuration are saved beside it, as `NAME_processor/`: commands and `Predictor` take the file for a model.

    Returns:
        what was traced, with the difference of the file (of fp16 and int8: of the float32 file before).

    Raises:
        ValueError: an argument is invalid, or the exported model differs from the original.
    """
    file, height, width, precision, photos = args.file, args.height, args.width, args.precision, args.photos
    suffix, processor_folder = suffix_of(file), settings_folder(file)
    if suffix is None:
        raise ValueError(f"{file} must end in one of {', '.join(SUFFIXES)}.")
    for path in (file, processor_folder):
        if path.exists():
            raise ValueError(f"{path} exists; choose another file name.")
    if height % STRIDE or width % STRIDE or min(height, width) < 2 * STRIDE:
        raise ValueError(f"{height}x{width}: sides must be multiples of {STRIDE}, at least {2 * STRIDE}.")
    if precision != "fp32" and suffix != ".onnx":
        raise ValueError(f"precision {precision} is for .onnx files.")
    if precision == "int8" and photos is None:
        raise ValueError("precision int8 needs --photos, a folder of images to calibrate with.")
    if photos is not None and not args.is_compared and precision != "int8":
        raise ValueError("--photos has no effect: files with post-processing and of Core ML are not compared on them.")
    if photos is not None:
        check_photos(photos)
    target = TARGETS[suffix]
    target.require()
    logger.info("Loading %s.", args.model)
    loaded, processor = load_model(args.model), load_processor(args.model)
    plain = ExportableModel(loaded)
    metadata = describe(args.model, processor, loaded.config.id2label, plain.smallest_side)
    model: Exportable = EndToEndModel(plain, processor, args.detections) if args.with_postprocessing else plain
    logger.info("Tracing the model, and comparing the file with it; this takes minutes for large models.")
    with write_atomically(file) as temporary:
        check = partial(save_and_compare, model, target, temporary, metadata)
        exported = export_program(model, height, width, target.dynamic, check)
        if precision != "fp32":
            logger.info("Converting the file to %s.", precision)
        if precision == "fp16":
            convert_to_half(temporary)
        elif precision == "int8" and photos is not None:
            quantize(temporary, photos, processor, model.input_name, (height, width))
        if exported.smallest_side is None:
            fix_size(processor, height, width)
        processor.save_pretrained(processor_folder)
        if not args.with_postprocessing:
            loaded.config.save_pretrained(processor_folder)
    return exported
