"""Tests of `threads`."""

import threading

from mpformer_hf.utils.threads import in_threads


def test_work_is_done_side_by_side_and_in_order():
    both = threading.Barrier(2, timeout=20)
    waited = []

    def work(item):
        if item < 4:
            waited.append(both.wait())  # ends when another one is at work
        return 10 * item

    results = in_threads(work, iter(range(5)))
    assert [(item, future.result()) for item, future in results] == [(i, 10 * i) for i in range(5)]
    assert sorted(waited) == [0, 0, 1, 1]
