"""Does mask-piloted training help? Runs that differ only in the pilot, over several seeds, and their comparison.

python -m scripts.study run --config shapes_panoptic --dataset_name data/shapes --output_dir outputs/study/shapes \\
    --results outputs/study/shapes.jsonl --seeds 0 1 2 --jobs 2
python -m scripts.study report outputs/study/shapes.jsonl

Other arms are read from a yaml file of flags by name of the arm (`--arms_file`), in which the value `"{seed}"` is the
seed of the run; the report compares all arms with `--baseline`. `--initial FOLDER` starts all runs from one saved
model; with `--own_initial` every run makes its own, for arms with different backbones.

Runs of one seed start with the same weights and use the same images, augmented equally, in the same order. Everything
else is set by the recipe, which flags after `--` override (`-- --max_train_steps 2000`). A finished run is a line of
the results file and is not repeated; an interrupted run starts again. `report` writes a figure and a table next to the
results. Scores are those of the last step, on the recipe's evaluation split; nothing is selected by them.
"""

import argparse
from pathlib import Path

from mpformer_hf.utils.command import run_command

from .budgets import report_budgets
from .report import report
from .runs import run


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train; flags after `--` are those of `mpformer train`")
    running.add_argument("--config", required=True, help="recipe of all arms")
    running.add_argument("--dataset_name", required=True, help="Hub name or local folder")
    running.add_argument("--output_dir", type=Path, required=True, help="folder of the runs")
    running.add_argument("--results", type=Path, required=True, help="JSON lines file; finished runs are appended")
    running.add_argument("--arms", nargs="+", help="arms to train; default: off and recipe, or all of --arms_file")
    running.add_argument("--arms_file", type=Path, help="yaml file of other arms: flags by name")
    start = running.add_mutually_exclusive_group()
    start.add_argument("--initial", type=Path, help="saved model that all runs start from; default: new weights")
    start.add_argument("--own_initial", action="store_true", help="every run makes its own initial weights")
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds; one run per arm and seed")
    running.add_argument("--jobs", type=int, default=1, help="number of parallel runs, which share the CPU cores")
    reporting = commands.add_parser("report", help="table and figure of finished runs")
    reporting.add_argument("results", type=Path, nargs="+", help="JSON lines of `run`")
    reporting.add_argument("--baseline", default="off", help="arm that the others are compared with")
    budgets = commands.add_parser("budgets", help="score over training budget, of arms NAME_STEPS")
    budgets.add_argument("results", type=Path, help="JSON lines of `run`")
    budgets.add_argument("--baseline", default="off", help="arm that the others are compared with")
    budgets.add_argument("--goal", type=int, help="its budget that gives the goal; default: the longest")
    budgets.add_argument("--figure", help="new picture, .png")
    budgets.add_argument("--metric", default="AP", help="name of the score in the figure")
    cut = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:cut])
    {"run": lambda args: run(args, argv[cut + 1 :]), "report": report, "budgets": report_budgets}[args.command](args)


if __name__ == "__main__":
    run_command(main)
