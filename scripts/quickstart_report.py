"""Last step of the quickstart: load the saved model, segment test images with the pipeline, print a table of scores.

python -m scripts.quickstart_report outputs/quickstart
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import ImageSegmentationPipeline, pipeline

from mpformer_hf import draw_segmentation
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation.task_metrics import most_frequent_class, score_constant
from mpformer_hf.utils.command import run_command
from mpformer_hf.utils.files import write_json

SCORES = {"pq": "PQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff", "mean_iou": "mIoU"}
CELL = 384  # pixels of an image in the sheet
NEXT = """
Next, your own images (a folder of COCO, or parquet files; docs/layouts.md), with the same small model:
  mpformer train FOLDER --config quickstart \\
      --task instance --eval_split val --crop_size 512 512 --shortest_edges 512 --eval_shortest_edge 512 \\
      --eval_longest_edge 1024 --output_dir outputs/mine
or with a checkpoint of the Hub, on a GPU: --config training/recipes/own_dataset.yaml. Predict with the result:
  mpformer predict outputs/mine PHOTOS outputs/predictions"""


def draw_sheet(segmenter: ImageSegmentationPipeline, images: list[torch.Tensor]) -> Image.Image:
    """Images, uint8 `[3, H, W]` each, in rows of three, with what the pipeline finds in each of them below it."""
    sheet = Image.new("RGB", (3 * CELL, 2 * CELL * -(-len(images) // 3)), "white")
    for index, image in enumerate(images):
        photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((CELL, CELL))
        overlay = draw_segmentation(photo, segmenter(photo), segmenter.model.config.id2label, opacity=0.4, legend=False)
        x, y = index % 3 * CELL, index // 3 * 2 * CELL
        sheet.paste(photo, (x, y))
        sheet.paste(overlay, (x, y + CELL))
    return sheet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the quickstart")
    folder = parser.parse_args(argv).folder

    data = DataArguments(dataset_name=str(folder / "data"), task="panoptic")
    test = open_dataset(data, "test")
    segmenter = pipeline("image-segmentation", model=str(folder / "model"))
    draw_sheet(segmenter, [test[index][0] for index in range(6)]).save(folder / "overlay.png")

    label = most_frequent_class(open_dataset(data, "train"), stuff_only=True)
    results = json.loads((folder / "model" / "all_results.json").read_text())
    validation = open_dataset(data, "validation")
    rows = {
        f"validation, only '{test.labels.names[label]}'": score_constant("panoptic", validation, label),
        "validation, before training": results["before_training"],
        f"validation, after {results['best']['step']} steps": results["best"],
        f"test, only '{test.labels.names[label]}'": score_constant("panoptic", test, label),
        "test, the saved model": json.loads((folder / "test.json").read_text()),
    }
    print(f"\n{'':<36}" + "".join(f"{title:>11}" for title in SCORES.values()))
    for name, scores in rows.items():
        print(f"{name:<36}" + "".join(f"{scores[key]:>11.3f}" for key in SCORES))
    summary = {name: {key: round(scores[key], 4) for key in SCORES} for name, scores in rows.items()}
    write_json({"scores": summary, "train_seconds": results["train_seconds"]}, folder / "quickstart.json")
    print(f"\ntraining {results['train_seconds']:.0f} s, evaluation {results['eval_seconds']:.0f} s")
    print(f"model    {folder / 'model'}\npicture  {folder / 'overlay.png'}: the first six test images\n{NEXT}")


if __name__ == "__main__":
    run_command(main)
