"""Draw the picture of the front page: for each image the photograph, the predicted objects, the boxes of the ground
truth, and the masks that the model makes of the boxes.

python -m scripts.study.draw_front outputs/nuclei data/nuclei training/results/front.jpg --rows 3 12 25 40
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation.task_metrics import instance_reference
from mpformer_hf.inference.drawing import draw_segmentation
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.boxes import mask_boxes
from mpformer_hf.utils.arguments import CheckedArguments, argument, option, parse
from mpformer_hf.utils.command import run_command

CELL, GAP = 320, 6  # pixels
BOX = (255, 210, 0)


@dataclass
class PictureArguments(CheckedArguments):
    """What is drawn."""

    model: str = argument("model", "saved MP-Former: folder or Hub name")
    dataset: str = argument("data", "data set: Hub name or local folder")
    picture: Path = argument("picture", "picture to write")
    split: str = option("test", "Split of the images.")
    rows: list[int] = option([0, 1, 2, 3], "Rows of the split.")


def draw_boxes(photo: Image.Image, boxes: torch.Tensor, side: int) -> Image.Image:
    """A square photograph of `side` pixels with boxes `[P, 4]`, which are in pixels of the original."""
    scale = torch.tensor([side / photo.width, side / photo.height] * 2)
    drawn = photo.resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(drawn)
    for box in (boxes * scale).tolist():
        pen.rectangle(box, outline=BOX, width=2)
    return drawn


def main(argv: list[str]) -> None:
    (args,) = parse([PictureArguments], argv, __doc__, "draw_front")
    data = DataArguments(dataset_name=args.dataset, task="instance", eval_split=args.split)
    split, predictor = open_dataset(data, args.split), Predictor.from_pretrained(args.model)
    names = split.labels.id2label
    sheet = Image.new("RGB", (4 * (CELL + GAP) - GAP, len(args.rows) * (CELL + GAP) - GAP), "white")
    for line, row in enumerate(args.rows):
        image, segments = split[row]
        reference = instance_reference(segments, split.labels.things)
        boxes = mask_boxes(torch.from_numpy(np.stack(reference["masks"])))
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        masks = predictor.refine(image, boxes=boxes, labels=reference["label_ids"])
        for info in masks["segments_info"]:
            del info["score"]  # captions would cover the objects
        predicted = predictor.predict([image])[0]
        for info in predicted["segments_info"]:
            del info["score"]
        sides = [draw_segmentation(photo, result, names, 0.5, legend=False) for result in (predicted, masks)]
        for column, side in enumerate((photo, sides[0], draw_boxes(photo, boxes, CELL), sides[1])):
            cell = side.resize((CELL, CELL), Image.Resampling.BICUBIC)
            sheet.paste(cell, (column * (CELL + GAP), line * (CELL + GAP)))
    sheet.save(args.picture, quality=90)


if __name__ == "__main__":
    run_command(main)
