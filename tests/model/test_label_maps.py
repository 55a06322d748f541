"""Tests of `label_maps`."""

import torch

from mpformer_hf.model.label_maps import split_segments


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
