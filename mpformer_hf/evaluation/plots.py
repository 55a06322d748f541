"""Plots of layer-wise diagnostics."""

from pathlib import Path
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ..diagnostics import LayerDiagnostics


def plot_diagnostics(diagnostics: dict[str, LayerDiagnostics], file: Path | BinaryIO) -> None:
    """Plot mask consistency (left) and query utilisation (right) over layers, one line per name; PNG or SVG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for name, values in diagnostics.items():
        consistency, utilisation = values.mask_consistency, values.query_utilisation
        left.plot(range(1, len(consistency) + 1), consistency, marker="o", label=name)
        right.plot(range(len(utilisation)), utilisation, marker="o", label=name)
    left.set(
        title="mask consistency", xlabel="decoder layer", ylabel="mean IoU with the previous layer", ylim=(0, 1.02)
    )
    right.set(title="query utilisation", xlabel="decoder layer", ylabel="share of targets at their final query")
    right.set_ylim(0, 1.02)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
