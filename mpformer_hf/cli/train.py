"""Fine-tune MP-Former on a dataset, or train it from scratch.

mpformer train your_dataset --task instance --output_dir outputs/yours
mpformer train you/your-dataset --config own_dataset --task panoptic --output_dir outputs/yours
mpformer train data/coco --config coco_instance_r50 --output_dir outputs/coco
mpformer train --recipes
accelerate launch --num_processes 4 -m mpformer_hf train data/coco --config coco_instance_r50 --output_dir outputs/coco

Without `--config` the recipe own_dataset is used; `--recipes` lists all. `mpformer train` starts one process; use
`accelerate launch` for several processes and machines. The output folder has model.safetensors, config.json and
preprocessor_config.json (best weights), last/ (last weights), log.jsonl, evaluations.jsonl, all_results.json, pictures/
(ground truth and prediction) and README.md (the model card). Needs `pip install "mpformer-hf[train]"`.
"""

from ..training.arguments import DEFAULT_RECIPE, STARTS, parse_arguments
from ..utils.recipes import recipe_descriptions


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    if "--recipes" in argv:
        print("\n".join(f"{name:32} {description}" for name, description in recipe_descriptions().items()))
        return
    names = {flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in argv if flag.startswith("--")}
    given = not names.isdisjoint({"config", *STARTS})
    args = parse_arguments(argv if given else [*argv, "--config", DEFAULT_RECIPE], __doc__, "mpformer train")
    from ..training.finetune import finetune

    finetune(args)
