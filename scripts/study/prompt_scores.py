"""Quality of prompts: mean IoU with the truth before and after refinement, by kind of prompt and size of object.

python -m scripts.study.prompt_scores outputs/nuclei --dataset_name data/nuclei_tiles --eval_split test \\
    --task instance --rounds 1 2 --grabcut --output_file training/results/prompts_nuclei.json

Kinds: the bounding box; the mask dilated by 4 pixels, eroded by 3, or moved by a quarter of its width and height in a
random direction; the mask itself. The class is given. `--grabcut`: OpenCV's GrabCut from the same boxes, 5 iterations
(`pip install opencv-python-headless`). Sizes are COCO's: below 32^2, up to 96^2, and more pixels. Also: the time of a
call of `refine` for one image as a share of the full forward pass, and the mean IoU by score.
"""

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.boxes import mask_boxes
from mpformer_hf.prompts.calibration import calibration_error
from mpformer_hf.prompts.ground_truth import objects_of_images, pair_ious, prompts_of
from mpformer_hf.utils.arguments import parse
from mpformer_hf.utils.command import run_command
from mpformer_hf.utils.files import write_json

SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}  # largest area
BINS = 10


def grabcut(image: Tensor, masks: Tensor) -> Tensor:
    """GrabCut from the bounding box of each mask, bool `[P, H, W]`."""
    import cv2

    photo, results = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., ::-1]), []
    for x0, y0, x1, y1 in mask_boxes(masks).tolist():
        labels = np.full(photo.shape[:2], cv2.GC_BGD, dtype=np.uint8)
        labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
        if (labels == cv2.GC_BGD).any() and min(x1 - x0, y1 - y0) > 1:  # else there is no background to learn from
            cv2.grabCut(photo, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
        results.append(torch.from_numpy(np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))))
    return torch.stack(results)


class Scores:
    """IoU of objects by kind of prompt, method and size."""

    def __init__(self):
        self.values: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self.by_score: list[tuple[float, float]] = []

    def add(self, kind: str, method: str, ious: list[float], areas: list[float]) -> None:
        self.values[kind, method] += zip(ious, areas, strict=True)

    def table(self) -> dict:
        """Mean IoU and number of objects, of all objects and by size."""
        rows: dict[str, dict] = defaultdict(dict)
        for (kind, method), values in self.values.items():
            row = {"all": round(float(np.mean([iou for iou, _ in values])), 4), "objects": len(values)}
            least = 0.0
            for size, most in SIZES.items():
                own = [iou for iou, area in values if least <= area < most]
                row |= {size: round(float(np.mean(own)), 4)} if own else {}
                least = most
            rows[kind][method] = row
        return rows

    def calibration(self) -> list[dict]:
        """Mean score and mean IoU of results in bins of the score."""
        rows = []
        for index in range(BINS):
            own = [(s, iou) for s, iou in self.by_score if index <= min(s * BINS, BINS - 1e-6) < index + 1]
            if own:
                score, iou = (round(float(np.mean(x)), 4) for x in zip(*own, strict=True))
                rows.append({"score": score, "iou": iou, "results": len(own)})
        return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="saved MP-Former: folder or Hub name")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1], help="numbers of rounds")
    parser.add_argument("--scale", type=float, default=1.0, help="image size relative to that of the processor")
    parser.add_argument("--grabcut", action="store_true", help="also OpenCV's GrabCut from the boxes")
    parser.add_argument("--output_file", type=Path, help="JSON of the results")
    args, flags = parser.parse_known_args(argv)
    (data,) = parse([DataArguments], flags)
    split = open_dataset(data, data.eval_split, data.max_eval_samples)
    if 1 not in args.rounds:
        raise ValueError("--rounds must have 1, whose scores and time are measured.")
    predictor, generator = Predictor.from_pretrained(args.model, data.task), torch.Generator().manual_seed(0)
    scores, shares = Scores(), []
    for image, masks, labels in objects_of_images(split, "prompts"):
        start = time.perf_counter()
        predictor([image])
        full, encoded = time.perf_counter() - start, predictor.encode(image, args.scale)
        for prompts in prompts_of(masks, labels, generator):
            areas = prompts.truth.flatten(1).sum(1).tolist()
            scores.add(prompts.kind, "given", pair_ious(prompts.given, prompts.truth), areas)
            for rounds in args.rounds:
                start = time.perf_counter()
                found = predictor.refine(encoded, **prompts.arguments, rounds=rounds)
                shares += [(time.perf_counter() - start) / full] if rounds == 1 else []
                ious = pair_ious(found["segmentation"], prompts.truth)
                scores.add(prompts.kind, f"{rounds} round" + "s" * (rounds > 1), ious, areas)
                if rounds == 1:
                    scores.by_score += [(s["score"], iou) for s, iou in zip(found["segments_info"], ious, strict=True)]
            if prompts.kind == "box" and args.grabcut:
                scores.add(prompts.kind, "GrabCut", pair_ious(grabcut(image, prompts.given), prompts.truth), areas)
    if not shares:
        raise ValueError("The split has no objects.")
    table = scores.table()
    for kind, methods in table.items():
        print(f"{kind:<14}" + "  ".join(f"{method} {row['all']:.3f}" for method, row in methods.items()))
    result = {"model": Path(args.model).name, "dataset": Path(data.dataset_name).name, "split": data.eval_split}
    result["scale"] = args.scale
    error = round(calibration_error(*zip(*scores.by_score, strict=True)), 4)
    result |= {"iou": table, "by_score": scores.calibration(), "calibration_error": error}
    result["refine_time_of_full_forward"] = round(statistics.median(shares), 4)
    print(f"refine takes {result['refine_time_of_full_forward']} of a full forward pass")
    if args.output_file:
        write_json(result, args.output_file)


if __name__ == "__main__":
    run_command(main)
