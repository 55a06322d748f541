"""From arguments to a model and its image processor."""

import json

from transformers import AutoConfig, AutoModelForUniversalSegmentation

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation, MPFormerImageProcessor

from .arguments import DataArguments, ModelArguments, PilotArguments, TransformArguments
from .labels import Labels

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def build_model(args: ModelArguments, pilot: PilotArguments, labels: Labels) -> MPFormerForUniversalSegmentation:
    """A checkpoint with a head for `labels`, or a new model, on a pretrained backbone if one is named.

    `backbone_config` in `model_fields` describes that backbone where it differs from its own configuration.

    Raises:
        ValueError: `model_fields` is no JSON object or has an unknown field.
    """
    try:
        model_fields = json.loads(args.model_fields)
    except json.JSONDecodeError as error:
        raise ValueError(f"model_fields is not JSON: {error}.") from error
    unknown = sorted(set(model_fields) - set(MPFormerConfig().to_dict()))
    if unknown:
        raise ValueError(f"model_fields has fields that MPFormerConfig does not know: {', '.join(unknown)}.")
    classes = {"id2label": labels.id2label, "label2id": {name: i for i, name in labels.id2label.items()}}
    chosen = {**model_fields, **pilot.given(), **classes}
    if args.model_name_or_path:
        return load_checkpoint(args.model_name_or_path, chosen)
    if isinstance(chosen.get("backbone_config"), dict):
        backbone = dict(chosen["backbone_config"])
        if "model_type" not in backbone:
            raise ValueError("model_fields: backbone_config has no model_type, such as resnet or swin.")
        chosen["backbone_config"] = AutoConfig.for_model(backbone.pop("model_type"), **backbone)
    elif args.backbone:
        chosen["backbone_config"] = AutoConfig.from_pretrained(args.backbone, out_features=STAGES)
    model = AutoModelForUniversalSegmentation.from_config(MPFormerConfig(**chosen))
    if args.backbone:
        encoder = model.model.pixel_level_module.encoder
        pretrained = type(encoder).from_pretrained(args.backbone, config=chosen["backbone_config"])
        encoder.load_state_dict(pretrained.state_dict())
    return model


def load_checkpoint(name: str, fields: dict) -> MPFormerForUniversalSegmentation:
    """A checkpoint with other fields; what depends on the number of classes (or a new number of queries) starts
    afresh, and nothing else.

    Raises:
        ValueError: there is no such checkpoint, or the fields change the shape of other weights.
    """
    try:
        model, info = MPFormerForUniversalSegmentation.from_pretrained(
            name, ignore_mismatched_sizes=True, output_loading_info=True, **fields
        )
    except OSError as error:
        raise ValueError(f"model_name_or_path: cannot load {name}: {str(error).splitlines()[0]}") from error
    heads = ["class_predictor.", "pilot_class_embedder.", "criterion.empty_weight"]
    if "num_queries" in fields:
        heads += ["queries_features.", "queries_embedder."]
    lost = sorted({key for key, *_ in info["mismatched_keys"] if not any(head in key for head in heads)})
    if lost:
        raise ValueError(f"model_fields do not fit the checkpoint {name}: {len(lost)} weights, such as {lost[0]}.")
    return model


def build_processor(data: DataArguments, transforms: TransformArguments, labels: Labels) -> MPFormerImageProcessor:
    """A processor that carries the task, the evaluation size and the stuff classes."""
    return MPFormerImageProcessor(
        task=data.task,
        size={"shortest_edge": transforms.eval_shortest_edge, "longest_edge": transforms.eval_longest_edge},
        threshold=transforms.eval_threshold,
        label_ids_to_fuse=labels.stuff if data.task == "panoptic" else [],
    )
