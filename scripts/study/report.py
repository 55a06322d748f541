"""Tables and figures of a study's runs, see `scripts/study/__main__.py`."""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

TITLES = {"ap": "AP", "pq": "PQ", "mean_iou": "mIoU"}


def read_lines(file: Path) -> list[dict]:
    """Lines of the finished runs."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def score_of(row: dict) -> float:
    """The main score of an evaluation: AP or PQ where there is one, else mIoU."""
    return row[metric_of(row)]


def metric_of(row: dict) -> str:
    return next(name for name in ("ap", "pq", "mean_iou") if name in row)


def curves_of(lines: list[dict], value, baseline: str = "off") -> dict[str, np.ndarray]:
    """`[seeds, evaluations]` of each arm, the baseline first, for a function of an evaluation."""
    arms = sorted(dict.fromkeys(line["arm"] for line in lines), key=lambda arm: arm != baseline)
    return {
        arm: np.array([[value(row) for row in line["evaluations"]] for line in lines if line["arm"] == arm])
        for arm in arms
    }


def paired_difference(lines: list[dict], arm: str, score=score_of, baseline: str = "off") -> tuple[float, float, int]:
    """Mean difference of final scores (a function of an evaluation) to the baseline over common seeds, half the width
    of its 95 % confidence interval (Student's t), and number of seeds."""
    final = {(line["arm"], line["seed"]): score(line["evaluations"][-1]) for line in lines}
    seeds = sorted({seed for _, seed in final if (baseline, seed) in final and (arm, seed) in final})
    differences = np.array([final[arm, seed] - final[baseline, seed] for seed in seeds])
    if len(seeds) < 2:
        return float(differences.mean()) if seeds else float("nan"), float("nan"), len(seeds)
    half = stats.t.ppf(0.975, len(seeds) - 1) * differences.std(ddof=1) / len(seeds) ** 0.5
    return float(differences.mean()), float(half), len(seeds)


def p_value(lines: list[dict], arm: str, baseline: str) -> float:
    """Two-sided p-value of the paired difference of final scores (Student's t); 1 with fewer than two common seeds."""
    mean, half, seeds = paired_difference(lines, arm, baseline=baseline)
    if seeds < 2 or half == 0:
        return 1.0
    t = mean / (half / stats.t.ppf(0.975, seeds - 1))
    return float(2 * stats.t.sf(abs(t), seeds - 1))


def correct(values: dict[str, float]) -> dict[str, float]:
    """p-values of several comparisons, corrected by Holm's method (1979)."""
    corrected, largest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, value * (len(values) - rank)))
        corrected[name] = largest
    return corrected


def shares_to_reach(lines: list[dict], arm: str, baseline: str, seconds: bool) -> list[float | None]:
    """For each common seed, the share of the baseline's steps (or of its seconds) after which an arm has the baseline's
    final score of the same seed; None if it never has."""
    runs = {(line["arm"], line["seed"]): line for line in lines}
    result = []
    for seed in sorted({seed for name, seed in runs if name == arm and (baseline, seed) in runs}):
        own, other = runs[arm, seed], runs[baseline, seed]
        steps = [row["step"] for row in own["evaluations"]]
        curve = np.array([score_of(row) for row in own["evaluations"]])
        reached = steps_to_reach(score_of(other["evaluations"][-1]), steps, curve)
        slower = own["median_step_seconds"] / other["median_step_seconds"] if seconds else 1.0
        result.append(None if reached is None else slower * reached / steps[-1])
    return result


def format_shares(shares: list[float | None]) -> str:
    """Mean with its 95 % interval over seeds; or how many seeds reach the score."""
    reached = [share for share in shares if share is not None]
    if len(reached) < len(shares) or not shares:
        return f"{len(reached)} of {len(shares)} seeds reach it"
    if len(reached) < 2:
        return f"x{reached[0]:.2f}"
    half = stats.t.ppf(0.975, len(reached) - 1) * np.std(reached, ddof=1) / len(reached) ** 0.5
    return f"x{np.mean(reached):.2f} ± {half:.2f}"


def format_difference(lines: list[dict], arm: str, score, baseline: str) -> str:
    """Mean difference with its confidence interval, and the number of seeds."""
    mean, half, seeds = paired_difference(lines, arm, score, baseline)
    return f"{mean:+.4f} ± {half:.4f} ({seeds} seeds)" if seeds > 1 else f"{mean:+.4f} (1 seed)"


def steps_to_reach(goal: float, steps: list[int], curve: np.ndarray) -> float | None:
    """Step at which a curve first reaches a score, by linear interpolation between evaluations and from (0, 0); None if
    it never does."""
    steps, curve = [0, *steps], [0.0, *curve]
    for index in range(1, len(curve)):
        if curve[index] >= goal:
            share = (goal - curve[index - 1]) / max(curve[index] - curve[index - 1], 1e-12)
            return steps[index - 1] + share * (steps[index] - steps[index - 1])
    return None


def write_table(lines: list[dict], file: Path, baseline: str = "off") -> str:
    """Write a markdown table: final scores, paired differences with corrected p-values, steps and seconds to the
    baseline's score, time per step, and peak memory (until the first evaluation) if the runs have it."""
    scores = curves_of(lines, score_of, baseline)
    seconds = {arm: np.median([x["median_step_seconds"] for x in lines if x["arm"] == arm]) for arm in scores}
    known = [line for line in lines if "peak_memory_mib" in line]
    memory = {
        arm: np.median([x["peak_memory_mib"] for x in known if x["arm"] == arm]) for arm in {x["arm"] for x in known}
    }
    first = lines[0]["evaluations"][0]
    others = [arm for arm in scores if arm != baseline and baseline in scores]
    p_values = correct({arm: p_value(lines, arm, baseline) for arm in others})
    heads = ["arm", "runs", f"final {TITLES[metric_of(first)]}, mean and spread", f"minus {baseline}, 95 % interval"]
    heads += [f"p ({len(others)} comparisons)", f"steps to the score of {baseline}", "seconds to it"]
    heads += ["step time", "peak memory"]
    rows = [heads, ["---"] * len(heads)]
    for arm, curve in scores.items():
        row = [
            arm,
            str(len(curve)),
            f"{curve[:, -1].mean():.4f} ({curve[:, -1].min():.4f} to {curve[:, -1].max():.4f})",
        ]
        if arm in others:
            difference = format_difference(lines, arm, score_of, baseline)
            for name in ("pq_things", "pq_stuff"):
                if name in first:
                    own = format_difference(lines, arm, lambda row, name=name: row[name], baseline)
                    difference += f"; {name.removeprefix('pq_')} {own}"
            shares = [format_shares(shares_to_reach(lines, arm, baseline, kind)) for kind in (False, True)]
            row += [difference, f"{p_values[arm]:.3g}", *shares]
        else:
            row += [""] * 4
        row.append(f"x{seconds[arm] / seconds[baseline]:.2f}" if baseline in scores else "")
        row.append(f"x{memory[arm] / memory[baseline]:.2f}" if {arm, baseline} <= set(memory) else "")
        rows.append(row)
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    file.write_text(text)
    return text


def plot(lines: list[dict], file: Path) -> None:
    """Plot score, mask consistency (mean over layers) and query utilisation (after half of the layers) over steps.
    Lines are means, bands span all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metric = TITLES[metric_of(lines[0]["evaluations"][0])]
    panels = {metric: score_of}
    if "mask_consistency" in lines[0]["evaluations"][0]:
        panels["mask consistency"] = lambda row: float(np.mean(row["mask_consistency"]))
        panels["query utilisation"] = lambda row: row["query_utilisation"][len(row["query_utilisation"]) // 2]
    steps = [row["step"] for row in lines[0]["evaluations"]]
    size = (3.7 * len(panels), 3.4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, constrained_layout=True)
    for panel, (title, value) in zip(axes[0], panels.items(), strict=True):
        for arm, curve in curves_of(lines, value).items():
            (line,) = panel.plot(steps, curve.mean(0), marker="o", label=f"{arm} ({len(curve)})")
            panel.fill_between(steps, curve.min(0), curve.max(0), alpha=0.2, color=line.get_color())
        panel.set(title=title, xlabel="optimizer steps", ylim=(0, None))
        panel.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def report(args: argparse.Namespace) -> None:
    """Write a table (.md) and a figure (.png) next to each file of results.

    Raises:
        ValueError: a file has no results, or runs of different lengths.
    """
    for file in args.results:
        lines = read_lines(file)
        if not lines:
            raise ValueError(f"{file} has no results.")
        if len({tuple(row["step"] for row in line["evaluations"]) for line in lines}) > 1:
            raise ValueError(f"{file} has runs that were evaluated at different steps.")
        print(file.stem, write_table(lines, file.with_suffix(".md"), args.baseline), sep="\n")
        plot(lines, file.with_suffix(".png"))
