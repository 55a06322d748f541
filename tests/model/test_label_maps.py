"""Tests of `label_maps`."""

import pytest
import torch

from mpformer_hf.data.segments import is_among
from mpformer_hf.model.label_maps import count_ids, split_segments


def test_ignore_index_is_an_id_of_class_maps():
    map_ = torch.tensor([[0, 0, 7], [255, 255, 7]], dtype=torch.int32)
    for ignore_index in (0, 255, None):  # with a table, the ids that it gives another class are segments
        masks, classes = split_segments(map_, {0: 4, 7: 255, 255: 0}, False, ignore_index)
        assert classes.tolist() == [4, 255, 0] and masks.shape == (3, 2, 3)
        assert split_segments(map_, {7: 0, 255: 1}, False, ignore_index)[1].tolist() == [0, 1]
    assert split_segments(map_, None, False, 255)[1].tolist() == [0, 7]
    # void in the map and as a class: void, as in transformers' processor
    assert split_segments(map_, {0: 0, 7: 3}, False, 0)[1].tolist() == [3]
    assert split_segments(map_, {0: 0, 7: 3}, False, 255)[1].tolist() == [0, 3]


@pytest.mark.parametrize("high", [5, 300, 1 << 24, (1 << 31) - 1])
def test_ids_are_counted_as_by_sorting(high):
    for low in (0, -2):
        maps = torch.randint(low, high, (2, 30, 40), generator=torch.Generator().manual_seed(high % 97))
        ids, counts = maps.unique(return_counts=True)
        for given in (maps, maps.numpy(), maps.to(torch.int32)):
            assert list(count_ids(given).items()) == list(zip(ids.tolist(), counts.tolist(), strict=True))
        some = {*ids[::3].tolist(), high + 1}
        assert torch.equal(is_among(maps, some), torch.isin(maps, torch.tensor(sorted(some))))
    assert not is_among(maps, ()).any() and count_ids(maps[:0]) == {}
