"""Draw boxes and the masks that a model makes of them: three images of a split, above the boxes, below the masks.

python -m scripts.study.draw_prompts outputs/quickstart/model training/results/prompts.jpg --dataset_name data/solids \\
    --eval_split test --task panoptic --rows 0 3 4
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.evaluation.task_metrics import instance_reference
from mpformer_hf.inference.drawing import class_color, draw_segmentation
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.boxes import mask_boxes
from mpformer_hf.utils.arguments import parse
from mpformer_hf.utils.command import run_command

CELL = 384  # side of a picture, in pixels
GAP = 8


def draw_boxes(photo: Image.Image, boxes: Tensor, labels: list[int], size: tuple[int, int]) -> Image.Image:
    """A photograph with boxes `[P, 4]`, which are in pixels of an image of (height, width) `size`."""
    scale = torch.tensor([photo.width / size[1], photo.height / size[0]] * 2)
    photo = photo.copy()
    pen = ImageDraw.Draw(photo)
    for box, label in zip((boxes * scale).tolist(), labels, strict=True):
        pen.rectangle(box, outline=(20, 20, 20), width=5)
        pen.rectangle([x + d for x, d in zip(box, (1, 1, -1, -1), strict=True)], outline=class_color(label), width=3)
    return photo


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="saved MP-Former: folder or Hub name")
    parser.add_argument("picture", type=Path, help="picture to write")
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 1, 2], help="rows of the split")
    args, flags = parser.parse_known_args(argv)
    (data,) = parse([DataArguments], flags)
    split = open_dataset(data, data.eval_split)
    predictor = Predictor.from_pretrained(args.model)
    sheet = Image.new("RGB", (len(args.rows) * (CELL + GAP) - GAP, 2 * CELL + GAP), "white")
    for column, row in enumerate(args.rows):
        image, segments = split[row]
        reference = instance_reference(segments, split.labels.things)
        if not reference["masks"]:
            raise ValueError(f"Row {row} has no object; choose other --rows.")
        boxes = mask_boxes(torch.from_numpy(np.stack(reference["masks"])))
        result = predictor.refine(image, boxes=boxes, labels=reference["label_ids"])
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        masks = draw_segmentation(photo, result, split.labels.id2label, opacity=0.45, legend=False)
        photo = photo.resize((CELL, CELL))
        x = column * (CELL + GAP)
        sheet.paste(draw_boxes(photo, boxes, reference["label_ids"], tuple(image.shape[1:])), (x, 0))
        sheet.paste(masks.resize((CELL, CELL)), (x, CELL + GAP))
    sheet.save(args.picture, quality=92)


if __name__ == "__main__":
    run_command(main)
