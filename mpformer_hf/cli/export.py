"""Export the inference model for use without transformers: to ONNX or torch.export.

mpformer export outputs/yours model.onnx
mpformer export outputs/yours model.pt2 --height 512 --width 1024

Input: `pixel_values` `[batch, 3, height, width]`, as the image processor makes it. Outputs: `class_queries_logits` and
`masks_queries_logits`. The batch size is dynamic; image sides may be any multiple of 32, unless the backbone cannot be
traced so (Swin, SwinV2 and others; the command says it). The file is checked against the model before it is put in
place. ONNX needs `pip install "mpformer-hf[onnx]"`.
"""

import argparse
import logging
import warnings
from pathlib import Path

from ..exporting import export


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the exported model differs from the original.
    """
    parser = argparse.ArgumentParser(
        "mpformer export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="saved MP-Former or Mask2Former: folder or Hub name")
    parser.add_argument("file", type=Path, help="new file, .onnx or .pt2")
    parser.add_argument("--height", type=int, default=512, help="height of the traced images")
    parser.add_argument("--width", type=int, default=512, help="width of the traced images")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    difference, dynamic = export(args.model, args.file, args.height, args.width)
    size = args.file.stat().st_size / 2**20
    images = "any multiple of 32" if dynamic else f"only {args.height}x{args.width}"
    print(f"{args.model} -> {args.file} ({size:.1f} MiB, image sides: {images}): ", end="")
    print(f"largest difference of a logit {difference:.1e}")
