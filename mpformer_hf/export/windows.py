"""Swin's window attention for `torch.export`: windows are gathered by computed positions, so that the image size can be
dynamic. The layers of transformers reshape to a number of windows that is known only when they run."""

from types import MethodType

import torch
from torch import Tensor, nn
from transformers.models.swin.modeling_swin import SwinLayer
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer

MASKED = -100.0  # added to the attention logits of pairs that are apart in the image, as in transformers


def remainder(x: Tensor, divisor: int) -> Tensor:
    """`x % divisor` of non-negative integers; ONNX has no `%` by a dynamic size."""
    return x - x // divisor * divisor


def window_order(height: int, width: int, window: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of a map that is shifted, padded and cut into windows (Liu et al., "Swin Transformer", section 3.2).

    Args:
        height, width: of the map.
        window: side of a window.
        shift: of the windows, towards the lower right.

    Returns:
        int64 tensors. `[N * window^2]`: position in the flattened map of each element of the N windows, `height *
        width` where it is padding. `[height * width]`: position in the windows of each element of the map.
        `[N * window^2]`: region of each element; attention does not cross regions.
    """
    rows, columns = (height + window - 1) // window, (width + window - 1) // window
    places = torch.arange(rows * columns * window * window)
    index, inside = places // (window * window), places % (window * window)
    y = index // columns * window + inside // window
    x = remainder(index, columns) * window + inside % window
    (row_region, y), (column_region, x) = (
        (
            (position >= padded - window).long() + (position >= padded - shift).long(),
            remainder(position + shift, padded),
        )
        for position, padded in ((y, rows * window), (x, columns * window))
    )
    sources = torch.where((y < height) & (x < width), y * width + x, height * width)
    places = torch.arange(height * width)
    y = remainder(places // width + rows * window - shift, rows * window)
    x = remainder(remainder(places, width) + columns * window - shift, columns * window)
    inside = y % window * window + x % window
    return sources, (y // window * columns + x // window) * window * window + inside, 3 * row_region + column_region


def attend_in_windows(layer: SwinLayer | Swinv2Layer, x: Tensor, height: int, width: int) -> Tensor:
    """The layer's attention in windows, float `[B, height * width, C]` to the same."""
    batch, _, channels = x.shape
    area = layer.window_size**2
    sources, places, regions = window_order(height, width, layer.window_size, layer.shift_size)
    x = torch.cat([x, x.new_zeros(1, 1, channels).expand(batch, -1, -1)], dim=1)
    windows = x.index_select(1, sources).view(-1, area, channels)
    mask = None
    if layer.shift_size:
        regions = regions.view(-1, area)
        mask = MASKED * (regions[:, None] != regions[:, :, None]).to(x.dtype)
    return layer.attention(windows, mask)[0].view(batch, -1, channels).index_select(1, places)


def swin_forward(layer: SwinLayer, x: Tensor, size: tuple[int, int], *_, **__) -> tuple[Tensor, None]:
    """`SwinLayer.forward` for inference."""
    x = x + attend_in_windows(layer, layer.layernorm_before(x), *size)
    return x + layer.mlp(layer.layernorm_after(x)), None


def swinv2_forward(layer: Swinv2Layer, x: Tensor, size: tuple[int, int], *_, **__) -> tuple[Tensor]:
    """`Swinv2Layer.forward` for inference."""
    x = x + layer.layernorm_before(attend_in_windows(layer, x, *size))
    return (x + layer.layernorm_after(layer.output(layer.intermediate(x))),)


def replace_window_attention(encoder: nn.Module) -> int:
    """Give the Swin layers of a backbone a forward pass that can be exported with a dynamic image size.

    Returns:
        side of the windows, 1 if there are none. Images of a single window cannot be run by `torch.export`.
    """
    window = 1
    for layer in encoder.modules():
        for kind, forward in ((SwinLayer, swin_forward), (Swinv2Layer, swinv2_forward)):
            if isinstance(layer, kind):
                layer.forward, window = MethodType(forward, layer), max(window, layer.window_size)
    return window
