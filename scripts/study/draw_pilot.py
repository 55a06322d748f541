"""Draw the attention masks of pilot queries: a row per decoder level, a column per kind of noise.

python -m scripts.study.draw_pilot tests/fixtures/coffee.jpg tests/fixtures/coffee_segments.png pilot.jpg

The second image is a map of segment ids, 0 = void. There is a pilot query per segment; the cells that it may attend to
are tinted.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mpformer_hf import MPFormerConfig
from mpformer_hf.inference.drawing import class_color
from mpformer_hf.model.configuration_mpformer import PILOT_NOISES
from mpformer_hf.model.mask_piloting import build_pilot
from mpformer_hf.model.targets import collect_targets
from mpformer_hf.utils.command import run_command

STRIDES = (32, 16, 8)
TILE = 210  # width of one picture, in pixels
MARGIN, HEADER = 6, 22


def attended_cells(segments: np.ndarray, noise: str, scale: float, seed: int) -> list[np.ndarray]:
    """Cells that the pilot query of each segment may attend to: bool `[segments, h, w]` per level."""
    ids = [i for i in np.unique(segments) if i]
    masks = torch.from_numpy(np.stack([segments == i for i in ids]))
    height, width = segments.shape
    targets = collect_targets([masks], [torch.zeros(len(ids), dtype=torch.int64)], (height, width))
    config = MPFormerConfig(pilot_noise=noise, pilot_noise_scale=scale, pilot_label_noise=0.0)
    shapes = [(height // stride, width // stride) for stride in STRIDES]
    pilot = build_pilot(targets, shapes, config, torch.Generator().manual_seed(seed))
    return [pilot.sample_attention_mask(level)[0, 0].unflatten(1, shape).numpy() for level, shape in enumerate(shapes)]


def tint(image: Image.Image, cells: np.ndarray) -> Image.Image:
    """The image in grey with the cells of each segment in its colour."""
    height, width = cells.shape[1] * 8, cells.shape[2] * 8
    canvas = np.asarray(image.convert("L").convert("RGB").resize((width, height)), dtype=np.float32)
    for index, mask in enumerate(cells):
        pixels = mask.repeat(8, axis=0).repeat(8, axis=1)[..., None]
        canvas = np.where(pixels, 0.45 * canvas + 0.55 * np.array(class_color(index)), canvas)
    return Image.fromarray(canvas.astype(np.uint8)).resize((TILE, TILE * height // width))


def draw(image: Image.Image, segments: np.ndarray, scale: float, seed: int) -> Image.Image:
    """Draw all levels and kinds of noise."""
    columns = [("clean", 0.0), *((noise, scale) for noise in PILOT_NOISES)]
    rows: list[list[Image.Image]] = [[] for _ in STRIDES]
    height, width = (side // 32 * 32 for side in segments.shape)
    image, segments = image.crop((0, 0, width, height)), segments[:height, :width]
    for noise, strength in columns:
        for row, cells in zip(
            rows, attended_cells(segments, noise.replace("clean", "point"), strength, seed), strict=True
        ):
            row.append(tint(image, cells))
    height = rows[0][0].height
    table = Image.new("RGB", (HEADER + len(columns) * (TILE + MARGIN), HEADER + len(rows) * (height + MARGIN)), "white")
    pen, font = ImageDraw.Draw(table), ImageFont.load_default(size=15)
    for x, (noise, strength) in enumerate(columns):
        left = HEADER + x * (TILE + MARGIN)
        pen.text((left + 2, 2), f"{noise} {strength:g}" if strength else noise, fill="black", font=font)
        for y, row in enumerate(rows):
            table.paste(row[x], (left, HEADER + y * (height + MARGIN)))
    for y, stride in enumerate(STRIDES):
        label = Image.new("RGB", (height, HEADER), "white")
        ImageDraw.Draw(label).text((height // 2 - 30, 2), f"stride {stride}", fill="black", font=font)
        table.paste(label.rotate(90, expand=True), (0, HEADER + y * (height + MARGIN)))
    return table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, help="photograph")
    parser.add_argument("segments", type=Path, help="map of segment ids of the same size, 0 = void")
    parser.add_argument("output", type=Path, help="picture to write")
    parser.add_argument("--scale", type=float, default=0.4, help="pilot_noise_scale of every noise")
    parser.add_argument("--seed", type=int, default=1, help="seed of the noise")
    args = parser.parse_args(argv)
    image, segments = Image.open(args.image), np.array(Image.open(args.segments))
    if segments.ndim != 2 or segments.shape != image.size[::-1] or min(segments.shape) < 32:
        raise ValueError(f"{args.segments} must be a one-channel map of the image's size, at least 32 pixels a side.")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(image, segments, args.scale, args.seed).save(args.output)


if __name__ == "__main__":
    run_command(main)
