"""Backbones: any `AutoBackbone` with four feature maps at strides 4, 8, 16, 32, or with maps of one stride, which a
simple feature pyramid turns into four (ViTDet, Li et al. 2022, section 3)."""

import logging
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone

from .configuration_mpformer import MPFormerConfig

logger = logging.getLogger(__name__)

STRIDES = (4, 8, 16, 32)
PROBE_SIZE = 224  # a multiple of 32, 16 and 14
# Without values: the size is refused, an operation needs values (on the meta device), or a package is missing.
PROBE_ERRORS = (RuntimeError, ValueError, NotImplementedError, TypeError, IndexError, AssertionError, ImportError)


@dataclass
class FeatureInfo:
    """What a backbone returns.

    Attributes:
        channels: of each feature map.
        strides: of each feature map, image side / map side.
        image_size: side of the only images that it takes; None = any.
        unused: names of the parameters that do not change the feature maps that are used.
    """

    channels: list[int]
    strides: list[float]
    image_size: int | None = None
    unused: list[str] = field(default_factory=list)


def image_channels(config) -> int:
    """Channels of the images of a backbone; 3 if its configuration does not say."""
    return getattr(config, "num_channels", 3)


def probe_features(encoder, config) -> FeatureInfo:
    """Run a backbone without values (on the meta device, where nothing is computed) to see its feature maps. Where that
    is not possible, four feature maps are taken for strides 4, 8, 16, 32, with a warning.

    Args:
        encoder: the backbone, on any device.
        config: its configuration.

    Raises:
        ValueError: the feature maps cannot be seen, and it does not declare four.
    """
    own_size = getattr(config, "image_size", None)
    own_size = own_size[0] if isinstance(own_size, (list, tuple)) else own_size
    state = {name: tensor.to("meta") for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]}

    def maps_of(size: int) -> tuple[Tensor, ...] | None:
        image = torch.zeros(1, image_channels(config), size, size, device="meta")
        try:
            with torch.no_grad():
                return torch.func.functional_call(encoder, state, (image,)).feature_maps
        except PROBE_ERRORS as error:
            logger.debug("No feature maps of an image of %d pixels: %s", size, error)
            return None

    for size in filter(None, (PROBE_SIZE, own_size)):
        if maps := maps_of(size):
            any_size = maps_of(2 * size) is not None
            strides = [size / x.shape[-1] for x in maps]
            return FeatureInfo([x.shape[1] for x in maps], strides, None if any_size else size)
    if len(encoder.channels) != len(STRIDES):
        raise ValueError(
            f"backbone_config: the strides of {len(encoder.channels)} feature maps cannot be checked; out_features or "
            "out_indices must name four, at strides 4, 8, 16, 32."
        )
    logger.warning("The strides of the backbone's feature maps cannot be checked; they must be 4, 8, 16, 32.")
    return FeatureInfo(list(encoder.channels), list(STRIDES))


def unused_parameters(encoder: nn.Module, config, size: int | None, source: int | None) -> list[str]:
    """Names of the parameters that get no gradient: norms of poolers, mask tokens, layers after the last feature map.
    DDP waits for every trainable parameter, so these must be frozen. Found without values, as in `probe_features`;
    empty where that is not possible.

    Args:
        encoder: the backbone, on any device.
        config: its configuration.
        size: side of the only images that it takes; None = any.
        source: index of the only feature map that is used; None = all.
    """
    parameters = {name: tensor.detach().to("meta").requires_grad_() for name, tensor in encoder.named_parameters()}
    state = {**parameters, **{name: tensor.to("meta") for name, tensor in encoder.named_buffers()}}
    size = size or PROBE_SIZE
    image = torch.zeros(1, image_channels(config), size, size, device="meta")
    try:
        with torch.enable_grad():
            maps = torch.func.functional_call(encoder, state, (image,)).feature_maps
            total = sum(x.sum() for x in (maps if source is None else [maps[source]]))
            grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    except PROBE_ERRORS as error:
        logger.info("Parameters of the backbone without gradient are not known: %s", error)
        return []
    return [name for name, grad in zip(parameters, grads, strict=True) if grad is None]


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of a feature map `[B, C, h, w]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """Feature maps at strides 4, 8, 16 and 32 from one map (ViTDet, section 3): transposed convolutions, identity and
    pooling, each followed by a 1x1 and a 3x3 convolution with layer norms.

    Args:
        info: feature maps of the backbone.
        source: index of the map that is used.
        dim: channels of the pyramid.
    """

    def __init__(self, info: FeatureInfo, source: int, dim: int):
        super().__init__()
        channels, stride = info.channels[source], info.strides[source]
        self.source, self.patch_size = source, round(stride)
        self.base = 8 if stride < 11 else 16  # stride to which the map is resized: that of a patch of 14 pixels is 16
        self.levels = nn.ModuleList(
            nn.Sequential(
                *self.scale_layers(channels, self.base / target),
                nn.Conv2d(channels, dim, kernel_size=1, bias=False),
                ChannelLayerNorm(dim),
                nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False),
                ChannelLayerNorm(dim),
            )
            for target in STRIDES
        )

    def whole_patches(self, pixel_values: Tensor) -> Tensor:
        """Resize images to whole patches: a patch embedding drops the pixels of incomplete ones."""
        return resize_to(
            pixel_values, [-(-side // self.patch_size) * self.patch_size for side in pixel_values.shape[-2:]]
        )

    @staticmethod
    def scale_layers(channels: int, scale: float) -> list[nn.Module]:
        """Layers that multiply the size of a map by 4, 2, 1, 1/2 or 1/4."""
        layers: list[nn.Module] = []
        while scale > 1:
            norm = [ChannelLayerNorm(channels), nn.GELU()] if layers == [] and scale == 4 else []
            layers += [nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2), *norm]
            scale /= 2
        while scale < 1:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True))
            scale *= 2
        return layers

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """
        Args:
            features: maps of the backbone, `[B, C, h, w]` each.
            size: (height, width) of the images in pixels.

        Returns:
            four maps `[B, dim, ceil(height / s), ceil(width / s)]`, s = 4, 8, 16, 32.
        """
        x = resize_to(features[self.source], [-(-side // self.base) for side in size])
        return tuple(
            resize_to(level(x), [-(-side // stride) for side in size])
            for level, stride in zip(self.levels, STRIDES, strict=True)
        )


def resize_to(x: Tensor, size: list[int]) -> Tensor:
    """Resize a map bilinearly, if it does not have this size."""
    if list(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def build_backbone(config: MPFormerConfig) -> tuple[nn.Module, SimpleFeaturePyramid | None, FeatureInfo]:
    """The backbone, the pyramid if there is one, and the four maps of both together.

    Raises:
        ValueError: the feature maps cannot be used; the message names the field.
    """
    encoder = AutoBackbone.from_config(config.backbone_config)
    info = probe_features(encoder, config.backbone_config)
    size = info.image_size
    if config.feature_pyramid is not True and info.strides == list(STRIDES):
        return encoder, None, replace(info, unused=unused_parameters(encoder, config.backbone_config, size, None))
    one_stride = len(set(info.strides)) == 1
    source = len(info.strides) - 1 if one_stride else info.strides.index(16) if 16 in info.strides else None
    if (
        source is None
        or not 7 <= info.strides[source] <= 16
        or config.feature_pyramid is False
        or not (one_stride or config.feature_pyramid)
    ):
        found = ", ".join(f"{stride:g}" for stride in info.strides)
        hint = " or one stride from 7 to 16" if config.feature_pyramid is None else ""
        hint = ", since feature_pyramid is False" if config.feature_pyramid is False else hint
        raise ValueError(
            "backbone_config: the feature maps (out_features or out_indices) must have strides 4, 8, 16, 32"
            f"{hint}, got {found}."
        )
    pyramid = SimpleFeaturePyramid(info, source, config.feature_size)
    unused = unused_parameters(encoder, config.backbone_config, size, source)
    return encoder, pyramid, FeatureInfo([config.feature_size] * len(STRIDES), list(STRIDES), info.image_size, unused)
