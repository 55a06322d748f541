"""`mpformer check`: what is in a dataset, with pictures, before anyone trains on it."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..data.arguments import CheckArguments, DataArguments
from ..data.census import ended, take_census
from ..data.opening import open_dataset
from ..data.splits import warn_of_common_images
from ..inference.drawing import draw_segmentation
from ..utils.files import write_new_folder
from .drawing import drawn_reference


class Warnings(logging.Handler):
    """Counts what is logged."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def check(data: DataArguments, args: CheckArguments) -> None:
    """Print a table of each split and what looks wrong, and draw the first images.

    Raises:
        ValueError: a split cannot be read or has no object; the folder of the pictures is not empty.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    splits, labels, doubts = {}, None, 0
    warned = Warnings(logging.WARNING)
    logging.getLogger("mpformer_hf").addHandler(warned)
    for name in args.splits:
        splits[name] = split = open_dataset(replace(data, streaming=False), name, data.max_eval_samples, labels)
        labels = split.labels
        census = take_census(split, data.task, args.sample)
        print(f"{data.dataset_name}, {name}", *(f"  {line}" for line in census.table()), sep="\n")
        for doubt in census.doubts():
            doubts += 1
            print(f"  look: {ended(doubt)}")
    for first, other in zip(splits.values(), list(splits.values())[1:], strict=False):
        warn_of_common_images(first, other)
    logging.getLogger("mpformer_hf").removeHandler(warned)
    doubts += warned.count
    print(f"{doubts} thing{'' if doubts == 1 else 's'} to look at" if doubts else "nothing looks wrong")
    if not args.output:
        return
    with write_new_folder(Path(args.output)) as folder:
        for name, split in splits.items():
            (folder / name).mkdir()
            for index in range(min(args.num_pictures, len(split))):
                image, segments = split[index]
                photo = Image.fromarray(image.permute(1, 2, 0).numpy())
                reference = drawn_reference(segments, data.task, split.labels.things)
                drawn = draw_segmentation(photo, reference, split.labels.id2label, palette=split.labels.palette)
                drawn.save(folder / name / f"{index:04d}.png")
    print(f"pictures: {args.output}")
