"""All flags of the training scripts, one dataclass per concern; `--config recipe.yaml` sets them, flags override."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_type_hints

from ..data.arguments import TrainingDataArguments
from ..model.ranges import PILOT_NOISES, RANGES, VOID_IN_LOSS
from ..utils.arguments import CheckedArguments, option, parse

DEFAULT_RECIPE = "own_dataset"  # of `mpformer train` and `mpformer_hf.train`, unless a recipe or a model is given
STARTS = ("model_name_or_path", "backbone", "model_fields")


@dataclass
class ModelArguments(CheckedArguments):
    """Where the model comes from."""

    _argument_group_name = "model"
    _advanced = ("incomplete_no_object_weight",)

    model_name_or_path: str | None = option(None, "MP-Former or Mask2Former to start from: Hub name or folder.")
    backbone: str | None = option(
        None, "Pretrained backbone of a new model: Hub name or folder, timm/NAME, or efficientnet_lite0."
    )
    model_fields: str = option("{}", "Fields of MPFormerConfig as JSON (a mapping in a recipe), e.g. hidden_dim.")
    void_in_loss: str | None = option(
        None,
        "ignored: void has no loss, predictions on crowds are no errors (default); background: as in official code.",
        choices=VOID_IN_LOSS,
    )
    incomplete_no_object_weight: float | None = option(
        None,
        "Incomplete images: factor on the no-object loss of unmatched queries off the labelled objects; default: 0.3.",
        within=RANGES["incomplete_no_object_weight"],
    )

    def given(self) -> dict:
        """Fields of the configuration that were set, besides `model_fields`."""
        names = ("void_in_loss", "incomplete_no_object_weight")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class PilotArguments(CheckedArguments):
    """Mask-piloted training; the default of each flag is the checkpoint's value or MPFormerConfig's."""

    _argument_group_name = "pilot"
    _advanced = (
        *("pilot_query_budget", "pilot_layers", "pilot_per_head_noise", "pilot_class_loss", "pilot_loss_weight"),
    )

    mask_piloting: bool | None = option(None, "Train with pilot queries; false trains a plain Mask2Former.")
    pilot_groups: int | None = option(None, "Independent groups of pilot queries.", within=RANGES["pilot_groups"])
    pilot_query_budget: int | None = option(
        None, "Groups = budget // largest number of targets in the batch.", within=RANGES["pilot_query_budget"]
    )
    pilot_layers: int | None = option(
        None, "Number of cross-attentions, from the first, that use ground-truth masks.", within=RANGES["pilot_layers"]
    )
    pilot_noise: list[str] | None = option(None, "Kind of mask noise, or several.", choices=(*PILOT_NOISES, "clean"))
    pilot_noise_scale: float | None = option(
        None, "Strength of the mask noise, 0 = clean masks.", within=RANGES["pilot_noise_scale"]
    )
    pilot_label_noise: float | None = option(
        None, "Share of pilot queries that get the embedding of a random class.", within=RANGES["pilot_label_noise"]
    )
    pilot_per_head_noise: bool | None = option(None, "Draw separate mask noise for each attention head.")
    pilot_class_loss: bool | None = option(None, "Classify the pilot queries too.")
    pilot_loss_weight: float | None = option(None, "Factor on all pilot losses.", within=RANGES["pilot_loss_weight"])

    def given(self) -> dict:
        """Fields that were set."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass
class TransformArguments(CheckedArguments):
    """Augmentation and sizes."""

    _argument_group_name = "augmentation and sizes"
    _advanced = ("longest_edge", "max_category_share")

    augmentation: Literal["auto", "lsj", "crop", "none"] = option(
        "lsj", "lsj: large-scale jitter; crop: resize, then crop; auto: by epochs."
    )
    crop_size: list[int] = option(
        [1024, 1024], "Height and width of training images, for lsj and crop.", within="[1, 32768]"
    )
    scale_range: list[float] = option([0.1, 2.0], "lsj: image scale relative to crop_size.", within="(0, 100]")
    shortest_edges: list[int] = option(
        [], "crop: shortest edges to choose from; default: 0.5 to 2 x crop height.", within="[1, 32768]"
    )
    longest_edge: int = option(4096, "crop: limit of the longest edge.", within="[1, 32768]")
    max_category_share: float = option(1.0, "crop: largest share of one class in a crop; 1 = any.", within="(0, 1]")
    color_jitter: bool = option(False, "SSD photometric distortion.")
    horizontal_flip: bool = option(True, "Flip horizontally with probability 0.5.")
    eval_shortest_edge: int | None = option(
        None, "Shortest edge in evaluation, stored in the processor; default: the checkpoint's.", within="[32, 32768]"
    )
    eval_longest_edge: int | None = option(
        None, "Limit of the longest edge in evaluation; default: the checkpoint's.", within="[32, 32768]"
    )
    eval_threshold: float | None = option(
        None,
        "Smallest score, stored in the processor; default: for instances that of the best F1 in evaluation, else 0.5.",
        within="[0, 1]",
    )

    def __post_init__(self):
        super().__post_init__()
        if len(self.crop_size) != 2:
            raise ValueError(f"crop_size must be height and width, got {self.crop_size}.")
        if len(self.scale_range) != 2 or self.scale_range[0] > self.scale_range[1]:
            raise ValueError(f"scale_range must be the smallest and the largest scale, got {self.scale_range}.")
        if (self.eval_shortest_edge is None) != (self.eval_longest_edge is None):
            raise ValueError("eval_shortest_edge and eval_longest_edge must be given together.")
        if self.eval_shortest_edge is not None and self.eval_shortest_edge > (self.eval_longest_edge or math.inf):
            raise ValueError(
                f"eval_shortest_edge must be at most eval_longest_edge, got {self.eval_shortest_edge} and "
                f"{self.eval_longest_edge}."
            )


@dataclass
class OptimizationArguments(CheckedArguments):
    """AdamW and its schedule; defaults are the official recipe."""

    _argument_group_name = "optimization"
    _advanced = ("poly_power", "layer_decay", "freeze_batch_norm")

    learning_rate: float = option(1e-4, "Peak learning rate.", within="(0, inf)")
    backbone_lr_multiplier: float = option(0.1, "Factor for the backbone's learning rate.", within="[0, inf)")
    layer_decay: float = option(
        1.0, "ViT backbones: factor on the learning rate from one layer to the one below it.", within="(0, 1]"
    )
    weight_decay: float = option(
        0.05, "Weight decay; none for norms, embeddings and position tables.", within="[0, inf)"
    )
    adam_beta2: float = option(
        0.999, "AdamW's decay of squared gradients; see docs/train.md, few steps.", within="[0, 1)"
    )
    max_grad_norm: float = option(
        0.01, "Clip the total L2 norm of gradients to this value; 0: do not clip.", within="[0, inf)"
    )
    lr_schedule: Literal["step", "poly", "constant"] = option("step", "Learning-rate schedule.")
    lr_milestones: list[float] = option(
        [0.9, 0.95], "step: divide by 10 after these shares of all steps.", within="(0, 1]"
    )
    poly_power: float = option(0.9, "poly: power of the decay.", within="(0, inf)")
    warmup_steps: int = option(0, "Steps of linear warm-up.", within="[0, inf)")
    num_train_epochs: float = option(50.0, "Passes over the training split.", within="(0, inf)")
    max_train_steps: int | None = option(None, "Optimizer steps; overrides num_train_epochs.", within="[1, inf)")
    per_device_train_batch_size: int = option(2, "Images per process and forward pass.", within="[1, inf)")
    gradient_accumulation_steps: int = option(1, "Forward passes per optimizer step.", within="[1, inf)")
    freeze_batch_norm: bool = option(False, "Freeze the backbone's batch norms.")
    freeze_backbone: bool = option(False, "Freeze the backbone.")
    lora_rank: int | None = option(
        None,
        "Train low-rank adapters (LoRA) of the backbone, at its learning rate, not its weights.",
        within="[1, inf)",
    )
    ema_decay: float | None = option(
        None, "Evaluate and save a moving average of the weights, e.g. 0.999.", within="[0, 1)"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.lr_milestones != sorted(self.lr_milestones):
            raise ValueError(f"lr_milestones must ascend, got {self.lr_milestones}.")
        if self.lora_rank and self.freeze_backbone:
            raise ValueError("lora_rank trains adapters of the backbone, freeze_backbone nothing of it; give one.")


@dataclass
class SpeedArguments(CheckedArguments):
    """Precision, compilation, and what saves memory."""

    _argument_group_name = "speed and memory"

    mixed_precision: Literal["no", "bf16", "fp16"] | None = option(None, "Default: as accelerate is configured.")
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass to save memory.")
    recompute_encoder: bool = option(True, "Recompute activations of the pixel decoder's encoder, to save memory.")
    find_batch_size: bool = option(
        False, "Out of memory: go on with fewer images per forward pass and more passes per step; one process."
    )
    torch_compile: Literal["none", "blocks", "model"] = option(
        "none", "Compile layers (blocks), or backbone and decoders as a whole; for long runs at one image size."
    )
    tf32: bool = option(False, "Faster products and convolutions of float32 on NVIDIA GPUs, with 10 bits of mantissa.")
    cudnn_benchmark: bool = option(False, "NVIDIA GPUs: try convolution algorithms for each new image size.")
    static_graph: bool = option(False, "DDP's static_graph: all steps use the same parameters, in the same order.")

    def __post_init__(self):
        super().__post_init__()
        if self.gradient_checkpointing and not self.recompute_encoder:
            raise ValueError("gradient_checkpointing recomputes the encoder too: leave out recompute_encoder false.")
        if self.static_graph and self.find_batch_size:
            raise ValueError("static_graph is for several processes, find_batch_size for one; give one of them.")


@dataclass
class OwnPartArguments(CheckedArguments):
    """Classes and functions that replace ours, see docs/extend.md."""

    _argument_group_name = "own parts"

    criterion: str | None = option(
        None, "MODULE:NAME of a class instead of MPFormerCriterion, made with the configuration."
    )
    matcher: str | None = option(
        None, "MODULE:NAME of a class instead of HungarianMatcher, made with the configuration."
    )
    transform: str | None = option(
        None, "MODULE:NAME of a function of (image, segments, classes) after the augmentation."
    )
    metrics: list[str] = option([], "MODULE:NAME of classes of further metrics for the evaluation.")


OWN_PARTS = tuple(f.name for f in fields(OwnPartArguments))


@dataclass
class RunArguments(CheckedArguments):
    """Output, evaluation and randomness."""

    _argument_group_name = "run"
    _advanced = ("eval_on_start", "eval_loss", "diagnostics", "metric_for_best", "num_pictures")

    output_dir: str = option("", "New or empty folder for weights, results, log and pictures.")
    eval_steps: int | None = option(None, "Steps between evaluations; default: only at the end.", within="[1, inf)")
    eval_on_start: bool = option(False, "Also evaluate before training.")
    per_device_eval_batch_size: int = option(1, "Images per process and forward pass in evaluation.", within="[1, inf)")
    eval_loss: bool = option(True, "Also log the loss on the evaluation split (one process).")
    logging_steps: int = option(10, "Steps of a line of log.jsonl, which has their means.", within="[1, inf)")
    diagnostics: bool = option(False, "Mask consistency and query utilisation by layer in every evaluation.")
    metric_for_best: str | None = option(None, "Metric that selects the best weights; default: pq, ap or mean_iou.")
    num_pictures: int = option(4, "Number of overlays of evaluation images in the output folder.", within="[0, inf)")
    max_detections: int = option(100, "Best-scored instances of an image that are counted for AP.", within="[1, inf)")
    early_stopping_patience: int | None = option(
        None, "Stop after this many evaluations without a better score.", within="[1, inf)"
    )
    checkpointing_steps: int | None = option(None, "Steps between checkpoints to resume from.", within="[1, inf)")
    save_total_limit: int = option(2, "Number of newest checkpoints to keep.", within="[1, inf)")
    resume_from_checkpoint: str | None = option(None, "latest, or a checkpoint folder.")
    report_to: str | None = option(
        None, "Trackers of accelerate: tensorboard, wandb, ...; a comma-separated list, or all."
    )
    push_to_hub: bool = option(False, "Publish the best weights at the end.")
    hub_model_id: str | None = option(None, "push_to_hub: name on the Hub; default: the output folder's.")
    seed: int = option(
        0, "Seed of initial weights, data order, augmentation and pilot noise.", within="[0, 4294967295]"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.early_stopping_patience and not self.eval_steps:
            raise ValueError("early_stopping_patience needs eval_steps: there is only one evaluation, at the end.")


@dataclass
class Arguments:
    """All arguments of a training run."""

    model: ModelArguments
    pilot: PilotArguments
    data: TrainingDataArguments
    transforms: TransformArguments
    optimization: OptimizationArguments
    speed: SpeedArguments
    own: OwnPartArguments
    run: RunArguments

    def __post_init__(self):
        if self.speed.static_graph and self.optimization.gradient_accumulation_steps > 1:
            raise ValueError("static_graph does not work with gradient_accumulation_steps above 1.")

    def as_dict(self) -> dict:
        """All flags by name."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}


def parse_arguments(argv: list[str], description: str | None = None, prog: str | None = None) -> Arguments:
    """Parse recipes and flags.

    Raises:
        ValueError: a recipe is invalid or has an unknown flag, or a number is outside its interval.
    """
    return Arguments(*parse(list(get_type_hints(Arguments).values()), argv, description, prog))
