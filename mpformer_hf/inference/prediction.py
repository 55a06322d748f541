"""`mpformer predict`: segment all images of a source, and write the results."""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from ..data.coco_ids import ImageIds
from ..data.writers.format import Category, ImageRecord
from ..data.writers.registry import DEFAULTS, make_writers
from ..utils.files import VIDEO_SUFFIXES, write_atomically
from ..utils.progress import progress
from ..utils.threads import in_threads
from .arguments import InferenceOptions, LoadingArguments, PredictionArguments
from .loading import fingerprint
from .predictor import Predictor
from .result_files import finish, is_complete, write_result
from .shards import check_output, claim_output, parse_shard
from .sources import SourceImage, list_images
from .video import frame_rate, write_video


def batches_by_size(
    images: Iterator[SourceImage], size: int, output: Path, pictures: list[str], writers: list, skipped: list[str]
) -> Iterator[list[tuple[ImageRecord, Tensor]]]:
    """Batches of up to `size` images of equal size. Images that cannot be read are skipped; those whose result and
    pictures are complete are left out."""

    def read(image: SourceImage) -> tuple[ImageRecord, Tensor] | None:
        """An image; None if its result is complete."""
        pixels = image.read()
        record = ImageRecord(image.image_id, image.file_name, image.name, *pixels.shape[1:])
        return None if is_complete(output, record, pixels, pictures, writers) else (record, pixels)

    waiting: dict[tuple, list] = {}
    for image, reading in in_threads(read, images):
        try:
            found = reading.result()
        except ValueError as error:
            skip(skipped, image.name, error)
            continue
        if found is None:
            continue
        record, pixels = found
        group = waiting.setdefault(tuple(pixels.shape), [])
        group.append((record, pixels))
        if len(group) == size or sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(tuple(pixels.shape) if len(group) == size else next(iter(waiting)))
    yield from waiting.values()


def skip(skipped: list[str], name: str, error: Exception | str) -> None:
    """Report an image that is skipped."""
    skipped.append(name)
    tqdm.write(f"skipped {name}: {error}", file=sys.stderr)


def predict(loading: LoadingArguments, args: PredictionArguments, options: InferenceOptions) -> None:
    """Segment all images of the source that have no result of this model and these settings.

    Raises:
        ValueError: an argument is invalid, or no image could be segmented.
    """
    shard, shards = parse_shard(args.shard)
    if shards > 1 and "video" in args.write:
        raise ValueError("--write video needs all frames: give it without --shard.")
    rate = None
    if "video" in args.write:
        if Path(args.source).suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"--write video is for videos ({', '.join(VIDEO_SUFFIXES)}), not for {args.source}.")
        rate = frame_rate(Path(args.source)) / args.every
    state = Accelerator()
    if loading.device is None:
        loading = replace(loading, device=str(state.device))
    predictor = Predictor.from_arguments(loading, args.task, options)
    processor, task, id2label = predictor.processor, predictor.task, predictor.model.config.id2label
    if task == "panoptic" and not processor.label_ids_to_fuse:
        print("note: the processor names no stuff classes (label_ids_to_fuse); stuff is not fused", file=sys.stderr)
    if processor.palette is not None and len(processor.palette) != len(id2label):
        raise ValueError(f"The processor's palette has {len(processor.palette)} colours for {len(id2label)} classes.")
    name = args.source if "://" in args.source else os.path.normpath(args.source)
    settings: dict = {
        "weights": fingerprint(loading.model, loading.revision),
        "dtype": loading.dtype,
        "source": name,
        "split": args.split or "test",
    }
    formats = DEFAULTS[task] if args.formats is None else args.formats
    image_ids = ImageIds(args.image_ids) if args.image_ids else None
    settings |= {"write": sorted(args.write), "formats": sorted(formats), "polygons": args.polygons, "task": task}
    settings |= {**asdict(options), "scales": list(options.scales)}
    ids = processor.category_ids or list(range(len(id2label)))
    stuff: set[int] = set(processor.label_ids_to_fuse)
    categories = [Category(category, id2label[i], i not in stuff) for i, category in enumerate(ids)]
    threshold = processor.threshold if options.threshold is None else options.threshold
    writers = make_writers(formats, args.output, task, categories, threshold, args.polygons)
    check_output(args.output, settings, shards)
    state.wait_for_everyone()  # all processes have checked the folder before one writes
    lock = claim_output(args.output, settings, shard, shards) if state.is_main_process else None
    state.wait_for_everyone()

    source = list_images(args.source, args.split, args.every, args.output)
    identities: dict[str, tuple] = {}  # id and file name of each image, by name
    skipped: list[str] = []
    empty: list[str] = []  # images of this run in which nothing was found
    taken: set[int | None] = set()  # ids of `image_ids` that images have
    pictures = [kind for kind in args.write if kind == "overlays" or (kind == "maps" and task == "semantic")]
    if rate is not None and "overlays" not in pictures:
        pictures.append("overlays")  # what the video is made of

    def images_of_process() -> Iterator[SourceImage]:
        own = islice(source, shard, None, shards)
        total = len(range(shard, len(source), shards)) if isinstance(source, list) else None
        for index, image in enumerate(progress(own, "predict", total, unit="image", disable=not state.is_main_process)):
            if image_ids is not None:
                image.image_id = image_ids.find(image.file_name)
                image.image_id = None if image.image_id in taken else image.image_id
                taken.add(image.image_id)
            identities[image.name] = (image.image_id, image.file_name)
            if image.image_id is None:
                if state.is_main_process:
                    skip(skipped, image.name, f"{args.image_ids} has no image of this name, or its id is taken")
            elif index % state.num_processes == state.process_index:
                yield image

    def results() -> Iterator[tuple[ImageRecord, Tensor, Any]]:
        for batch in batches_by_size(images_of_process(), args.batch_size, args.output, pictures, writers, skipped):
            records, images = zip(*batch, strict=True)
            try:
                yield from zip(records, images, predictor.predict(list(images)), strict=True)
            except ValueError as error:
                for record in records:
                    skip(skipped, record.name, error)

    def write(found: tuple[ImageRecord, Tensor, Any]) -> None:
        write_result(args.output, *found, task, id2label, processor.palette, pictures, writers)
        if not found[0].segments:
            empty.append(found[0].name)

    for _, writing in in_threads(write, results(), threads=1):
        writing.result()
    unread, empty = set(gather_object(skipped)), gather_object(empty)  # also waits for all processes
    if state.is_main_process:
        complete = {name: identity for name, identity in identities.items() if name not in unread}
        files = finish(args.output, complete, writers) if shards == 1 else []
        if rate is not None and complete:
            with write_atomically(args.output / "overlays.mp4") as temporary:
                write_video([args.output / "overlays" / f"{name}.png" for name in complete], temporary, rate)
            print(f"video: {args.output / 'overlays.mp4'}")
        of_shard = f" of shard {args.shard}" if shards > 1 else ""
        print(f"{len(complete)} of {len(identities)} images{of_shard} are in {args.output}")
        if empty:
            print(
                f"nothing was found in {len(empty)} of them, such as {empty[0]}, above the threshold of {threshold:g}"
            )
        if of_shard and writers:
            print("files of all images: run the same command without --shard when all shards have ended")
        for file in files:
            print(f"results of all images: {file}")
        if lock is not None:
            lock.release()
    state.end_training()  # ends the process group: a process that exits with one may abort
    if state.is_main_process and not complete and (identities or shards == 1):  # a shard may have no image
        raise ValueError(f"None of the {len(identities)} images could be segmented.")
