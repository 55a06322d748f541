"""Calibration of prompt scores: from the raw score of a refined mask to the IoU that such masks have on average."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

MOST_KNOTS = 20
LEAST_MASKS = 50


def fit_calibration(scores: Sequence[float], ious: Sequence[float]) -> list[list[float]]:
    """A non-decreasing, piecewise linear function from scores to mean IoU: isotonic regression (Zadrozny and Elkan,
    2002) of the means of up to 20 groups of equal size. It falls to 0 at the score 0.

    Args:
        scores: raw scores, in [0, 1].
        ious: IoU of each mask with the truth.

    Returns:
        `[scores, IoUs]` of the knots, the scores increasing.

    Raises:
        ValueError: there are fewer than 50 masks, or all scores are 0.
    """
    if len(scores) < LEAST_MASKS:
        raise ValueError(f"A calibration needs at least {LEAST_MASKS} refined masks, there are {len(scores)}.")
    order = np.argsort(scores, kind="stable")
    groups = [group for group in np.array_split(order, MOST_KNOTS) if len(group)]
    x, y = (np.array([np.mean(np.asarray(values)[group]) for group in groups]) for values in (scores, ious))
    x, group_of = np.unique(x.round(6), return_inverse=True)
    if x[-1] == 0:
        raise ValueError("All scores are 0: the model finds no pixel of the prompts, there is nothing to calibrate.")
    sizes = np.bincount(group_of, weights=[len(group) for group in groups])
    means = np.bincount(group_of, weights=y * [len(group) for group in groups]) / sizes
    fitted = isotonic_regression(means, weights=sizes).x
    first = [0.0] if x[0] > 0 else []
    return [first + x.tolist(), first + fitted.round(6).tolist()]


def calibration_error(scores: Sequence[float], ious: Sequence[float]) -> float:
    """Expected calibration error (Guo et al., 2017, equation 3): mean of |mean score - mean IoU| over ten bins of the
    score, weighted by their sizes."""
    given, truth = np.asarray(scores, dtype=float), np.asarray(ious, dtype=float)
    bins = np.minimum((given * 10).astype(int), 9)
    gaps = [abs(given[bins == i].mean() - truth[bins == i].mean()) * (bins == i).mean() for i in set(bins.tolist())]
    return float(sum(gaps))
