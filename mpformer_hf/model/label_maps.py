"""Label maps (integer maps of class or segment ids): conversion to one mask per segment, resizing, and RLE of masks."""

import numpy as np
import torch
from torch import Tensor


def as_maps(maps) -> list[Tensor]:
    """Convert one map or a list of maps (PIL, numpy, torch) to int32 tensors `[H, W]`, int64 for ids of 2**31 and more.
    An entry of a list may be `[L, H, W]`: layers of segments that overlap.

    Raises:
        ValueError: a map is not of integers, or has not two or three dimensions.
    """
    if not isinstance(maps, (list, tuple)):
        single = torch.is_tensor(maps) or isinstance(maps, np.ndarray)
        maps = list(maps) if single and maps.ndim == 3 else [maps]
    tensors = []
    for index, map_ in enumerate(maps):
        map_ = map_ if torch.is_tensor(map_) else torch.from_numpy(np.array(map_))
        if map_.ndim not in (2, 3) or map_.is_floating_point():
            raise ValueError(
                f"Segmentation map {index}: expected integers of shape (height, width), got {map_.dtype} "
                f"of shape {tuple(map_.shape)}."
            )
        map_ = map_.to(torch.int64)
        if map_.numel() and map_.min() < -(2**31):
            raise ValueError(f"Segmentation map {index} has ids down to {map_.min()}.")
        wide = map_.numel() and map_.max() >= 2**31
        tensors.append(map_ if wide else map_.to(torch.int32))
    return tensors


def check_maps(maps: list[Tensor], images: list) -> None:
    """Compare maps with images.

    Raises:
        ValueError: their numbers or sizes differ.
    """
    if len(maps) != len(images):
        raise ValueError(f"{len(images)} images, but {len(maps)} segmentation maps.")
    for index, (map_, image) in enumerate(zip(maps, images, strict=True)):
        if tuple(map_.shape[-2:]) != tuple(image.shape[-2:]):
            raise ValueError(
                f"Segmentation map {index} is {map_.shape[-2]}x{map_.shape[-1]}, its image "
                f"{image.shape[-2]}x{image.shape[-1]} (height x width)."
            )


def resize_map(map_: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resizing by pixel centres, for any integer dtype, without conversion to float.

    Args:
        map_: `[..., H, W]`.
        size: (height, width) of the result.
    """
    rows, columns = (
        (((torch.arange(new, device=map_.device) + 0.5) * (old / new)).long()).clamp(max=old - 1)
        for new, old in zip(size, map_.shape[-2:], strict=True)
    )
    return map_[..., rows[:, None], columns]


def count_ids(maps: Tensor | np.ndarray) -> dict[int, int]:
    """Number of pixels of each id of an integer map of any shape, by ascending id. Ids are counted in a table, which is
    many times faster than sorting, unless they are far apart."""
    values = np.asarray(maps.cpu() if torch.is_tensor(maps) else maps).ravel()
    if not values.size:
        return {}
    low, high = int(values.min()), int(values.max())
    if high - low > max(1 << 16, values.size):
        ids, counts = np.unique(values, return_counts=True)
    else:
        table = np.bincount(np.subtract(values, low, dtype=np.int64, casting="same_kind"))
        ids = table.nonzero()[0]
        ids, counts = ids + low, table[ids]
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def split_segments(
    map_: Tensor, id_to_class: dict[int, int] | None, do_reduce_labels: bool, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Convert a map to one mask per id; arguments as those of `split_ids`.

    Returns:
        bool `[T, H, W]` and int64 `[T]`, by ascending id.
    """
    ids, classes = split_ids(map_, id_to_class, do_reduce_labels, ignore_index)
    masks = [layer == ids[:, None, None] for layer in map_.view(-1, *map_.shape[-2:])]
    return torch.stack(masks).any(0) if len(masks) > 1 else masks[0], classes


def split_ids(
    map_: Tensor, id_to_class: dict[int, int] | None, do_reduce_labels: bool, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Ids of a map that have a class, in ascending order, and their classes.

    Args:
        map_: int32 or int64 `[H, W]`, or `[L, H, W]` with each id in one layer.
        id_to_class: classes of the ids; other ids are void. None: the ids are classes.
        do_reduce_labels: class 0 is void, the other classes become one less; `ignore_index` remains void.
        ignore_index: the id that is void, unless `id_to_class` gives it another class; None: no id is.

    Returns:
        `[T]` of the map's dtype, and int64 `[T]`.
    """
    ids = torch.tensor(list(count_ids(map_)), dtype=map_.dtype, device=map_.device)
    if ignore_index is not None and (id_to_class or {}).get(ignore_index, ignore_index) == ignore_index:
        ids = ids[ids != ignore_index]
    classes = ids.long()
    if id_to_class is not None:
        ids = ids[[int(i) in id_to_class for i in ids]]
        classes = torch.tensor([id_to_class[int(i)] for i in ids], dtype=torch.int64)
    keep = torch.ones(len(classes), dtype=torch.bool)
    if do_reduce_labels:
        keep &= classes != 0
        classes = classes - 1
    return ids[keep], classes[keep]


def compress_counts(counts: list[int]) -> str:
    """COCO's compressed string of run lengths: from the fourth on, differences to the run before the previous one, as
    signed numbers of 5 bits per character, low bits first; the bit of 32 says that another character follows."""
    text = []
    for index, run in enumerate(counts):
        value = run - counts[index - 2] if index > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * more))
    return "".join(text)


def encode_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE of a bool `[H, W]` mask: `{"size": [H, W], "counts": [...]}`, column-major, starting with
    the number of zeros."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)
    return {"size": list(mask.shape), "counts": counts}


def encode_part(part: np.ndarray, top: int, left: int, height: int, width: int) -> dict:
    """`encode_rle` of the mask `[height, width]` that is bool `part` from row `top` and column `left` on, and empty
    elsewhere; the cost is that of the part."""
    columns = np.zeros((height, part.shape[1]), dtype=bool)
    columns[top : top + part.shape[0]] = part
    counts = encode_rle(columns)["counts"] or [0]
    counts[0] += left * height
    after = height * (width - left - part.shape[1])
    if len(counts) % 2:
        counts[-1] += after
    elif after:
        counts.append(after)
    return {"size": [height, width], "counts": counts}


def part_of_runs(runs: list[int], height: int) -> tuple[np.ndarray, int, int]:
    """Run lengths of a mask, by columns, empty ones first, to its part, bool `[h, w]`, outside of which it is empty,
    and the row and the column where it begins."""
    ends, drawn = np.cumsum(runs), 2 * np.flatnonzero(runs[1::2]) + 1
    if not len(drawn):
        return np.zeros((0, 0), dtype=bool), 0, 0
    left = int(ends[drawn[0] - 1]) // height
    right = (int(ends[drawn[-1]]) - 1) // height + 1
    ends = (ends - left * height).clip(0, (right - left) * height)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(ends, prepend=0)).reshape(right - left, height).T
    rows = np.flatnonzero(columns.any(1))
    return columns[rows[0] : rows[-1] + 1], int(rows[0]), left


def decompress_counts(counts: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed counts: signed numbers of 5 bits per character, low bits first, and from the
    third on differences to the run before the previous one.

    Raises:
        ValueError: it is not such a string.
    """
    text = counts.decode("latin1") if isinstance(counts, bytes) else counts
    if not isinstance(text, str):
        raise ValueError("has an RLE whose counts are neither a list nor a string")
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("has an RLE whose counts are not COCO's compressed format")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("has an RLE whose counts are truncated")
    return runs
