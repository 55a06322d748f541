"""Model and image processor from arguments."""

import logging
from pathlib import Path

from transformers import AutoConfig, AutoModelForUniversalSegmentation

from ..data.arguments import DataArguments
from ..data.labels import Labels
from ..inference.loading import load_processor, load_weights
from ..model.configuration_mpformer import MPFormerConfig
from ..model.image_processing_mpformer import MPFormerImageProcessor
from ..model.modeling_mpformer import MPFormerForUniversalSegmentation
from ..utils.arguments import read_mapping
from .arguments import ModelArguments, PilotArguments, TransformArguments
from .backbones import errors_of, find_backbone

logger = logging.getLogger(__name__)
DEFAULT_THRESHOLD = 0.5


def build_model(args: ModelArguments, pilot: PilotArguments, labels: Labels) -> MPFormerForUniversalSegmentation:
    """A checkpoint with a new head for `labels`, or a new model, with a pretrained backbone if one is given.

    `backbone_config` in `model_fields` overrides the configuration of that backbone.

    Raises:
        ValueError: `model_fields` is not a JSON object or has an unknown field.
    """
    model_fields = read_mapping("model_fields", args.model_fields)
    unknown = sorted(set(model_fields) - set(MPFormerConfig().to_dict()))
    if unknown:
        raise ValueError(f"model_fields has fields that MPFormerConfig does not have: {', '.join(unknown)}.")
    if "id2label" in model_fields or "label2id" in model_fields:
        raise ValueError("model_fields: class names are read from the dataset; see --id2label.")
    label2id = {name: i for i, name in labels.id2label.items()}
    fields = {**model_fields, **args.given(), **pilot.given(), "id2label": labels.id2label, "label2id": label2id}
    if args.model_name_or_path:
        if args.backbone:
            logger.info("backbone %s is not used: %s has one.", args.backbone, args.model_name_or_path)
        return load_checkpoint(args.model_name_or_path, fields)
    if isinstance(fields.get("backbone_config"), dict):
        given = dict(fields["backbone_config"])
        if "model_type" not in given:
            raise ValueError("model_fields: backbone_config has no model_type, such as resnet or swin.")
        fields["backbone_config"] = AutoConfig.for_model(given.pop("model_type"), **given)
        unknown = sorted(set(given) - set(type(fields["backbone_config"])().to_dict()))
        if unknown:
            raise ValueError(f"model_fields: backbone_config has unknown fields: {', '.join(unknown)}.")
    backbone = find_backbone(args.backbone, fields.get("backbone_config")) if args.backbone else None
    if backbone is not None:
        if fields.get("backbone_config") not in (None, backbone.config):
            logger.info("model_fields: backbone_config is not used: %s has its own.", args.backbone)
        fields["backbone_config"] = backbone.config
    model = AutoModelForUniversalSegmentation.from_config(MPFormerConfig(**fields))
    if args.backbone and backbone is not None:
        with errors_of(args.backbone):
            model.model.pixel_level_module.encoder.load_state_dict(backbone.load_weights())
    return model


def load_checkpoint(name: str, fields: dict) -> MPFormerForUniversalSegmentation:
    """A checkpoint with other fields of the configuration. Only weights whose shapes depend on the number of classes
    (or on a new number of queries) are newly initialised.

    Raises:
        ValueError: it cannot be loaded, or the fields change the shapes of other weights.
    """
    new = ["class_predictor.", "pilot_class_embedder."]  # their shapes depend on the number of classes
    if "num_queries" in fields:
        new += ["queries_features.", "queries_embedder."]
    try:
        model = load_weights(name, tuple(new), ignore_mismatched_sizes=True, **fields)
    except ValueError as error:
        hint = "" if Path(name).is_dir() else " Without the Hub, --config quickstart trains a small model."
        raise ValueError(f"model_name_or_path and model_fields: {error}{hint}") from error
    model.config.prompt_calibration = None  # that of other weights
    return model


def find_preprocessing(args: ModelArguments) -> dict:
    """Fields of the image processor that the weights were trained with: of the checkpoint's processor, or normalisation
    and interpolation of the backbone; empty if they are unknown."""
    if args.backbone and not args.model_name_or_path:
        return find_backbone(args.backbone).normalisation
    if not args.model_name_or_path:
        return {}
    try:
        processor = load_processor(args.model_name_or_path)
    except ValueError as error:
        logger.warning("%s; images are normalised as for ImageNet.", error)
        return {}
    size = {side: value for side, value in dict(processor.size).items() if value is not None}
    names: tuple[str, ...] = (
        "image_mean",
        "image_std",
        "do_normalize",
        "do_rescale",
        "rescale_factor",
        "do_resize",
        "resample",
    )
    names += ("size_divisor", "stretch_to_divisor")
    return {"size": size, **{name: getattr(processor, name) for name in names}}


def build_processor(
    data: DataArguments, transforms: TransformArguments, labels: Labels, preprocessing: dict | None = None
) -> MPFormerImageProcessor:
    """Image processor with the task, the score threshold, the stuff classes and what the pretrained weights were
    trained with, see `find_preprocessing`. An evaluation size that is given overrides theirs."""
    fields = dict(preprocessing or {})
    if transforms.eval_shortest_edge is not None:
        fields["size"] = {"shortest_edge": transforms.eval_shortest_edge, "longest_edge": transforms.eval_longest_edge}
        fields["do_resize"] = True
    return MPFormerImageProcessor(
        **fields,
        task=data.task,
        threshold=DEFAULT_THRESHOLD if transforms.eval_threshold is None else transforms.eval_threshold,
        label_ids_to_fuse=labels.stuff if data.task == "panoptic" else [],
        category_ids=labels.category_ids if labels.category_ids != list(range(len(labels.names))) else None,
        palette=labels.palette,
    )
