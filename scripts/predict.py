"""Segment a folder of images, a glob, a video or a dataset, and write what was found.

python scripts/predict.py outputs/yours photos/ predictions
python scripts/predict.py outputs/yours "photos/*.jpg" predictions --write overlays --flip --scales 1 0.75 1.25
python scripts/predict.py outputs/yours drive.mp4 predictions --every 5
python scripts/predict.py outputs/yours you/your-dataset predictions --split test
accelerate launch --num_processes 4 scripts/predict.py outputs/yours photos/ predictions

Writes overlays/NAME.png (pictures to look at), maps/NAME.png (semantic: class ids, 255 = void; panoptic: RGB with
segment id = R + 256 G + 65536 B, 0 = nothing) and results/NAME.json (segments; for instances with masks as RLE), then
predictions.json: COCO's results list for instances, COCO's panoptic annotation for panoptic. An image counts as done
when its results/NAME.json is there, which is written last: a run that was broken off goes on where it was. Images that
cannot be read are named in one line each and left out.
"""

import argparse
import glob
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # as a script: find the package `mpformer_hf`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor, draw_segmentation
from mpformer_hf.boxes import mask_boxes
from mpformer_hf.images import read_image, to_rgb
from mpformer_hf.inference import Options, Predictor
from mpformer_hf.label_maps import encode_rle
from training.checkpoints import write_json

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
PICTURES = ("overlays", "maps")


@dataclass
class Item:
    """One image: a unique name without suffix, and how to read it."""

    name: str
    read: object


# --- What to segment ---


def list_items(source: str, split: str, every: int) -> Iterator[Item]:
    """Images of a folder, file, glob, video or dataset, in a fixed order.

    Raises:
        ValueError: there are none.
    """
    path = Path(source)
    if path.suffix.lower() in VIDEOS and path.is_file():
        yield from video_frames(path, every)
        return
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
        root = path
    elif path.is_file():
        files, root = [path], path.parent
    else:
        files = sorted(Path(file) for file in glob.glob(source, recursive=True) if Path(file).is_file())
        root = None
    if files:
        names = unique_names(files, root)
        for file, name in zip(files[::every], names[::every], strict=True):
            yield Item(name, lambda file=file: read_image(file))
    elif path.is_dir() and not list(path.rglob("*.parquet")):
        raise ValueError(f"{source} holds no image ({', '.join(IMAGES)}).")
    elif glob.has_magic(source):
        raise ValueError(f"No file fits {source}.")
    else:
        yield from dataset_images(source, split, every)


def unique_names(files: list[Path], root: Path | None) -> list[str]:
    """Names for the outputs: the path below `root` with `_` for `/`, with the suffix where names would be equal."""
    parts = [file.relative_to(root) if root else Path(file.name) for file in files]
    short = ["_".join(part.with_suffix("").parts) for part in parts]
    counts = Counter(short)
    names = [name if counts[name] == 1 else "_".join(part.parts) for name, part in zip(short, parts, strict=True)]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name}-{index}" for index, name in enumerate(names)]


def video_frames(path: Path, every: int) -> Iterator[Item]:
    """Frames of a video.

    Raises:
        ValueError: the package that reads videos is missing, or the file is no video.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError('Videos need PyAV: pip install "mpformer-hf[video]".') from error
    try:
        with av.open(str(path)) as video:
            for index, frame in enumerate(video.decode(video=0)):
                if index % every == 0:
                    image = frame.to_image()
                    yield Item(f"{path.stem}_{index:06d}", lambda image=image: to_rgb(image))
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is no video that can be read: {error}") from error


def dataset_images(source: str, split: str, every: int) -> Iterator[Item]:
    """Images of a dataset of the Hub or a local folder in its layout."""
    from training.arguments import DataArguments
    from training.data import load_split

    rows, column = load_split(DataArguments(dataset_name=source), split)
    for index in range(0, len(rows), every):
        yield Item(f"{split}_{index:06d}", lambda index=index: to_rgb(rows[index][column]))


# --- What to write ---


def write_image(image: Image.Image, file: Path) -> None:
    """Write aside, then rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".writing")
    image.save(aside, format="PNG")
    aside.replace(file)


def label_map(result, task: str) -> Image.Image:
    """The map of a semantic or panoptic result as a picture, see the top of this file."""
    if task == "semantic":
        labels = result.numpy()
        return Image.fromarray(labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16))
    ids = result["segmentation"].numpy().astype(np.uint32)
    return Image.fromarray(np.stack((ids & 255, ids >> 8 & 255, ids >> 16 & 255), -1).astype(np.uint8))


def describe(result, task: str, id2label: dict[int, str]) -> list[dict]:
    """Segments of a result as JSON: class, score, area, box (x, y, width, height), and for instances the RLE."""
    if task == "semantic":
        labels, areas = result.unique(return_counts=True)
        rows = zip(labels.tolist(), areas.tolist(), strict=True)
        return [{"label_id": i, "label": id2label[i], "area": area} for i, area in rows]
    maps, segments = result["segmentation"], result["segments_info"]
    masks = maps if task == "instance" else torch.stack([maps == s["id"] for s in segments]) if segments else maps[:0]
    boxes = mask_boxes(masks).tolist() if len(segments) else []
    rows = []
    for segment, mask, (x0, y0, x1, y1) in zip(segments, masks, boxes, strict=True):
        row = {
            "id": segment["id"],
            "label_id": segment["label_id"],
            "label": id2label[segment["label_id"]],
            "score": segment["score"],
            "area": int(mask.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        rows.append(row | ({"segmentation": encode_rle(mask.numpy())} if task == "instance" else {}))
    return rows


def write_result(output: Path, name: str, image: Tensor, result, task: str, id2label: dict, kinds: list[str]) -> None:
    """Everything of one image; what says that it is done comes last."""
    if "overlays" in kinds:
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        write_image(draw_segmentation(photo, result, id2label), output / "overlays" / f"{name}.png")
    if "maps" in kinds and task != "instance":
        write_image(label_map(result, task), output / "maps" / f"{name}.png")
    size = {"height": image.shape[1], "width": image.shape[2]}
    content = {"name": name, **size, "task": task, "segments": describe(result, task, id2label)}
    write_json(content, output / "results" / f"{name}.json", indent=None)


def collect(output: Path, names: list[str], task: str, id2label: dict[int, str], stuff: set[int]) -> Path | None:
    """One file of all results, as COCO's tools read it; None for semantic maps, which have no such format."""
    if task == "semantic":
        return None
    found = [json.loads((output / "results" / f"{name}.json").read_text()) for name in names]
    images = [
        {"id": index, "file_name": f"{image['name']}.png", "height": image["height"], "width": image["width"]}
        for index, image in enumerate(found)
    ]
    categories = [{"id": i, "name": name, "isthing": int(i not in stuff)} for i, name in id2label.items()]
    if task == "instance":
        content = [
            {"image_id": index, "category_id": s["label_id"], **{k: s[k] for k in ("segmentation", "score", "bbox")}}
            for index, image in enumerate(found)
            for s in image["segments"]
        ]
        write_json({"images": images, "categories": categories}, output / "images.json", indent=None)
    else:
        annotations = [
            {
                "image_id": index,
                "file_name": f"{image['name']}.png",
                "segments_info": [
                    {"category_id": s["label_id"], "iscrowd": 0, **{k: s[k] for k in ("id", "area", "bbox", "score")}}
                    for s in image["segments"]
                ],
            }
            for index, image in enumerate(found)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(content, output / "predictions.json", indent=None)
    return output / "predictions.json"


# --- The run ---


def batches(items: Iterator[Item], size: int, failed: list[str]) -> Iterator[list[tuple[str, Tensor]]]:
    """Images of equal size together, up to `size` of them; what cannot be read is named and left out."""
    waiting: dict[tuple, list] = {}
    for item in items:
        try:
            image = item.read()
        except ValueError as error:
            report(failed, item.name, error)
            continue
        group = waiting.setdefault(tuple(image.shape), [])
        group.append((item.name, image))
        if len(group) == size or sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(tuple(image.shape) if len(group) == size else next(iter(waiting)))
    yield from waiting.values()


def report(failed: list[str], name: str, error: Exception) -> None:
    """Name what was left out, in one line."""
    failed.append(name)
    tqdm.write(f"left out {name}: {error}", file=sys.stderr)


def load(name: str) -> tuple[MPFormerForUniversalSegmentation, MPFormerImageProcessor]:
    """A saved MP-Former or Mask2Former with its processor.

    Raises:
        ValueError: there is none.
    """
    try:
        return (
            MPFormerForUniversalSegmentation.from_pretrained(name).eval(),
            MPFormerImageProcessor.from_pretrained(name),
        )
    except OSError as error:
        raise ValueError(f"Cannot load {name}: {str(error).splitlines()[0]}") from error


def predict(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: an argument cannot be used.
    """
    if args.every < 1 or args.batch_size < 1:
        raise ValueError("--every and --batch_size must be at least 1.")
    options = Options(args.flip, args.scales, args.window, args.overlap, args.threshold)
    state = Accelerator()
    model, processor = load(args.model)
    predictor = Predictor(model.to(state.device), processor, args.task, options)
    task, id2label = predictor.task, model.config.id2label
    settings = {"model": args.model, "source": args.source, "split": args.split, "write": sorted(args.write)}
    settings |= {"task": task, **vars(options), "scales": list(options.scales)}
    check_output(args.output, settings)
    state.wait_for_everyone()  # before anyone writes
    if state.is_main_process:
        write_json(settings, args.output / "settings.json")
    state.wait_for_everyone()

    names, failed = [], []

    def mine() -> Iterator[Item]:
        for index, item in enumerate(list_items(args.source, args.split, args.every)):
            names.append(item.name)
            done = (args.output / "results" / f"{item.name}.json").exists()
            if index % state.num_processes == state.process_index and not done:
                yield item

    with tqdm(unit="image", disable=not state.is_main_process) as bar:
        for batch in batches(mine(), args.batch_size, failed):
            group, images = zip(*batch, strict=True)
            try:
                results = predictor(list(images))
            except ValueError as error:
                for name in group:
                    report(failed, name, error)
                continue
            for name, image, result in zip(group, images, results, strict=True):
                write_result(args.output, name, image, result, task, id2label, args.write)
            bar.update(len(batch))
    state.wait_for_everyone()
    if state.is_main_process:
        done = [name for name in names if (args.output / "results" / f"{name}.json").exists()]
        file = collect(args.output, done, task, id2label, set(processor.label_ids_to_fuse))
        print(f"{len(done)} of {len(names)} images are in {args.output}")
        if file:
            print(f"all of them together: {file}")


def check_output(output: Path, settings: dict) -> None:
    """
    Raises:
        ValueError: the folder's results were made with something else, or it is no folder of results.
    """
    file = output / "settings.json"
    if file.exists():
        before = json.loads(file.read_text())
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise ValueError(f"{output} was made with another {', '.join(changed)}; name another folder.")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not empty and holds no predictions; name another folder.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="saved MP-Former or Mask2Former: folder or Hub name")
    parser.add_argument("source", help="folder, image, glob, video, or dataset (Hub name or local folder)")
    parser.add_argument("output", type=Path, help="new folder, or one to go on with")
    parser.add_argument("--task", choices=["semantic", "instance", "panoptic"], help="default: the processor's")
    parser.add_argument("--write", nargs="+", choices=PICTURES, default=PICTURES, help="pictures beside the results")
    parser.add_argument("--threshold", type=float, help="smallest score; default: the processor's")
    parser.add_argument("--flip", action="store_true", help="also look at the mirrored image")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0], help="sizes to look at, relative")
    parser.add_argument("--window", type=int, help="side of sliding windows in pixels; default: no windows")
    parser.add_argument("--overlap", type=float, default=0.25, help="share of a window that the next one sees too")
    parser.add_argument("--batch_size", type=int, default=4, help="images of equal size at once")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image or frame only")
    parser.add_argument("--split", default="test", help="split of a dataset")
    args = parser.parse_args(argv)
    try:
        predict(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
