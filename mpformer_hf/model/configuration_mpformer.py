"""Configuration of MP-Former: Mask2Former's fields and those of the mask pilot."""

from functools import partial

from huggingface_hub.dataclasses import strict, validated_field
from transformers import Mask2FormerConfig

from .ranges import MASK_NOISES, PILOT_NOISES, RANGES, VOID_IN_LOSS, check_range

BACKBONES = (  # tested; others get a warning
    *("resnet", "swin", "swinv2", "convnext", "convnextv2", "dinov3_convnext", "pvt_v2", "hgnet_v2", "textnet"),
    *("dinov2", "dinov2_with_registers", "dinov3_vit", "vitdet", "beit", "hiera", "timm_backbone"),
)
LARGEST_NUM_LABELS = 65536  # label maps have 16 bits
LARGEST_DEPTH = 1000  # layers of a stage of the backbone


def is_calibration(knots) -> bool:
    """Whether a value is None or the two lists that `mpformer calibrate` writes."""
    if knots is None:
        return True
    lists = isinstance(knots, (list, tuple)) and len(knots) == 2 and all(isinstance(x, (list, tuple)) for x in knots)
    if not lists or not 2 <= len(knots[0]) == len(knots[1]):
        return False
    numbers = all(isinstance(x, (int, float)) and 0 <= x <= 1 for values in knots for x in values)
    return numbers and all(low < high for low, high in zip(knots[0], knots[0][1:], strict=False))


def check_sizes(fields: dict) -> None:
    """Check the numbers of classes and backbone layers in a file, before anything is made of them.

    Raises:
        ValueError: one is far too large.
    """
    backbone = fields.get("backbone_config")
    depths = backbone.get("depths") if isinstance(backbone, dict) else None
    for name, value, largest in (
        ("num_labels", fields.get("num_labels"), LARGEST_NUM_LABELS),
        *(("backbone_config.depths", depth, LARGEST_DEPTH) for depth in (depths if isinstance(depths, list) else ())),
    ):
        if isinstance(value, int) and value > largest:
            raise ValueError(f"{name} must be at most {largest}, got {value}.")


def check_origins(fields: dict) -> None:
    """Check that a file names no code and no weights that lie elsewhere.

    Raises:
        ValueError: it does.
    """
    backbone = fields.get("backbone_config")
    backbone = backbone if isinstance(backbone, dict) else {}
    for holder in (fields, backbone):
        for name in ("attn_implementation", "_attn_implementation"):
            if isinstance(holder.get(name), str) and "/" in holder[name]:
                raise ValueError(f"{name} must be built into transformers, got {holder[name]!r}.")
    if isinstance(fields.get("backbone"), str):
        raise ValueError(f"backbone names the model {fields['backbone']!r}: give its configuration, backbone_config.")
    if ":" in str(backbone.get("backbone")):
        raise ValueError(f"backbone_config.backbone must be the name of a timm model, got {backbone['backbone']!r}.")


def ranged(name: str, default):
    """A field whose value is checked against its interval in `RANGES` at every assignment."""
    return validated_field(partial(check_range, name, interval=RANGES[name]), default=default)


@strict(accept_kwargs=True)
class MPFormerConfig(Mask2FormerConfig):
    """Mask2Former's configuration with that of the mask pilot (MP-Former, CVPR 2023, section 3).

    All fields of [`Mask2FormerConfig`] have the same meaning and defaults. As there, `decoder_layers` counts
    predictions: 10 means 9 decoder layers and the prediction of the initial queries. The pilot is used in training
    only.

    Args:
        mask_piloting (`bool`, defaults to `True`): train with pilot queries; False is a plain Mask2Former.
        pilot_groups (`int >= 1`, defaults to 1): independent copies of the pilot queries.
        pilot_query_budget (`int >= 1`, *optional*): if set, overrides `pilot_groups` with
            `max(1, budget // largest number of targets of an image in the batch)`.
        pilot_layers (`int >= 0`, *optional*): the first k cross-attentions use ground-truth masks; None means all.
        pilot_noise (`str` or `list[str]`, defaults to `"point"`): point, shift, scale, shift_scale, patch, dropout, box
            or outline; or several of shift, scale, shift_scale, patch, box, outline and clean, of which each pilot
            query draws one (a name that is given twice is drawn twice as often).
        pilot_noise_scale (`float >= 0`, defaults to 0.0): strength s of the mask noise; 0 is the clean mask. point:
            cells are flipped with probability s x foreground share; dropout: removed with probability s; shift: by up
            to s / 2 of the box's sides; scale: by a factor in [1 / (1 + s), 1 + s]; patch: of s x the mask's area; box:
            the bounding box, also with s = 0, with sides moved by up to s / 2 of its width or height; outline: dilated
            or eroded by up to s / 2 of the square root of the mask's area.
        pilot_label_noise (`float` in [0, 1], defaults to 0.2): share of pilot queries that get the embedding of a
            random class.
        pilot_per_head_noise (`bool`, defaults to `False`): draw separate mask noise for each attention head.
        pilot_class_loss (`bool`, defaults to `True`): classify the pilot queries too.
        pilot_loss_weight (`float >= 0`, defaults to 1.0): factor on all pilot losses.
        query_position_embeddings (`bool`, defaults to `True`): learned position embeddings of the queries. Mask2Former
            has them, the public MP-Former release does not.
        feature_pyramid (`bool`, *optional*): make the feature maps at strides 4, 8, 16 and 32 from one map of the
            backbone (simple feature pyramid of ViTDet); None: for backbones whose maps have one stride (ViTs).
        mask_loss_points (`str`, defaults to `"image"`): how candidate points of the mask losses are drawn: once per
            `image`, for all predictions and the pilot; or once per `mask`, as in the official code.
        void_in_loss (`str`, defaults to `"ignored"`): void has no loss, and predictions on crowds are no errors
            (`ignored`); or both are background (`background`), as in the official code.
        incomplete_no_object_weight (`float` in [0, 1], defaults to 0.3): in an image that is not complete, factor on
            the loss of an unmatched query off the labelled objects.
        prompt_calibration (`list[list[float]]`, *optional*): scores and the mean IoU of prompts with these scores,
            by which the scores of refined masks are calibrated; written by `mpformer calibrate`.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field has another type or is out of range, at construction or
            when it is set; the message has its name.
    """

    model_type = "mpformer"
    # What Trainer does not collect in evaluation; post-processing needs the logits and the pixel mask.
    keys_to_ignore_at_inference = [  # noqa: RUF012
        *("auxiliary_logits", "encoder_last_hidden_state", "pixel_decoder_last_hidden_state"),
        *("transformer_decoder_last_hidden_state", "encoder_hidden_states", "pixel_decoder_hidden_states"),
        *("transformer_decoder_hidden_states", "attentions", "loss_dict"),
    ]
    backbones_supported = BACKBONES

    mask_piloting: bool = True
    pilot_groups: int = ranged("pilot_groups", 1)
    pilot_query_budget: int | None = ranged("pilot_query_budget", None)
    pilot_layers: int | None = ranged("pilot_layers", None)
    pilot_noise: str | list[str] = "point"
    pilot_noise_scale: float | int = ranged("pilot_noise_scale", 0.0)
    pilot_label_noise: float | int = ranged("pilot_label_noise", 0.2)
    pilot_per_head_noise: bool = False
    pilot_class_loss: bool = True
    pilot_loss_weight: float | int = ranged("pilot_loss_weight", 1.0)
    query_position_embeddings: bool = True
    feature_pyramid: bool | None = None
    mask_loss_points: str = "image"
    void_in_loss: str = "ignored"
    incomplete_no_object_weight: float | int = ranged("incomplete_no_object_weight", 0.3)
    prompt_calibration: list[list[float]] | None = None

    # Mask2Former's fields, with intervals
    num_queries: int = ranged("num_queries", 100)
    hidden_dim: int = ranged("hidden_dim", 256)
    feature_size: int = ranged("feature_size", 256)
    mask_feature_size: int = ranged("mask_feature_size", 256)
    encoder_feedforward_dim: int = ranged("encoder_feedforward_dim", 1024)
    dim_feedforward: int = ranged("dim_feedforward", 2048)
    num_attention_heads: int = ranged("num_attention_heads", 8)
    encoder_layers: int = ranged("encoder_layers", 6)
    decoder_layers: int = ranged("decoder_layers", 10)
    dropout: float | int = ranged("dropout", 0.0)
    train_num_points: int = ranged("train_num_points", 12544)
    oversample_ratio: float | int = ranged("oversample_ratio", 3.0)
    importance_sample_ratio: float | int = ranged("importance_sample_ratio", 0.75)
    no_object_weight: float | int = ranged("no_object_weight", 0.1)
    class_weight: float | int = ranged("class_weight", 2.0)
    mask_weight: float | int = ranged("mask_weight", 5.0)
    dice_weight: float | int = ranged("dice_weight", 5.0)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if len(self.pilot_noises) == 1:
            (self.pilot_noise,) = self.pilot_noises

    def validate_mpformer(self) -> None:
        """Rules that a field alone cannot have; those of a single field are at the fields.

        Raises:
            ValueError: one does not hold; the message has the name of the field.
        """
        names = list(self.id2label.values())
        if sorted(self.id2label) != list(range(len(names))) or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"id2label must map the ids 0 to {len(names) - 1} to names, it has the ids "
                f"{', '.join(map(str, sorted(self.id2label)[:4]))}, ...; give id2label= with all of them."
            )
        mixed = (*MASK_NOISES, "clean")
        one, several = self.pilot_noise in PILOT_NOISES, isinstance(self.pilot_noise, (list, tuple))
        known = all(noise in mixed for noise in self.pilot_noises) if several and self.pilot_noise else one
        some = f"one of {', '.join(PILOT_NOISES)}, or a list of {', '.join(mixed)}"
        calibration = "two lists of equal length, of at least two increasing scores and their IoUs"
        strides = tuple(self.feature_strides) == (4, 8, 16, 32) and self.common_stride == 4
        enough = self.oversample_ratio >= self.importance_sample_ratio
        for field, holds, rule in (
            ("pilot_noise", known, some),
            ("mask_loss_points", self.mask_loss_points in ("image", "mask"), "image or mask"),
            ("void_in_loss", self.void_in_loss in VOID_IN_LOSS, " or ".join(VOID_IN_LOSS)),
            ("prompt_calibration", is_calibration(self.prompt_calibration), calibration),
            ("oversample_ratio", enough, "at least importance_sample_ratio"),
            ("hidden_dim", self.hidden_dim % self.num_attention_heads == 0, "a multiple of num_attention_heads"),
            ("feature_strides", strides, "(4, 8, 16, 32) with common_stride 4"),
        ):
            if not holds:
                raise ValueError(f"{field} must be {rule}, got {getattr(self, field)!r}.")

    @property
    def pilot_noises(self) -> tuple[str, ...]:
        """Kinds of mask noise, of which each pilot query draws one."""
        return tuple(self.pilot_noise) if isinstance(self.pilot_noise, (list, tuple)) else (self.pilot_noise,)

    @classmethod
    def get_config_dict(cls, name, **kwargs) -> tuple[dict, dict]:
        """Fields of a saved configuration. Mask2Former's becomes MP-Former's here, so that transformers does not warn
        about the other type. Class names that the caller gives replace those of the file before these are checked."""
        fields, unused = super().get_config_dict(name, **kwargs)
        if names := unused.get("id2label"):
            names = unused["id2label"] = {int(i): label for i, label in names.items()}  # keys of JSON are texts
            fields = {**fields, "id2label": names, "label2id": {label: i for i, label in names.items()}}
        backbone = fields.get("backbone_config")
        if isinstance(backbone, dict) and backbone.get("use_pretrained_backbone"):  # its weights are in the file
            fields = {**fields, "backbone_config": {**backbone, "use_pretrained_backbone": False}}
        check_sizes(fields)
        check_origins(fields)
        if fields.get("model_type") == Mask2FormerConfig.model_type:
            fields = {**fields, "model_type": cls.model_type}
        return fields, unused
