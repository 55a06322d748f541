"""Write a dataset as parquet files in the Hub's layout: once, so that training starts and reads faster and can stream.

mpformer prepare data/coco data/coco_instance --task instance
mpformer prepare data/own data/own_prepared --task semantic --splits train val
mpformer prepare you/your-dataset data/prepared --task panoptic --splits train
mpformer prepare data/labelme data/labelme_prepared --task instance --validation_share 0.1

Images, their ids and names, and the ids of categories are kept; labels become PNG maps or RLE. What is invalid is named
before anything is written in place. For official scores evaluate on the original: Cityscapes' AP needs its instanceIds.
Needs `pip install "mpformer-hf[data]"`.
"""

from ..data.arguments import PreparationArguments
from ..utils.arguments import parse


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    (args,) = parse([PreparationArguments], argv, __doc__, "mpformer prepare")
    from ..data.preparing import prepare

    prepare(args)
