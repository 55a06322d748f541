"""Last step of the quickstart: load the saved model, segment an image with the pipeline, print a table of scores.

python -m scripts.quickstart_report outputs/quickstart
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import pipeline

from mpformer_hf import draw_segmentation
from mpformer_hf.cli.main import run_command
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.evaluation.task_metrics import most_frequent_class, score_constant
from mpformer_hf.files import write_json


def as_result(segments: list[dict], label2id: dict[str, int]) -> dict:
    """The pipeline's list of segments in the form of a post-processed result."""
    masks = [np.asarray(segment["mask"]) > 0 for segment in segments]
    rows = [{"id": i, "label_id": label2id[s["label"]], "score": s["score"]} for i, s in enumerate(segments)]
    return {"segmentation": np.stack(masks) if masks else np.zeros((0, 1, 1), bool), "segments_info": rows}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the quickstart")
    folder = parser.parse_args(argv).folder

    segmenter = pipeline("image-segmentation", model=str(folder / "model"))
    data = DataArguments(dataset_name=str(folder / "data"), task="panoptic")
    test = open_dataset(data, "test")
    image, _ = max((test[index] for index in range(12)), key=lambda example: len(example[1].classes))
    photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((512, 512))
    result = as_result(segmenter(photo), segmenter.model.config.label2id)
    draw_segmentation(photo, result, segmenter.model.config.id2label).save(folder / "overlay.png")

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
    print(f"\n{'':<36}{'PQ':>8}{'mIoU':>8}")
    for name, scores in rows.items():
        print(f"{name:<36}{scores['pq']:>8.3f}{scores['mean_iou']:>8.3f}")
    kept = ("pq", "pq_things", "pq_stuff", "mean_iou")
    summary = {name: {key: round(scores[key], 4) for key in kept} for name, scores in rows.items()}
    write_json({"scores": summary, "train_seconds": results["train_seconds"]}, folder / "quickstart.json")
    print(f"\ntraining {results['train_seconds']:.0f} s, evaluation {results['eval_seconds']:.0f} s")
    print(f"model    {folder / 'model'}\npictures {folder / 'model' / 'pictures'}\noverlay  {folder / 'overlay.png'}")


if __name__ == "__main__":
    run_command(main)
