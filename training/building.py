"""Model and image processor from arguments."""

import json

from transformers import AutoConfig, AutoModelForUniversalSegmentation

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.data.labels import Labels
from mpformer_hf.loading import PILOT_EMBEDDER, load_weights

from .arguments import DataArguments, ModelArguments, PilotArguments, TransformArguments

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def build_model(args: ModelArguments, pilot: PilotArguments, labels: Labels) -> MPFormerForUniversalSegmentation:
    """A checkpoint with a new head for `labels`, or a new model, with a pretrained backbone if one is given.

    `backbone_config` in `model_fields` overrides the configuration of that backbone.

    Raises:
        ValueError: `model_fields` is not a JSON object or has an unknown field.
    """
    try:
        model_fields = json.loads(args.model_fields)
    except json.JSONDecodeError as error:
        raise ValueError(f"model_fields is not JSON: {error}.") from error
    if not isinstance(model_fields, dict):
        raise ValueError(f"model_fields must be a mapping of fields, got {args.model_fields}.")
    unknown = sorted(set(model_fields) - set(MPFormerConfig().to_dict()))
    if unknown:
        raise ValueError(f"model_fields has fields that MPFormerConfig does not have: {', '.join(unknown)}.")
    label2id = {name: i for i, name in labels.id2label.items()}
    fields = {**model_fields, **pilot.given(), "id2label": labels.id2label, "label2id": label2id}
    if args.model_name_or_path:
        return load_checkpoint(args.model_name_or_path, fields)
    if isinstance(fields.get("backbone_config"), dict):
        backbone = dict(fields["backbone_config"])
        if "model_type" not in backbone:
            raise ValueError("model_fields: backbone_config has no model_type, such as resnet or swin.")
        fields["backbone_config"] = AutoConfig.for_model(backbone.pop("model_type"), **backbone)
    elif args.backbone:
        fields["backbone_config"] = AutoConfig.from_pretrained(args.backbone, out_features=STAGES)
    model = AutoModelForUniversalSegmentation.from_config(MPFormerConfig(**fields))
    if args.backbone:
        encoder = model.model.pixel_level_module.encoder
        pretrained = type(encoder).from_pretrained(args.backbone, config=fields["backbone_config"])
        encoder.load_state_dict(pretrained.state_dict())
    return model


def load_checkpoint(name: str, fields: dict) -> MPFormerForUniversalSegmentation:
    """A checkpoint with other fields of the configuration. Only weights whose shapes depend on the number of classes
    (or on a new number of queries) are newly initialised.

    Raises:
        ValueError: it cannot be loaded, or the fields change the shapes of other weights.
    """
    new = ["class_predictor.", PILOT_EMBEDDER]
    if "num_queries" in fields:
        new += ["queries_features.", "queries_embedder."]
    try:
        return load_weights(name, tuple(new), ignore_mismatched_sizes=True, **fields)
    except ValueError as error:
        raise ValueError(f"model_name_or_path and model_fields: {error}") from error


def build_processor(data: DataArguments, transforms: TransformArguments, labels: Labels) -> MPFormerImageProcessor:
    """Image processor with the task, the evaluation size, the score threshold and the stuff classes."""
    return MPFormerImageProcessor(
        task=data.task,
        size={"shortest_edge": transforms.eval_shortest_edge, "longest_edge": transforms.eval_longest_edge},
        threshold=transforms.eval_threshold,
        label_ids_to_fuse=labels.stuff if data.task == "panoptic" else [],
    )
