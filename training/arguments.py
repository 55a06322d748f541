"""Every flag of the training scripts, one dataclass per concern; `--config recipe.yaml` sets them, flags override."""

import argparse
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

RECIPES = Path(__file__).parent / "recipes"


def option(default, help: str, **kwargs):
    """A dataclass field with its help line."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help, **kwargs})
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class ModelArguments:
    """Where the model comes from."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(None, "MP-Former or Mask2Former to start from: Hub name or folder.")
    backbone: str | None = option(None, "Pretrained backbone for a new model: Hub name or folder.")
    model_fields: str = option("{}", "Fields of MPFormerConfig as JSON (a mapping in a recipe), e.g. hidden_dim.")


@dataclass
class PilotArguments:
    """The mask pilot; what is not given stays as the checkpoint or MPFormerConfig has it."""

    _argument_group_name = "pilot"

    mask_piloting: bool | None = option(None, "Train with pilot queries; false trains a plain Mask2Former.")
    pilot_groups: int | None = option(None, "Independent groups of pilot queries.")
    pilot_query_budget: int | None = option(None, "Groups = budget // most targets of an image in the batch.")
    pilot_layers: int | None = option(None, "Number of first cross-attentions that use ground-truth masks.")
    pilot_noise: str | None = option(None, "Mask noise: point, shift, scale, shift_scale, patch or dropout.")
    pilot_noise_scale: float | None = option(None, "Strength of the mask noise, 0 = clean masks.")
    pilot_label_noise: float | None = option(None, "Share of pilot queries that are shown a random class.")
    pilot_per_head_noise: bool | None = option(None, "Draw the mask noise anew for each attention head.")
    pilot_class_loss: bool | None = option(None, "Classify the pilot queries too.")
    pilot_loss_weight: float | None = option(None, "Factor on all pilot losses.")

    def given(self) -> dict:
        """Fields that were set."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass
class DataArguments:
    """The dataset and how to read it."""

    _argument_group_name = "data"

    dataset_name: str | None = option(None, "Dataset: Hub name, or a local folder in the Hub's layout.")
    dataset_config_name: str | None = option(None, "Configuration of the dataset.")
    task: str = option("panoptic", "semantic, instance or panoptic.")
    train_split: str = option("train", "Split to train on.")
    eval_split: str = option("validation", "Split to evaluate on.")
    image_column: str | None = option(None, "Column of the images; default: image or pixel_values.")
    label_column: str | None = option(None, "Column of the maps; default: label, annotation or segmentation.")
    id2label: str | None = option(None, "JSON file of class names, or ade20k, ...; default: from the dataset.")
    do_reduce_labels: bool = option(False, "Class 0 of the maps is void, every other class one less.")
    void_label: int = option(255, "Id of void in semantic maps, beside 255.")
    streaming: bool = option(False, "Read the dataset while it is used, for sets that do not fit on the disk.")
    shuffle_buffer: int = option(1000, "streaming: images to choose the next one from.")
    drop_empty: bool = option(False, "Leave out training images without any object, as detectron2 does for instances.")
    max_train_samples: int | None = option(None, "Use only the first images of the training split.")
    max_eval_samples: int | None = option(None, "Use only the first images of the evaluation split.")
    dataloader_num_workers: int = option(2, "Processes that load and augment images.")


@dataclass
class TransformArguments:
    """Augmentation and sizes."""

    _argument_group_name = "augmentation and sizes"

    augmentation: str = option("lsj", "lsj (large-scale jitter), crop (shortest edge, then crop) or none.")
    crop_size: list[int] = option([1024, 1024], "Height and width of training images, for lsj and crop.")
    scale_range: list[float] = option([0.1, 2.0], "lsj: image scale relative to crop_size.")
    shortest_edges: list[int] = option([], "crop: shortest edges to choose from; default: 0.5 to 2 x crop height.")
    longest_edge: int = option(4096, "crop: limit of the longest edge.")
    max_category_share: float = option(1.0, "crop: largest share of one class in a crop; 1 = any.")
    color_jitter: bool = option(False, "SSD colour jitter.")
    horizontal_flip: bool = option(True, "Flip every second image.")
    eval_shortest_edge: int = option(800, "Shortest edge in evaluation, stored in the processor.")
    eval_longest_edge: int = option(1333, "Limit of the longest edge in evaluation, stored in the processor.")
    eval_threshold: float = option(0.5, "Smallest score of a segment or instance, stored in the processor.")


@dataclass
class OptimizationArguments:
    """AdamW and its schedule; defaults are the official recipe."""

    _argument_group_name = "optimization"

    learning_rate: float = option(1e-4, "Peak learning rate.")
    backbone_lr_multiplier: float = option(0.1, "Factor for the backbone's learning rate.")
    weight_decay: float = option(0.05, "Weight decay, 0 for norms and embeddings.")
    max_grad_norm: float = option(0.01, "Clip the L2 norm of all gradients.")
    lr_schedule: str = option("step", "step, poly or constant.")
    lr_milestones: list[float] = option([0.9, 0.95], "step: divide by 10 after these shares of all steps.")
    poly_power: float = option(0.9, "poly: power of the decay.")
    warmup_steps: int = option(0, "Linear warm-up.")
    num_train_epochs: float = option(50.0, "Passes over the training split.")
    max_train_steps: int | None = option(None, "Optimizer steps; overrides num_train_epochs.")
    per_device_train_batch_size: int = option(2, "Images per process and forward pass.")
    gradient_accumulation_steps: int = option(1, "Forward passes per optimizer step.")
    mixed_precision: str | None = option(None, "no, bf16 or fp16; default: as accelerate is configured.")
    gradient_checkpointing: bool = option(False, "Compute activations again in the backward pass to save memory.")
    freeze_batch_norm: bool = option(False, "Keep the backbone's batch norms as they are.")
    freeze_backbone: bool = option(False, "Train the decoders alone.")
    ema_decay: float | None = option(None, "Evaluate and save moving averages of the weights, e.g. with 0.999.")
    torch_compile: bool = option(False, "Compile backbone and decoders; worth it for long runs at one image size.")


@dataclass
class RunArguments:
    """Output, evaluation and randomness."""

    _argument_group_name = "run"

    output_dir: str | None = option(None, "New or empty folder for weights, results, log and pictures.")
    eval_steps: int | None = option(None, "Evaluate every so many steps; default: only at the end.")
    eval_on_start: bool = option(False, "Evaluate the model before training too.")
    per_device_eval_batch_size: int = option(1, "Images per process in evaluation.")
    diagnostics: bool = option(False, "Mask consistency and query utilisation by layer in every evaluation.")
    metric_for_best: str | None = option(None, "Metric that picks the best weights; default: pq or mean_iou.")
    num_pictures: int = option(4, "Overlays of evaluation images in the output folder.")
    max_detections: int = option(100, "Instances of an image that count for AP.")
    early_stopping_patience: int | None = option(None, "Stop after so many evaluations without a better score.")
    checkpointing_steps: int | None = option(None, "Keep a checkpoint to resume from every so many steps.")
    resume_from_checkpoint: str | None = option(None, "latest, or a checkpoint folder; goes on exactly where it was.")
    report_to: str | None = option(
        None, "Trackers of accelerate: tensorboard, wandb, ...; several with commas, or all."
    )
    push_to_hub: bool = option(False, "Publish the best weights at the end.")
    hub_model_id: str | None = option(None, "push_to_hub: name on the Hub; default: the output folder's.")
    seed: int = option(0, "Seed of initial weights, data order, augmentation and pilot noise.")


RECIPE_CLASSES = [
    ModelArguments,
    PilotArguments,
    DataArguments,
    TransformArguments,
    OptimizationArguments,
    RunArguments,
]


def read_recipe(path: str) -> dict:
    """A yaml file as a mapping; its `base`, one file or several, relative to it, comes first. Later values replace
    earlier ones; mappings (`model_fields`) are merged.

    Raises:
        ValueError: no such file, or no mapping of flags.
    """
    file = Path(path)
    if not file.is_file():
        known = ", ".join(sorted(str(recipe.relative_to(RECIPES)) for recipe in RECIPES.rglob("*.yaml")))
        raise ValueError(f"Recipe {path} does not exist; there are: {known}.")
    content = yaml.safe_load(file.read_text()) or {}
    if not isinstance(content, dict):
        raise ValueError(f"Recipe {path} must be a mapping of flags to values.")
    bases = content.pop("base", [])
    merged: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, read_recipe(str(file.parent / base)))
    return merge(merged, content)


def merge(first: dict, second: dict) -> dict:
    """`second` over `first`, mappings inside merged too; a mapping of another `model_type` replaces."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(first.get(key), dict)
        if both and value.get("model_type") == first[key].get("model_type"):
            value = merge(first[key], value)
        result[key] = value
    return result


def as_flags(recipe: dict) -> list[str]:
    """`{"a": 1, "b": [2, 3], "c": {"d": 4}}` -> `["--a", "1", "--b", "2", "3", "--c", '{"d": 4}']`."""
    flags = []
    for name, value in recipe.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if not values:
            continue
        flags += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
    return flags


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """One line for each flag, with its default; of `--a_b` and `--a-b`, which both work, the first."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=40, width=150)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return action.option_strings[0]
        kind = {"string_to_bool": "bool"}.get(action.type.__name__, action.type.__name__)
        return f"{action.option_strings[0]} {kind}{' ...' if action.nargs == '+' else ''}"

    def _get_help_string(self, action: argparse.Action) -> str:
        unset = action.default is None or action.nargs == 0
        return action.help if unset else super()._get_help_string(action)


def parse(classes: list[type], argv: list[str] | None = None, description: str | None = None) -> tuple:
    """One instance of each dataclass, from `--config` and flags.

    Raises:
        ValueError: the recipe is missing or has an unknown flag.
    """
    recipe_parser = argparse.ArgumentParser(add_help=False)
    recipe_parser.add_argument(
        "--config",
        nargs="+",
        type=str,
        help="Recipes, yaml files of flags: later ones override earlier ones, flags override all.",
    )
    recipe_args, flags = recipe_parser.parse_known_args(argv)
    own = {f.name for cls in classes for f in fields(cls)}
    if recipe_args.config:
        recipe: dict = {}
        for path in recipe_args.config:
            recipe = merge(recipe, read_recipe(path))
        unknown = sorted(set(recipe) - own - {f.name for cls in RECIPE_CLASSES for f in fields(cls)})
        if unknown:
            raise ValueError(f"Recipe {', '.join(recipe_args.config)} has unknown flags: {', '.join(unknown)}.")
        recipe = {name: value for name, value in recipe.items() if name in own}  # evaluate.py has no optimizer
        flags = as_flags(recipe) + flags
    parser = HfArgumentParser(
        classes,
        description=description,
        usage="%(prog)s [--config RECIPE ...] [--flag value ...]",
        parents=[recipe_parser],
        formatter_class=HelpFormatter,
    )
    return parser.parse_args_into_dataclasses(flags)[: len(classes)]
