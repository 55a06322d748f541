"""Export the inference model for use without transformers. The end of the file's name decides what it is for.

mpformer export outputs/yours model.onnx --photos photos/        # onnxruntime, OpenVINO, TensorRT, browsers
mpformer export outputs/yours model.onnx --with_postprocessing
mpformer export outputs/yours model_int8.onnx --precision int8 --photos photos/
mpformer export outputs/yours model.pt2 --height 512 --width 1024     # torch.export
mpformer export outputs/yours model.aoti.pt2                     # compiled for this machine (AOTInductor)
mpformer export outputs/yours model.pte                          # ExecuTorch
mpformer export outputs/yours model.tflite                       # LiteRT
mpformer export outputs/yours model.mlpackage                    # Core ML

Input: `pixel_values` `[batch, 3, height, width]`, as the image processor makes it. Outputs: `class_queries_logits` and
`masks_queries_logits`. With `--with_postprocessing` the input is `image`, uint8 of the same shape, and the outputs are
results at its size: `segmentation` (semantic); `scores`, `labels`, `masks` (instance, a fixed number); `segmentation`,
`scores`, `labels` (panoptic: segment i is query i - 1, whose score is not 0). Class names, normalisation, sizes and
thresholds are in the metadata of ONNX files; image processor and configuration are saved beside each file, as
`NAME_processor/`. With them `mpformer predict`, `evaluate`, `compare` and `serve` take the file for a model.

In .onnx and .pt2 files the batch size is dynamic. Image sides may be any multiple of 32, with Swin and SwinV2 from two
windows on (256 for windows of 7); of backbones that cannot be traced so, only the given ones: the command says it.
Other files take one image of the given size. Each file is compared with the model before it is put in place, except
Core ML's, which runs on a Mac only. `--precision fp16` halves the weights of most operators, for GPUs; `int8` quantises
convolutions and matrix products, with ranges of the `--photos`. With `--photos`, the results of the file are compared
with those of the model on up to 32 of them, from photo to segments, as `mpformer compare` does. Files with
post-processing and of Core ML are not compared so.
"""

import logging
import sys
import warnings

from ..data.arguments import ModelDataArguments
from ..evaluation.arguments import ComparedModels
from ..export.arguments import ExportArguments
from ..utils.arguments import parse

MOST_PHOTOS = 32  # that are compared


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    (args,) = parse([ExportArguments], argv, __doc__, "mpformer export")
    from ..export.exporter import export

    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mpformer_hf").setLevel(logging.INFO)
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    exported = export(args)
    size = sum(file.stat().st_size for file in (args.file, *args.file.rglob("*"))) / 2**20
    smallest, difference = exported.smallest_side, exported.difference
    images = f"multiples of 32 from {smallest}" if smallest else f"only {args.height}x{args.width}"
    told = "not compared" if difference is None else f"largest difference of an output {difference:.1e}"
    print(f"{args.model} -> {args.file} ({size:.1f} MiB, image sides: {images}): {told}")
    if args.photos and args.is_compared:
        from ..evaluation.comparison import compare

        data = ModelDataArguments(dataset_name=str(args.photos), max_eval_samples=MOST_PHOTOS)
        compare(data, ComparedModels(models=[args.model, str(args.file)], no_labels=True, device="cpu"), {})
