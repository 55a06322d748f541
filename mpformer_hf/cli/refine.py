"""Make masks of boxes, or better masks of rough ones, with the pilot of a trained model.

mpformer refine outputs/yours boxes.json photos/ refined
mpformer refine outputs/yours annotations.json photos/ refined --boxes_only --rounds 2 --overlays
mpformer refine outputs/yours yolo/labels/train yolo/images/train refined

ANNOTATIONS is a COCO file, or a folder of YOLO's text files (lines `class x y width height`, or polygons). Writes
refined/annotations.json, a COCO file: the same annotations with masks (`segmentation` as RLE, `area` and `bbox` of the
mask), `score`, how sure the model is (see `mpformer calibrate`), and `predicted_category`, the class that it believes
in. An annotation with a mask is refined from its mask, one without from its box. Crowds are left as they are, and so is
an annotation without a usable box or mask, which is listed. Categories are the model's classes of the same name; the
class of others counts as unknown, and all classes are tried. `--overlays` writes pictures of what was given (left) and
refined (right). An interrupted run resumes. A model refines the kinds of masks that its training had: see
`pilot_noise`. For YOLO's files also writes refined/labels, the same files with polygons, and refined/data.yaml. Their
classes are named by data.yaml or classes.txt, else they are the model's. They need `pip install "mpformer-hf[yolo]"`.
"""

from ..inference.arguments import LoadingArguments
from ..prompts.arguments import RefinementArguments
from ..utils.arguments import parse


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    loading, args = parse([LoadingArguments, RefinementArguments], argv, __doc__, "mpformer refine")
    from ..prompts.refining import refine

    refine(loading, args)
