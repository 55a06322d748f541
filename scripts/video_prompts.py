"""Do masks of the last frame as prompts keep identities better than matching by IoU? Measured on moving solids.

python -m scripts.video_prompts outputs/quickstart/model --output_file training/results/study/video_solids.json

Videos are rendered with the pieces of scripts/make_solids_dataset.py, from its test photographs: two to five solids on
a ground move sideways, occlude each other, enter and leave. Three trackers use the same predictions of each frame:

- iou: predictions are assigned to tracks of their class by the IoU with the last mask of each (Hungarian, at least
  0.1); what is left begins a track;
- prompts: the last masks are refined in the new frame, and are the result where their score is at least 0.5;
  predictions that overlap none of them (IoU below 0.5) begin a track;
- prompted_iou: as iou, with the refined instead of the last masks.

Tracks that are not seen for ten frames end. Scores: identity switches, as a share of the objects in all frames that are
found (IoU at least 0.5); and video panoptic quality of things (Kim et al., 2020) over windows of 1, 5 and 10 frames.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

from mpformer_hf.cli.main import run_command
from mpformer_hf.files import check_new_folder, write_json
from mpformer_hf.inference import EncodedImage, Predictor
from mpformer_hf.loading import load_model, load_processor
from mpformer_hf.progress import progress
from mpformer_hf.ranges import check_range
from mpformer_hf.visualization import draw_segmentation

from .make_solids_dataset import NAMES, NUM_THINGS, cast_shadow, draw_ground, draw_solid, overlap, render_solid

LEAST_IOU = 0.1  # of a mask and the same object in the frame before
FOUND = 0.5  # IoU from which an object is found
LEAST_SCORE = 0.5
PATIENCE = 10  # frames
WINDOWS = (1, 5, 10)


@dataclass
class Solid:
    """A moving solid: class, mask and surface, row, column in the first frame and columns per frame."""

    label: int
    mask: np.ndarray
    surface: np.ndarray
    radius: float
    y: int
    x: float
    speed: float


@dataclass
class Objects:
    """Objects of a frame: masks bool `[n, H, W]`, which may overlap, classes, and identities."""

    masks: np.ndarray
    labels: list[int]
    ids: list[int]


def make_video(seed: int, frames: int, size: int) -> list[tuple[np.ndarray, Objects]]:
    """Images uint8 `[H, W, 3]` and the visible objects of each frame."""
    rng = np.random.default_rng(seed)
    side = 2 * size
    ground = draw_ground(rng, int(rng.integers(NUM_THINGS, len(NAMES))), side, "test")
    elevation, angle = rng.uniform(0.45, 0.8), rng.uniform(0, 2 * np.pi)
    light = np.array([0.7 * np.cos(angle), -0.5, 0.55])
    light /= np.linalg.norm(light)
    solids = []
    for y in np.sort(rng.uniform(0.15, 0.85, int(rng.integers(2, 6))) * side).astype(int).tolist():
        label, radius = int(rng.integers(NUM_THINGS)), rng.uniform(0.11, 0.2) * side
        mask, normals = render_solid(label, radius, elevation, rng.uniform(0, 2 * np.pi))
        surface = draw_solid(rng, mask, normals, light, "test")
        speed = rng.choice([-1, 1]) * rng.uniform(0.01, 0.06) * side
        solids.append(Solid(label, mask, surface, radius, y, rng.uniform(-0.1, 1.1) * side, speed))
    return [draw_frame(rng, ground, solids, light, number, size) for number in range(frames)]


def draw_frame(
    rng: np.random.Generator, ground: np.ndarray, solids: list[Solid], light: np.ndarray, number: int, size: int
) -> tuple[np.ndarray, Objects]:
    """One frame; solids whose centre is outside are not drawn, the lower ones are in front."""
    image, ids = ground.copy(), np.full(ground.shape[:2], -1)
    for index, solid in enumerate(solids):
        x = int(solid.x + number * solid.speed)
        if 0 <= x < image.shape[1]:
            cast_shadow(image, light, solid.radius, x, solid.y)
            part, mask = overlap(image, solid.mask, x, solid.y)
            part[mask] = overlap(image, solid.surface, x, solid.y)[1][mask]
            overlap(ids, solid.mask, x, solid.y)[0][mask] = index
    image = (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
    image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
    ids = ids[::2, ::2]
    seen = [index for index in range(len(solids)) if (ids == index).any()]
    masks = np.array([ids == index for index in seen]).reshape(-1, size, size)
    return image, Objects(masks, [solids[index].label for index in seen], seen)


def mask_ious(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU of all pairs of bool masks `[n, H, W]` and `[m, H, W]`, `[n, m]`."""
    if not len(one) or not len(two):
        return np.zeros((len(one), len(two)))
    one, two = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (one, two))
    both = one @ two.T
    return both / np.maximum(one.sum(1)[:, None] + two.sum(1)[None] - both, 1)


@dataclass
class Tracker:
    """Tracks of a video.

    Attributes:
        masks, labels, unseen: last mask, class, and frames since it was seen, by identity.
    """

    masks: dict[int, np.ndarray] = field(default_factory=dict)
    labels: dict[int, int] = field(default_factory=dict)
    unseen: dict[int, int] = field(default_factory=dict)
    next_id: int = 0

    def update(self, found: Objects) -> Objects:
        """Store what was found; objects with identity -1 begin a track."""
        ids = []
        for own in found.ids:
            ids.append(self.next_id if own < 0 else own)
            self.next_id += own < 0
        self.unseen = {i: 0 if i in ids else count + 1 for i, count in (self.unseen | dict.fromkeys(ids, 0)).items()}
        self.masks |= dict(zip(ids, found.masks, strict=True))
        self.labels |= dict(zip(ids, found.labels, strict=True))
        for ended in [i for i, count in self.unseen.items() if count > PATIENCE]:
            del self.masks[ended], self.labels[ended], self.unseen[ended]
        return Objects(found.masks, found.labels, ids)


def assign(tracks: dict[int, np.ndarray], labels: dict[int, int], found: Objects) -> Objects:
    """Identities of predictions by the IoU with masks of tracks."""
    ids, keys = [-1] * len(found.labels), list(tracks)
    if keys and ids:
        ious = mask_ious(found.masks, np.stack([tracks[key] for key in keys]))
        ious *= np.array(found.labels)[:, None] == np.array([labels[key] for key in keys])[None]
        for row, column in zip(*linear_sum_assignment(-ious), strict=True):
            if ious[row, column] >= LEAST_IOU:
                ids[row] = keys[column]
    return Objects(found.masks, found.labels, ids)


def refined_tracks(predictor: Predictor, frame: EncodedImage, tracker: Tracker) -> dict[int, tuple[np.ndarray, float]]:
    """Refined masks and scores of the tracks that are not empty, without those that became another's."""
    keys = list(tracker.masks)
    if not keys:
        return {}
    masks = torch.from_numpy(np.stack([tracker.masks[key] for key in keys]))
    found = predictor.refine(frame, masks=masks, labels=[tracker.labels[key] for key in keys])
    rows = zip(keys, found["segmentation"].numpy(), found["segments_info"], strict=True)
    kept: dict[int, tuple[np.ndarray, float]] = {}
    for key, mask, row in sorted(rows, key=lambda x: -x[2]["score"]):
        others = [other for other, _ in kept.values()]
        if mask.any() and (not others or mask_ious(mask[None], np.stack(others)).max() < FOUND):
            kept[key] = mask, row["score"]
    return kept


def track_by_iou(predictor: Predictor, frame: EncodedImage, tracker: Tracker, found: Objects) -> Objects:
    return assign(tracker.masks, tracker.labels, found)


def track_by_prompts(predictor: Predictor, frame: EncodedImage, tracker: Tracker, found: Objects) -> Objects:
    refined = {
        key: mask for key, (mask, score) in refined_tracks(predictor, frame, tracker).items() if score >= LEAST_SCORE
    }
    masks, labels, ids = list(refined.values()), [tracker.labels[key] for key in refined], list(refined)
    for mask, label in zip(found.masks, found.labels, strict=True):
        if not masks or mask_ious(mask[None], np.stack(masks)).max() < FOUND:
            masks, labels, ids = [*masks, mask], [*labels, label], [*ids, -1]
    return Objects(np.array(masks).reshape(-1, *found.masks.shape[1:]), labels, ids)


def track_by_prompted_iou(predictor: Predictor, frame: EncodedImage, tracker: Tracker, found: Objects) -> Objects:
    refined = {key: mask for key, (mask, _) in refined_tracks(predictor, frame, tracker).items()}
    return assign({**tracker.masks, **refined}, tracker.labels, found)


TRACKERS: dict[str, Callable[[Predictor, EncodedImage, Tracker, Objects], Objects]] = {
    "iou": track_by_iou,
    "prompts": track_by_prompts,
    "prompted_iou": track_by_prompted_iou,
}


def count_switches(truth: list[Objects], tracked: list[Objects]) -> tuple[int, int]:
    """Identity switches and objects that are found, over all frames of a video."""
    last, switches, found = {}, 0, 0
    for true, own in zip(truth, tracked, strict=True):
        ious = mask_ious(true.masks, own.masks)
        for row, column in zip(*linear_sum_assignment(-ious), strict=True):
            if ious[row, column] >= FOUND:
                found += 1
                before = last.get(true.ids[row], own.ids[column])
                switches += before != own.ids[column]
                last[true.ids[row]] = own.ids[column]
    return switches, found


def tubes(frames: list[Objects]) -> dict[tuple[int, int], np.ndarray]:
    """Masks `[frames, H, W]` by class and identity."""
    empty = np.zeros(frames[0].masks.shape[1:], dtype=bool)
    result: dict[tuple[int, int], list[np.ndarray]] = {}
    for number, objects in enumerate(frames):
        for mask, label, own in zip(objects.masks, objects.labels, objects.ids, strict=True):
            result.setdefault((label, own), [empty] * len(frames))[number] = mask
    return {key: np.stack(masks) for key, masks in result.items()}


def video_quality(truth: list[Objects], tracked: list[Objects], window: int) -> tuple[float, float]:
    """Sum of the IoUs of matched tubes, and the number of matched + half of the others, over all windows; of all
    classes together."""
    total, weight = 0.0, 0.0
    for first in range(len(truth) - window + 1):
        true, own = (tubes(frames[first : first + window]) for frames in (truth, tracked))
        matched = 0
        for (label, _), mask in true.items():
            ious = [(mask & other).sum() / (mask | other).sum() for (kind, _), other in own.items() if kind == label]
            best = max(ious, default=0.0)
            if best > FOUND:
                matched, total = matched + 1, total + float(best)
        weight += matched + (len(true) - matched) / 2 + (len(own) - matched) / 2
    return total, weight


def predict_objects(predictor: Predictor, image: torch.Tensor) -> Objects:
    """Things of a panoptic result."""
    (result,) = predictor([image])
    rows = [row for row in result["segments_info"] if row["label_id"] < NUM_THINGS]
    masks = np.array([(result["segmentation"] == row["id"]).numpy() for row in rows])
    return Objects(masks.reshape(-1, *image.shape[1:]), [row["label_id"] for row in rows], [-1] * len(rows))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="panoptic model of the quickstart's classes")
    parser.add_argument("--videos", type=int, default=20, help="number of videos; their seeds are 0, 1, ...")
    parser.add_argument("--frames", type=int, default=24, help="frames of each")
    parser.add_argument("--size", type=int, default=128, help="side of the frames in pixels")
    parser.add_argument("--output_file", type=Path, help="JSON of the results")
    parser.add_argument("--pictures", type=Path, help="new folder for the frames of the first video, with identities")
    args = parser.parse_args(argv)
    check_range("videos", args.videos, "[1, inf)")
    check_range("frames", args.frames, f"[{max(WINDOWS)}, inf)")
    predictor = Predictor(load_model(args.model), load_processor(args.model), "panoptic")
    if list(predictor.model.config.id2label.values()) != NAMES:
        raise ValueError(f"{args.model} does not have the quickstart's classes.")
    switches, quality = {name: np.zeros(2) for name in TRACKERS}, {}
    for seed in progress(range(args.videos), "videos"):
        video = make_video(seed, args.frames, args.size)
        tracked: dict[str, list[Objects]] = {name: [] for name in TRACKERS}
        trackers = {name: Tracker() for name in TRACKERS}
        for image, _ in video:
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            found, frame = predict_objects(predictor, pixels), predictor.encode(pixels)
            for name, track in TRACKERS.items():
                tracked[name].append(trackers[name].update(track(predictor, frame, trackers[name], found)))
        truth = [objects for _, objects in video]
        for name in TRACKERS:
            switches[name] += count_switches(truth, tracked[name])
            for window in WINDOWS:
                quality.setdefault((name, window), np.zeros(2))
                quality[name, window] += video_quality(truth, tracked[name], window)
        if args.pictures and seed == 0:
            save_pictures(check_new_folder(args.pictures), video, tracked)
    result = {"videos": args.videos, "frames": args.frames, "trackers": {}}
    for name, (count, found) in switches.items():
        share = float(100 * count / max(found, 1))
        row = {"switches": int(count), "found": int(found), "switches_per_100": round(share, 3)}
        row |= {f"vpq_{w}": round(float(quality[name, w][0] / max(quality[name, w][1], 1e-9)), 4) for w in WINDOWS}
        result["trackers"][name] = row
        print(name, row)
    if args.output_file:
        write_json(result, args.output_file)


def save_pictures(folder: Path, video: list, tracked: dict[str, list[Objects]]) -> None:
    """Write the frames with identities, one row of pictures for each tracker."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, _) in enumerate(video):
        photo, sides = Image.fromarray(image), []
        for name in tracked:
            objects = tracked[name][number]
            rows = [
                {"id": i, "label_id": label, "mark": str(own)}
                for i, (label, own) in enumerate(zip(objects.labels, objects.ids, strict=True))
            ]
            result = {"segmentation": objects.masks, "segments_info": rows}
            sides.append(draw_segmentation(photo, result, dict(enumerate(NAMES)), legend=False))
        canvas = Image.new("RGB", (sum(side.width for side in sides), sides[0].height))
        for index, side in enumerate(sides):
            canvas.paste(side, (index * side.width, 0))
        canvas.save(folder / f"{number:03d}.png")


if __name__ == "__main__":
    run_command(main)
