"""Plot expected against true IoU of refined masks, from result files of scripts/prompt_scores.py.

python -m scripts.plot_calibration training/results/prompts_calibration.png \\
    raw=training/results/study/prompts_solids_raw_0.json calibrated=training/results/study/prompts_solids_prompts_0.json
"""

import argparse
from pathlib import Path

from matplotlib import pyplot as plt

from mpformer_hf.cli.main import run_command
from mpformer_hf.evaluation.plots import finish, save
from mpformer_hf.files import read_json


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: an argument is not NAME=FILE.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="picture to write (png, svg)")
    parser.add_argument("files", nargs="+", help="NAME=FILE of each curve")
    args = parser.parse_args(argv)
    figure, axes = plt.subplots(figsize=(5.0, 3.8), constrained_layout=True)
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle="--", label="score = IoU")
    for text in args.files:
        name, _, file = text.partition("=")
        if not file:
            raise ValueError(f"{text} is not NAME=FILE.")
        result = read_json(Path(file))
        scores, ious, counts = ([row[key] for row in result["by_score"]] for key in ("score", "iou", "results"))
        (line,) = axes.plot(scores, ious, label=f"{name}, error {result['calibration_error']:.3f}")
        sizes = [200 * count / max(counts) + 10 for count in counts]  # area: number of masks
        axes.scatter(scores, ious, s=sizes, color=line.get_color(), alpha=0.6)
    axes.set(xlabel="score of the refined mask", ylabel="mean IoU with the truth")
    finish(axes)
    save(figure, args.picture)


if __name__ == "__main__":
    run_command(main)
