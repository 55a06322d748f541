"""Convert checkpoints: official ones and Mask2Formers to MP-Former, MP-Former to a plain Mask2Former.

mpformer convert official model_final.pth converted --dataset coco-instance
mpformer convert official model_final.pkl converted --id2label names.json --task panoptic
mpformer convert from-mask2former facebook/mask2former-swin-tiny-coco-panoptic converted
mpformer convert to-mask2former outputs/yours plain

`official` reads detectron2 checkpoints of MP-Former and Mask2Former (R50, R101, Swin; image models, not video). Pickles
are read without executing code in them. `from-mask2former`: this package's classes load a Mask2Former as it is, but
Auto classes and `pipeline` make an MP-Former only of a converted one. `to-mask2former` writes a folder that
transformers loads without this package.
"""

from ..hub.arguments import ConversionArguments
from ..utils.arguments import parse


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    (args,) = parse([ConversionArguments], argv, __doc__, "mpformer convert")
    from ..hub.converting import convert

    convert(args)
