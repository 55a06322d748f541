"""Segment an image with an exported model, onnxruntime, NumPy and Pillow alone, and print what was found.

mpformer export MODEL model.onnx --with_postprocessing
python segment.py model.onnx photo.jpg

Photos get the size of the model's image processor, and are stretched to the next multiples of 32, or to the one size
that the model was exported at.
"""

import json
import math
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) != 3:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
names = ("labels", "task", "threshold", "size", "do_resize", "resample", "multiple", "smallest_side")
if not {*names} <= {*metadata} or session.get_inputs()[0].name != "image":
    sys.exit(f"{sys.argv[1]} must be made by mpformer export --with_postprocessing")
settings = {name: json.loads(metadata[name]) for name in names}
try:
    image = ImageOps.exif_transpose(Image.open(sys.argv[2]))
except OSError as error:
    sys.exit(f"{sys.argv[2]} cannot be read: {error}")
if image.mode.startswith("I;16"):  # grey of 16 bits: the upper 8 are used
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
if image.mode in ("I", "F"):
    sys.exit(f"{sys.argv[2]} has values of 32 bits; save it with 8 or 16 bits")
image = image.convert("RGB")
height, width = session.get_inputs()[0].shape[2:]  # numbers, or names of dynamic sides
if isinstance(height, str):
    size, sides, multiple = settings["size"], image.size, settings["multiple"]
    if "height" in size and settings["do_resize"]:
        sides = size["width"], size["height"]
    elif settings["do_resize"]:
        low, high = sorted(sides)
        short = min(size["shortest_edge"], size.get("longest_edge", math.inf) * low / high)
        short, long = (low, high) if round(short) == low else (round(short), int(short * high / low))
        sides = (short, long) if sides[0] < sides[1] else (long, short)
    width, height = (max(settings["smallest_side"], math.ceil(side / multiple) * multiple) for side in sides)
pixels = np.asarray(image.resize((width, height), settings["resample"])).transpose(2, 0, 1)[None]
names = [output.name for output in session.get_outputs()]
results = {name: value[0] for name, value in zip(names, session.run(names, {"image": pixels}), strict=True)}
labels = [" ".join(label.split()) for label in settings["labels"]]
if settings["task"] == "semantic":
    found, areas = np.unique(results["segmentation"], return_counts=True)
    rows = [(labels[i], None, area) for i, area in zip(found, areas, strict=True)]
else:
    above = np.flatnonzero((results["scores"] > 0) & (results["scores"] >= settings["threshold"]))
    masks = (
        results["masks"]
        if "masks" in results
        else (results["segmentation"] == i + 1 for i in range(above.max(initial=-1) + 1))
    )
    areas = [int(mask.sum()) for mask in masks]
    rows = [(labels[results["labels"][i]], float(results["scores"][i]), areas[i]) for i in above]
if not rows:
    print("no instance has a score above the threshold")
for label, score, area in rows:
    print(f"{label}\t{'' if score is None else f'{score:.3f}'}\t{area / (height * width):.1%} of the image")
