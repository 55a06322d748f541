"""Export the inference model for use without transformers: to ONNX or torch.export.

mpformer export outputs/yours model.onnx
mpformer export outputs/yours model.onnx --with_postprocessing
mpformer export outputs/yours model_int8.onnx --precision int8 --calibration photos/
mpformer export outputs/yours model.pt2 --height 512 --width 1024

Input: `pixel_values` `[batch, 3, height, width]`, as the image processor makes it. Outputs: `class_queries_logits` and
`masks_queries_logits`. With `--with_postprocessing` the input is `image`, uint8 of the same shape, and the outputs are
results at its size: `segmentation` (semantic); `scores`, `labels`, `masks` (instance, a fixed number); `segmentation`,
`scores`, `labels` (panoptic: segment i is query i - 1, whose score is not 0). Class names, normalisation, sizes and
thresholds are in the metadata of the file; the image processor is saved beside it, as `NAME_processor/`.

The batch size is dynamic. Image sides may be any multiple of 32, with Swin and SwinV2 from two windows on (256 for
windows of 7); of backbones that cannot be traced so, only the given ones: the command says it. The file is checked
against the model before it is put in place. ONNX needs `pip install "mpformer-hf[onnx]"`; the graph has no loops, so
that other runtimes read it (tested: onnxruntime, OpenVINO).
`--precision fp16` halves the weights of most operators, for GPUs; `int8` quantises convolutions and matrix products,
with ranges of the `--calibration` images. `scripts/run_onnx.py` is a program without torch. Not run here: `trtexec
--onnx=model.onnx --fp16 --optShapes=image:1x3x512x512`.
"""

import logging
import sys
import warnings

from ..export.arguments import ExportArguments
from ..utils.arguments import parse


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
    difference, smallest = export(
        args.model,
        args.file,
        args.height,
        args.width,
        args.with_postprocessing,
        args.detections,
        args.precision,
        args.calibration,
    )
    size = args.file.stat().st_size / 2**20
    images = f"multiples of 32 from {smallest}" if smallest else f"only {args.height}x{args.width}"
    print(f"{args.model} -> {args.file} ({size:.1f} MiB, image sides: {images}): ", end="")
    print(f"largest difference of an output {difference:.1e}")
