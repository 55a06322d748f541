"""Training steps over numbers of targets, groups and queries and over image sizes."""

import argparse
from pathlib import Path

from .measuring import compare, measure_memory
from .models import build, make_batch, train_step

CURVES = {
    "targets": [{"targets": n} for n in (5, 10, 20, 40)],
    "groups": [{"pilot_groups": n} for n in (1, 2, 4)],
    "side": [{"size": n} for n in (192, 256, 384)],
    "queries": [{"num_queries": n} for n in (50, 100, 200)],
}


def curve_rows(args: argparse.Namespace, rounds: int) -> dict:
    """Training steps over one quantity at a time; otherwise image side 256, batch size 2, 20 targets."""
    rows = {}
    for name, points in CURVES.items():
        curve = []
        for point in points:
            own = {key: value for key, value in point.items() if key in ("pilot_groups", "num_queries")}
            shape = (point.get("size", 256), 2, point.get("targets", 20))
            arms = {"without pilot": {**own, "mask_piloting": False}, "pilot": own}
            models, batch = {arm: build(args.backbone, **fields) for arm, fields in arms.items()}, make_batch(*shape)
            works = {arm: lambda m=model, b=batch: train_step(m, b, args.dtype) for arm, model in models.items()}
            measured = compare(works, rounds)
            for arm, fields in arms.items():
                measured[arm]["peak_mib"] = measure_memory(args.backbone, fields, False, shape, args.dtype)
            curve.append({"at": next(iter(point.values())), **measured})
        rows[f"curve, {name}"] = curve
    return rows


def plot_curves(rows: dict, file: Path) -> None:
    """Plot time and memory of a training step over each quantity, with and without the pilot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = {name.removeprefix("curve, "): row for name, row in rows.items() if name.startswith("curve, ")}
    shape = {"figsize": (3.2 * len(curves), 5), "sharey": "row", "sharex": "col", "constrained_layout": True}
    figure, panels = plt.subplots(2, len(curves), **shape)
    for column, (name, points) in zip(panels.T, curves.items(), strict=True):
        for arm in ("without pilot", "pilot"):
            at = [p["at"] for p in points]
            column[0].plot(at, [p[arm]["median_s"] for p in points], marker="o", label=arm)
            column[1].plot(at, [p[arm]["peak_mib"] / 1024 for p in points], marker="o", label=arm)
        column[1].set(xlabel=name, xticks=at)
        for axes in column:
            axes.grid(alpha=0.3)
    for axes, label in zip(panels[:, 0], ("seconds of a training step", "peak GiB"), strict=True):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    panels[0, 0].legend()
    figure.savefig(file, dpi=110)
