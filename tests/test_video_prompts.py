"""scripts/video_prompts.py: rendered videos, and scores of tracks with a known result."""

import numpy as np
import pytest

from scripts.video_prompts import Objects, Tracker, assign, count_switches, make_video, mask_ious, video_quality

SIZE = (20, 20)


def square(y: int, x: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + 6, x : x + 6] = True
    return mask


def frame(*rows: tuple[np.ndarray, int, int]) -> Objects:
    masks = np.array([mask for mask, *_ in rows]).reshape(-1, *SIZE)
    return Objects(masks, [label for _, label, _ in rows], [own for *_, own in rows])


def test_a_video_has_moving_objects_and_is_reproducible():
    video, again = (make_video(3, 6, 64) for _ in range(2))
    assert all(
        (one == two).all() and (a.masks == b.masks).all() for (one, a), (two, b) in zip(video, again, strict=True)
    )
    shared = set.intersection(*(set(objects.ids) for _, objects in video))
    assert shared and video[0][0].shape == (64, 64, 3)
    for own in shared:
        columns = [np.nonzero(objects.masks[objects.ids.index(own)])[1].mean() for _, objects in video]
        assert columns[0] != columns[-1]
    for _, objects in video:
        assert objects.masks.sum(0).max(initial=0) <= 1, "visible parts do not overlap"


def test_switches_and_quality():
    truth = [frame((square(0, x), 0, 7), (square(10, x), 1, 8)) for x in range(4)]
    own = [frame((square(0, x), 0, 1), (square(10, x), 1, 2)) for x in range(4)]
    assert count_switches(truth, own) == (0, 8)
    assert video_quality(truth, own, 1) == (8, 8) and video_quality(truth, own, 4) == (2, 2)
    swapped = own[:2] + [frame((square(0, x), 0, 5), (square(10, x), 1, 2)) for x in (2, 3)]
    assert count_switches(truth, swapped) == (1, 8)
    assert video_quality(truth, swapped, 1) == (8, 8)
    total, weight = video_quality(truth, swapped, 4)
    assert (total, weight) == (1, 1 + 0.5 + 1), "both halves have an IoU of 0.5, which is not above 0.5"
    assert video_quality(truth, [frame()] * 4, 1) == (0, 4) and count_switches(truth, [frame()] * 4) == (0, 0)


def test_tracks_are_assigned_by_iou_and_end():
    tracker = Tracker()
    first = tracker.update(frame((square(0, 0), 0, -1), (square(10, 10), 1, -1)))
    assert first.ids == [0, 1]
    found = assign(tracker.masks, tracker.labels, frame((square(10, 11), 1, -1), (square(0, 1), 1, -1)))
    assert found.ids == [1, -1], "the second has another class than the track it overlaps"
    assert tracker.update(found).ids == [1, 2]
    for _ in range(10):
        tracker.update(frame())
    assert set(tracker.masks) == {1, 2}
    tracker.update(frame())
    assert not tracker.masks and tracker.next_id == 3


def test_iou_of_all_pairs():
    one, two = np.stack([square(0, 0), square(10, 10)]), np.stack([square(0, 3), square(10, 10), square(0, 14)])
    assert mask_ious(one, two) == pytest.approx(np.array([[1 / 3, 0, 0], [0, 1, 0]]))
    assert mask_ious(one, two[:0]).shape == (2, 0)
