"""Score over training budget. An arm `NAME_STEPS` is a complete schedule of so many steps."""

import argparse
import itertools
import math
from collections import defaultdict

import numpy as np
from scipy import stats

from .report import format_shares, read_lines, score_of

Curves = dict[str, dict[int, dict[int, float]]]  # final score by name of the arm, steps and seed
LABELS = {"on": "with the pilot", "off": "without"}


def curves_of(lines: list[dict]) -> Curves:
    """Final scores of all runs."""
    curves: Curves = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        name, _, steps = line["arm"].rpartition("_")
        curves[name][int(steps)][line["seed"]] = score_of(line["evaluations"][-1])
    return curves


def share_of_steps(curves: Curves, arm: str, baseline: str, budget: int, seed: int) -> float | None:
    """Steps that an arm needs for the baseline's score at `budget`, divided by `budget`; interpolated over log steps.
    None: it never has it. If its shortest budget suffices, this is an upper bound."""
    goal, budgets = curves[baseline][budget][seed], sorted(x for x in curves[arm] if seed in curves[arm][x])
    if curves[arm][budgets[0]][seed] >= goal:
        return budgets[0] / budget
    for first, second in itertools.pairwise(budgets):
        low, high = curves[arm][first][seed], curves[arm][second][seed]
        if low <= goal <= high:
            share = (goal - low) / max(high - low, 1e-12)
            return math.exp(math.log(first) + share * math.log(second / first)) / budget
    return None


def table_of(curves: Curves, baseline: str, goal: int) -> str:
    """A markdown table: mean and seeds of each budget, and steps to the score of the baseline at the budget `goal`."""
    budgets = sorted({steps for by_steps in curves.values() for steps in by_steps})
    rows = [
        ["arm", *(f"{steps:,} steps" for steps in budgets), f"steps to {baseline} at {goal:,}"],
        ["---"] * (len(budgets) + 2),
    ]
    for name, by_steps in curves.items():
        row = [name]
        for steps in budgets:
            scores = [score for _, score in sorted(by_steps.get(steps, {}).items())]
            row.append(f"{np.mean(scores):.3f} ({', '.join(f'{x:.3f}' for x in scores)})" if scores else "")
        shares = [share_of_steps(curves, name, baseline, goal, seed) for seed in sorted(curves[baseline][goal])]
        rows.append([*row, "" if name == baseline else format_shares(shares)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def draw(curves: Curves, metric: str, file: str) -> None:
    """Means with their 95 % intervals over seeds (Student's t), over the budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.6), constrained_layout=True)
    for name, by_steps in curves.items():
        budgets = sorted(by_steps)
        scores = [np.array([*by_steps[steps].values()]) for steps in budgets]
        halves = [stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else 0 for x in scores]
        axes.errorbar(budgets, [x.mean() for x in scores], halves, marker="o", capsize=4, label=LABELS.get(name, name))
    ticks = sorted({steps for by_steps in curves.values() for steps in by_steps})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{steps:,}" for steps in ticks], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="training steps, complete schedules", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def report_budgets(args: argparse.Namespace) -> None:
    """Print the table, and draw the figure.

    Raises:
        ValueError: the file has no runs of the baseline.
    """
    curves = curves_of(read_lines(args.results))
    if args.baseline not in curves or args.goal not in (None, *curves[args.baseline]):
        of_steps = f" with {args.goal} steps" if args.goal else ""
        raise ValueError(f"{args.results} has no runs of {args.baseline}{of_steps}.")
    print(table_of(curves, args.baseline, args.goal or max(curves[args.baseline])))
    if args.figure:
        draw(curves, args.metric, args.figure)
