"""Segment a folder of images, a glob, a video or a dataset, and write the results.

mpformer predict outputs/yours photos/ predictions
mpformer predict outputs/yours "photos/*.jpg" predictions --write overlays --flip --scales 1 0.75 1.25
mpformer predict outputs/yours drive.mp4 predictions --every 5 --write video
mpformer predict outputs/yours you/your-dataset predictions --split test
accelerate launch --num_processes 4 -m mpformer_hf predict outputs/yours photos/ predictions
mpformer predict outputs/yours you/your-dataset predictions --shard 3/16

Writes overlays/NAME.png (pictures), for semantic segmentation maps/NAME.png (class ids, with 16 bits for more than 256
classes), results/NAME.json (segments; for instances with masks as RLE) and the chosen formats: by default for instances
COCO's results list, predictions.json, with `images.json` for the numbers of images (give `--threshold 0` for AP); for
panoptic results a COCO panoptic file, predictions.json, with PNG maps in predictions/. An interrupted run resumes: an
image is complete when its results/NAME.json, which is written last, is of the same pixels, and the folder of the same
model and settings. Images that cannot be read are skipped and listed; the exit code is 1 if no image was segmented.
`--shard 3/16` segments the third of 16 parts of the images; jobs of different shards may run at the same time and write
to one folder. When they have ended, the same command without `--shard` finds complete images and writes the files of
all images.
"""

from ..inference.arguments import InferenceOptions, LoadingArguments, PredictionArguments
from ..utils.arguments import parse


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    classes = [LoadingArguments, PredictionArguments, InferenceOptions]
    loading, args, options = parse(classes, argv, __doc__, "mpformer predict")
    from ..inference.prediction import predict

    predict(loading, args, options)
