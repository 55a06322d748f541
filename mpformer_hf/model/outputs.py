"""What the model returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from .mask_piloting import Pilot


@dataclass
class MPFormerModelOutput(ModelOutput):
    """Fields of Mask2FormerModelOutput, mask embeddings and pilot.

    B batch, N queries `[pilot | matching]`, Q matching queries, D mask feature channels, H and W the padded image size.

    Attributes:
        encoder_last_hidden_state: `[B, C, H / 32, W / 32]`, last feature map of the backbone.
        pixel_decoder_last_hidden_state: `[B, D, H / 4, W / 4]`, the mask features.
        transformer_decoder_last_hidden_state: `[B, Q, hidden_dim]`.
        encoder_hidden_states, pixel_decoder_hidden_states, transformer_decoder_hidden_states: all feature maps and
            states, with `output_hidden_states=True`.
        transformer_decoder_intermediate_states: normed states of every prediction, `[B, N, hidden_dim]` each.
        masks_queries_logits: masks of every prediction, `[B, N, H / 4, W / 4]` each, unless `output_masks=False`.
        attentions: self-attention weights `[B, heads, Q, Q]` of every layer, with `output_attentions=True`.
        mask_embeddings: of every prediction, `[B, N, D]` each; masks are their products with the mask features.
        pilot: pilot of the batch (in training with targets only).
    """

    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_intermediate_states: tuple[Tensor, ...] | None = None
    masks_queries_logits: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    mask_embeddings: tuple[Tensor, ...] | None = None
    pilot: Pilot | None = None

    @property
    def num_pilot_queries(self) -> int:
        return 0 if self.pilot is None else self.pilot.num_queries

    def shared_fields(self) -> dict[str, Tensor | tuple[Tensor, ...] | None]:
        """The fields that Mask2FormerForUniversalSegmentationOutput has too; none has pilot queries."""
        names = (
            *("encoder_last_hidden_state", "pixel_decoder_last_hidden_state", "transformer_decoder_last_hidden_state"),
            *("encoder_hidden_states", "pixel_decoder_hidden_states", "transformer_decoder_hidden_states"),
            "attentions",
        )
        return {name: getattr(self, name) for name in names}


@dataclass
class MPFormerForUniversalSegmentationOutput(ModelOutput):
    """Fields of Mask2FormerForUniversalSegmentationOutput, `loss_dict` and `pixel_mask`, without pilot queries.

    B batch, Q matching queries, K classes, H and W the padded image size.

    Attributes:
        loss: scalar, sum of `loss_dict`; with labels only.
        class_queries_logits: `[B, Q, K + 1]`, the last class is "no object".
        masks_queries_logits: `[B, Q, H / 4, W / 4]` logits.
        auxiliary_logits: list with a dict of these two per earlier prediction, with `output_auxiliary_logits=True`.
        encoder_last_hidden_state ... attentions: see [`MPFormerModelOutput`].
        loss_dict: weighted losses, see [`MPFormerCriterion`].
        pixel_mask: `[B, H, W]` as given, 1 = image, 0 = padding; post-processing crops the padding.
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None
    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loss_dict: dict[str, Tensor] | None = None
    pixel_mask: Tensor | None = None
