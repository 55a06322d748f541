"""Segment a folder of images, a glob, a video or a dataset, and write the results.

mpformer predict outputs/yours photos/ predictions
mpformer predict outputs/yours "photos/*.jpg" predictions --write overlays --flip --scales 1 0.75 1.25
mpformer predict outputs/yours drive.mp4 predictions --every 5 --write video
mpformer predict outputs/yours you/your-dataset predictions --split test
accelerate launch --num_processes 4 -m mpformer_hf.cli.predict outputs/yours photos/ predictions
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

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from ..data.coco_ids import read_image_ids
from ..data.writers.format import Category, ImageRecord
from ..data.writers.registry import DEFAULTS, FORMATS
from ..inference.loading import fingerprint
from ..inference.predictor import InferenceOptions, Predictor
from ..inference.result_files import finish, is_complete, write_result
from ..inference.shards import check_output, claim_output, parse_shard
from ..inference.sources import PICTURES, SourceImage, list_images
from ..inference.video import frame_rate, write_video
from ..model.image_processing_mpformer import TASKS
from ..utils.command import run_command
from ..utils.files import VIDEO_SUFFIXES, write_atomically
from ..utils.progress import progress


def batches_by_size(
    images: Iterator[SourceImage], size: int, output: Path, pictures: list[str], writers: list, skipped: list[str]
) -> Iterator[list[tuple[ImageRecord, Tensor]]]:
    """Batches of up to `size` images of equal size. Images that cannot be read are skipped; those whose result and
    pictures are complete are left out."""
    waiting: dict[tuple, list] = {}
    for image in images:
        try:
            pixels = image.read()
        except ValueError as error:
            skip(skipped, image.name, error)
            continue
        record = ImageRecord(image.image_id, image.file_name, image.name, *pixels.shape[1:])
        if is_complete(output, record, pixels, pictures, writers):
            continue
        group = waiting.setdefault(tuple(pixels.shape), [])
        group.append((record, pixels))
        if len(group) == size or sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(tuple(pixels.shape) if len(group) == size else next(iter(waiting)))
    yield from waiting.values()


def skip(skipped: list[str], name: str, error: Exception | str) -> None:
    """Report an image that is skipped."""
    skipped.append(name)
    tqdm.write(f"skipped {name}: {error}", file=sys.stderr)


def predict(args: argparse.Namespace) -> None:
    """Segment all images of the source that have no result of this model and these settings.

    Raises:
        ValueError: an argument is invalid, or no image could be segmented.
    """
    if args.every < 1 or args.batch_size < 1:
        raise ValueError("--every and --batch_size must be at least 1.")
    options = InferenceOptions(args.flip, args.scales, args.window, args.overlap, args.threshold)
    shard, shards = parse_shard(args.shard)
    if shards > 1 and "video" in args.write:
        raise ValueError("--write video needs all frames: give it without --shard.")
    rate = None
    if "video" in args.write:
        if Path(args.source).suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"--write video is for videos ({', '.join(VIDEO_SUFFIXES)}), not for {args.source}.")
        rate = frame_rate(Path(args.source)) / args.every
    state = Accelerator()
    predictor = Predictor.from_pretrained(args.model, args.task, options, state.device)
    processor, task, id2label = predictor.processor, predictor.task, predictor.model.config.id2label
    if task == "panoptic" and not processor.label_ids_to_fuse:
        print("note: the processor names no stuff classes (label_ids_to_fuse); stuff is not fused", file=sys.stderr)
    if processor.palette is not None and len(processor.palette) != len(id2label):
        raise ValueError(f"The processor's palette has {len(processor.palette)} colours for {len(id2label)} classes.")
    name = args.source if "://" in args.source else os.path.normpath(args.source)
    settings = {"weights": fingerprint(args.model), "source": name, "split": args.split}
    formats = DEFAULTS[task] if args.formats is None else args.formats
    image_ids = read_image_ids(args.image_ids) if args.image_ids else None
    settings |= {"write": sorted(args.write), "formats": sorted(formats), "task": task}
    settings |= {**asdict(options), "scales": list(options.scales)}
    ids = processor.category_ids or list(range(len(id2label)))
    stuff: set[int] = set(processor.label_ids_to_fuse)
    categories = [Category(category, id2label[i], i not in stuff) for i, category in enumerate(ids)]
    threshold = processor.threshold if options.threshold is None else options.threshold
    writers = [FORMATS[name](args.output, task, categories, threshold) for name in formats]
    check_output(args.output, settings, shards)
    state.wait_for_everyone()  # all processes have checked the folder before one writes
    lock = claim_output(args.output, settings, shard, shards) if state.is_main_process else None
    state.wait_for_everyone()

    source = list_images(args.source, args.split, args.every, args.output)
    identities: dict[str, tuple] = {}  # id and file name of each image, by name
    skipped: list[str] = []
    pictures = [kind for kind in args.write if kind == "overlays" or (kind == "maps" and task == "semantic")]
    if rate is not None and "overlays" not in pictures:
        pictures.append("overlays")  # what the video is made of

    def images_of_process() -> Iterator[SourceImage]:
        own = islice(source, shard, None, shards)
        total = len(range(shard, len(source), shards)) if isinstance(source, list) else None
        for index, image in enumerate(progress(own, "predict", total, unit="image", disable=not state.is_main_process)):
            if image_ids is not None:
                image.image_id = image_ids.get(Path(image.file_name).name)
            identities[image.name] = (image.image_id, image.file_name)
            if image.image_id is None:
                if state.is_main_process:
                    skip(skipped, image.name, f"{args.image_ids} has no image of this name")
            elif index % state.num_processes == state.process_index:
                yield image

    for batch in batches_by_size(images_of_process(), args.batch_size, args.output, pictures, writers, skipped):
        records, images = zip(*batch, strict=True)
        try:
            results = predictor(list(images))
        except ValueError as error:
            for record in records:
                skip(skipped, record.name, error)
            continue
        for record, image, result in zip(records, images, results, strict=True):
            write_result(args.output, record, image, result, task, id2label, processor.palette, pictures, writers)
    unread = set(gather_object(skipped))  # also waits for all processes
    if state.is_main_process:
        complete = {name: identity for name, identity in identities.items() if name not in unread}
        files = finish(args.output, complete, writers) if shards == 1 else []
        if rate is not None and complete:
            with write_atomically(args.output / "overlays.mp4") as temporary:
                write_video([args.output / "overlays" / f"{name}.png" for name in complete], temporary, rate)
            print(f"video: {args.output / 'overlays.mp4'}")
        of_shard = f" of shard {args.shard}" if shards > 1 else ""
        print(f"{len(complete)} of {len(identities)} images{of_shard} are in {args.output}")
        if of_shard and writers:
            print("files of all images: run the same command without --shard when all shards have ended")
        for file in files:
            print(f"results of all images: {file}")
        if lock is not None:
            lock.release()
    state.end_training()  # ends the process group: a process that exits with one may abort
    if state.is_main_process and not complete and (identities or shards == 1):  # a shard may have no image
        raise ValueError(f"None of the {len(identities)} images could be segmented.")


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: an argument is invalid.
    """
    parser = argparse.ArgumentParser(
        "mpformer predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="saved MP-Former or Mask2Former: folder or Hub name")
    parser.add_argument("source", help="folder, image, glob, video, or dataset (Hub name, or folder of parquet files)")
    parser.add_argument("output", type=Path, help="new folder, or the folder of a run to resume")
    parser.add_argument("--task", choices=TASKS, help="default: the processor's")
    parser.add_argument(
        "--write",
        nargs="+",
        choices=(*PICTURES, "video"),
        default=PICTURES,
        help="pictures to write; video: overlays of a video as overlays.mp4",
    )
    parser.add_argument(
        "--formats", nargs="*", choices=list(FORMATS), help="files for official and annotation tools; default: COCO's"
    )
    parser.add_argument("--image_ids", type=Path, help="COCO JSON whose images give the ids by file name")
    parser.add_argument("--threshold", type=float, help="smallest score; default: the processor's")
    parser.add_argument("--batch_size", type=int, default=4, help="images of equal size per forward pass")
    parser.add_argument("--every", type=int, default=1, help="use every n-th image or frame only")
    parser.add_argument("--split", default="test", help="split of a dataset")
    parser.add_argument("--shard", help="segment a part of the images only: 3/16 is the third of 16 parts")
    advanced = parser.add_argument_group("test-time augmentation and large images")
    advanced.add_argument("--flip", action="store_true", help="also predict the mirrored image")
    advanced.add_argument("--scales", nargs="+", type=float, default=[1.0], help="relative image sizes to predict")
    advanced.add_argument("--window", type=int, help="side of sliding windows in pixels; default: no windows")
    advanced.add_argument("--overlap", type=float, default=0.25, help="overlap of neighbouring windows, as a share")
    predict(parser.parse_args(argv))


if __name__ == "__main__":  # for `accelerate launch -m`
    run_command(main)
