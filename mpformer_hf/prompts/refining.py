"""`mpformer refine`: masks of the boxes or rough masks of an annotation file."""

import contextlib
import hashlib
import json
import logging
import os
import sys
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image

from ..data.coco_masks import decode_segmentation
from ..data.layouts.coco import read_coco_json
from ..data.layouts.finding import FileFinder
from ..data.layouts.yolo_boxes import read_class_names, read_yolo_boxes
from ..data.result_names import result_names
from ..data.writers.format import Category, ImageRecord, PredictionFormat, describe_segments
from ..data.writers.registry import make_writers
from ..inference.arguments import LoadingArguments
from ..inference.drawing import draw_segmentation
from ..inference.loading import fingerprint
from ..inference.predictor import Predictor
from ..inference.result_files import image_hash, write_image
from ..inference.shards import refuse_changes
from ..model.boxes import mask_boxes
from ..model.cleaning import clean_mask
from ..model.image_sizes import size_of
from ..model.images import read_image, read_size
from ..model.label_maps import encode_rle
from ..model.prompting import UNKNOWN, boxes_to_masks, enlarge_boxes, prompt_note
from ..utils.files import check_inside, check_new_folder, lock_folder, read_json, reading_inside, write_json
from ..utils.progress import progress
from .arguments import RefinementArguments

LARGEST = 1e7  # pixels
LARGEST_CLASS = 10_000  # of YOLO
CHANGED = ("segmentation", "area", "bbox", "score", "predicted_category")


def prompt_of(annotation: dict, size: tuple[int, int], boxes_only: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask of an annotation, or its filled box, uint8 `[H, W]`; and the box that the refined mask may not leave,
    `[4]`, which is the full image where a mask is given.

    Raises:
        ValueError: it has neither.
    """
    mask = None if boxes_only else annotation.get("segmentation")
    if mask:
        decoded = torch.from_numpy(decode_segmentation(mask, *size))
        if decoded.any():
            return decoded.to(torch.uint8), torch.tensor([0.0, 0.0, size[1], size[0]])
    box = annotation.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(x, (int, float)) and abs(x) < LARGEST for x in box)
    ):
        raise ValueError("has neither a mask nor a box")
    x, y, width, height = box
    given = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32)
    return boxes_to_masks(given, size)[0], enlarge_boxes(given)[0]


def refined_fields(mask: torch.Tensor, info: dict, id2label: dict[int, str]) -> dict:
    """Fields of an annotation with a refined mask, bool `[H, W]`."""
    x0, y0, x1, y1 = mask_boxes(mask[None])[0].tolist()
    values = (
        encode_rle(mask.numpy()),
        int(mask.sum()),
        [x0, y0, x1 - x0, y1 - y0],
        info["score"],
        id2label[info["label_id"]],
    )
    return dict(zip(CHANGED, values, strict=True))


def refine_image(
    predictor: Predictor,
    image: torch.Tensor,
    annotations: list[dict],
    labels: dict[int, int],
    args: RefinementArguments,
) -> tuple[dict[str, dict], list[str], tuple[dict, dict] | None]:
    """Refined fields by annotation id; problems of annotations; and with `args.overlays` results before and after, for
    a picture. Masks are made one by one: those of a large image are large."""
    size, used, limits, problems = size_of(image), [], [], []
    for annotation in annotations:
        if annotation.get("iscrowd"):
            continue
        try:
            limits.append(prompt_of(annotation, size, args.boxes_only)[1])
            used.append(annotation)
        except ValueError as error:
            problems.append(f"annotation {annotation['id']}: {error}")
    classes = [labels.get(row["category_id"], UNKNOWN) for row in used]
    id2label, fields = predictor.model.config.id2label, {}
    before: dict = {"segmentation": [], "segments_info": []}
    after: dict = {"segmentation": [], "segments_info": []}
    if used:
        prompts = (prompt_of(annotation, size, args.boxes_only)[0] for annotation in used)
        encoded = predictor.encode(image, args.scale)
        found = predictor.refine_masks(encoded, prompts, classes, args.rounds, torch.stack(limits))
        for index, (annotation, (mask, info)) in enumerate(zip(used, found, strict=True)):
            if args.min_pixels:
                mask = torch.from_numpy(clean_mask(mask.numpy(), args.min_pixels))
            if mask.any():
                fields[str(annotation["id"])] = refined_fields(mask, info, id2label)
            else:
                problems.append(f"annotation {annotation['id']}: the model finds no pixel, so it is left as it is")
            if args.overlays:
                label = info["label_id"] if classes[index] == UNKNOWN else classes[index]
                before["segmentation"].append(prompt_of(annotation, size, args.boxes_only)[0].bool())
                before["segments_info"].append({"id": index, "label_id": label})
                after["segmentation"].append(mask)
                after["segments_info"].append({"id": index, **info})
    if not args.overlays:
        return fields, problems, None
    for side in (before, after):
        masks = side["segmentation"]
        side["segmentation"] = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
    return fields, problems, (before, after)


def write_overlay(image: torch.Tensor, before: dict, after: dict, predictor: Predictor, path: Path) -> None:
    """Write the picture of what was given and what was refined."""
    photo, id2label = Image.fromarray(image.permute(1, 2, 0).numpy()), predictor.model.config.id2label
    options = {"legend": False, "palette": predictor.processor.palette}
    left, right = (draw_segmentation(photo, result, id2label, **options) for result in (before, after))
    pair = Image.new("RGB", (2 * left.width + 8, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 8, 0))
    write_image(pair, path)


def read_sized_image(file: Path, row: dict) -> torch.Tensor:
    """An image, uint8 `[3, H, W]`.

    Raises:
        ValueError: it cannot be read, or is not of the size of its row in the file.
    """
    try:
        image = read_image(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}.") from error
    stated, size = (row.get("height"), row.get("width")), size_of(image)
    if None not in stated and stated != size:
        raise ValueError(
            f"{file} is {size[0]}x{size[1]} (height x width, turned as its EXIF data says), its annotations are for "
            f"{stated[0]}x{stated[1]}."
        )
    return image


def tool_writers(content: dict, args: RefinementArguments) -> list[PredictionFormat]:
    """Writers of the formats for annotation tools. A class label is its index in `categories`, or its number in YOLO's
    files."""
    formats = dict.fromkeys((*args.formats, *(("yolo",) if args.annotations.is_dir() else ())))
    categories = [Category(label, name, True) for label, name in names_of_labels(content, args).items()]
    return make_writers(list(formats), args.output, "instance", categories, polygons=args.polygons)


def names_of_labels(content: dict, args: RefinementArguments) -> dict[int, str]:
    """Names of the classes by label, see `tool_writers`; numbers of YOLO that have no name get one.

    Raises:
        ValueError: a number is too large.
    """
    names = {row["id"]: row["name"] for row in content["categories"]}
    if not args.annotations.is_dir():
        return dict(enumerate(names.values()))
    if max(names) > LARGEST_CLASS:
        raise ValueError(f"{args.annotations} has the class {max(names)}, at most {LARGEST_CLASS} is allowed.")
    return {label: names.get(label, f"class_{label}") for label in range(max(names) + 1)}


def write_formats(
    content: dict, photos: list[Path], args: RefinementArguments, writers: list, refined: dict[str, dict], left_out: set
) -> list[Path]:
    """Write annotations for annotation tools. An annotation that was not refined has score 0, and keeps its mask or
    gets a filled box. Crowds, and annotations without mask and box, are left out.

    Args:
        content: of the COCO file, with refined annotations.
        photos: of its images.
        args: of the command.
        writers: see `tool_writers`.
        refined: fields of refined annotations by id.
        left_out: ids of images that could not be read, or are not of the size in the file.

    Returns:
        paths of the files.
    """
    id2label, by_image, records = names_of_labels(content, args), defaultdict(list), []
    is_yolo = args.annotations.is_dir()
    labels = {row["id"]: row["id"] if is_yolo else label for label, row in enumerate(content["categories"])}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            by_image[annotation["image_id"]].append(annotation)
    files = [row["file_name"] for row in content["images"]]
    for row, photo, name in zip(content["images"], photos, result_names(files), strict=True):
        if row["id"] in left_out:
            continue
        size, found = read_size(photo)[::-1], by_image[row["id"]]
        segments: list[dict] = []
        masks = torch.zeros(len(found), *size, dtype=torch.bool)
        for annotation in found:
            with contextlib.suppress(ValueError):  # reported before
                masks[len(segments)] = prompt_of(annotation, size, boxes_only=False)[0].bool()
                score = refined.get(str(annotation["id"]), {}).get("score", 0.0)
                label = labels[annotation["category_id"]]
                segments.append({"id": len(segments) + 1, "label_id": label, "score": score})
        result = {"segmentation": masks[: len(segments)], "segments_info": segments}
        described = describe_segments(result, "instance", id2label, mark_duplicates=False)
        records.append(ImageRecord(row["id"], row["file_name"], name, *size, described))
        for writer in writers:
            writer.write(records[-1], result)
    return [file for writer in writers for file in writer.finish(records)]


def read_annotations(path: Path, images: Path, id2label: dict[int, str]) -> dict:
    """Content of a COCO file, or of a folder of YOLO's labels in the same form.

    Raises:
        ValueError: it is invalid.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"{path} does not exist.")
        content = read_coco_json(path, masks_required=False)
        check_ids(content, path)
        return content
    names = read_class_names(path)
    if names is None:
        print(f"note: {path} has no data.yaml or classes.txt, so its classes are those of the model", file=sys.stderr)
    with reading_inside((os.path.realpath(path), os.path.realpath(images))):
        return read_yolo_boxes(path, images, id2label if names is None else names)


def read_result(file: Path) -> dict:
    """What an earlier run found in an image; empty if there is nothing or if the file is damaged."""
    try:
        content = read_json(file)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def check_ids(content: dict, file: Path) -> None:
    """
    Raises:
        ValueError: an image or annotation has no id of its own, or segments are those of a panoptic file.
    """
    for kind in ("images", "annotations"):
        ids = [row.get("id") for row in content[kind]]
        if None in ids or len(set(map(str, ids))) < len(ids):
            raise ValueError(f"{file}: {kind} must have different ids.")
    if any("segments_info" in row for row in content["annotations"]):
        raise ValueError(f"{file} has panoptic annotations; refine is for objects: instances with boxes or masks.")


def refine(loading: LoadingArguments, args: RefinementArguments) -> None:
    """Refine all annotations of a file that have no result of this model and these settings.

    Raises:
        ValueError: an argument or the file is invalid.
    """
    if args.output.resolve().is_relative_to(args.images.resolve()):
        raise ValueError(f"{args.output} is in the folder of the images; choose another output folder.")
    predictor = Predictor.from_arguments(loading)
    if not predictor.model.config.mask_piloting:
        raise ValueError(f"{loading.model} has no pilot (mask_piloting is False), so it cannot refine masks.")
    if note := prompt_note(predictor.model.config):
        print(f"note: {note}", file=sys.stderr)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    content = read_annotations(args.annotations, args.images, predictor.model.config.id2label)
    writers = tool_writers(content, args)
    finder = FileFinder(args.images, args.images / args.annotations.name)
    photos = [finder.find(row["file_name"], is_map=False) for row in content["images"]]
    for photo in photos:
        check_inside(photo, (os.path.realpath(args.images),), hint="")
    missing = [row["file_name"] for row, photo in zip(content["images"], photos, strict=True) if not photo.is_file()]
    if missing:
        raise ValueError(f"{args.images} has no {missing[0]}; {len(missing)} of {len(content['images'])} are missing.")
    names = {name: label for label, name in predictor.model.config.id2label.items()}
    labels = {row["id"]: names[row["name"]] for row in content["categories"] if row["name"] in names}
    if unknown := [row["name"] for row in content["categories"] if row["name"] not in names]:
        print(f"note: the model has no class {', '.join(unknown)}; for these all classes are tried", file=sys.stderr)
    content_hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    settings: dict = {"weights": fingerprint(loading.model, loading.revision), "annotations": content_hash}
    settings |= {"rounds": args.rounds, "scale": args.scale, "boxes_only": args.boxes_only, "overlays": args.overlays}
    settings["min_pixels"] = args.min_pixels
    if not (args.output / "settings.json").exists():
        check_new_folder(args.output)
    else:
        refuse_changes(args.output, read_json(args.output / "settings.json"), settings)
    lock = lock_folder(args.output)
    write_json(settings, args.output / "settings.json")

    by_image = defaultdict(list)
    refined: dict[str, dict] = {}
    left_out = set()
    problems = 0
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    for number, row in enumerate(progress(content["images"], "refine", unit="image")):
        file = args.output / "results" / f"{number}.json"
        try:
            image = read_sized_image(photos[number], row)
        except ValueError as error:
            print(f"skipped {row['file_name']}: {error}", file=sys.stderr)
            problems += len(by_image[row["id"]])
            left_out.add(row["id"])
            continue
        done = read_result(file)
        if done.get("pixels_sha256") != image_hash(image):
            fields, found, results = refine_image(predictor, image, by_image[row["id"]], labels, args)
            if results is not None:
                path = args.output / "overlays" / f"{result_names([row['file_name']])[0]}_{number}.png"
                write_overlay(image, *results, predictor, path)
            done = {"annotations": fields, "problems": found, "pixels_sha256": image_hash(image)}
            write_json(done, file, indent=None)
        refined |= done["annotations"]
        problems += len(done["problems"])
        for problem in done["problems"]:
            print(f"{row['file_name']}: {problem}", file=sys.stderr)
    annotations = [{**row, **refined.get(str(row["id"]), {})} for row in content["annotations"]]
    content |= {"annotations": annotations}
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)  # NaN and Infinity are not JSON
    write_json(content, args.output / "annotations.json", indent=None)
    files = write_formats(content, photos, args, writers, refined, left_out) if writers else []
    lock.release()
    print(f"{len(refined)} of {len(annotations)} annotations refined, {problems} with problems")
    for path in (args.output / "annotations.json", *files):
        print(f"file: {path}")
    if problems and not refined:
        raise ValueError("No annotation was refined: are the images readable, and was the model trained for prompts?")
