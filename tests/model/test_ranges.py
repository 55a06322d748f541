"""Tests of `ranges`."""

import pytest

from mpformer_hf.model.ranges import check_range, describe_range


@pytest.mark.parametrize(
    "interval, inside, outside",
    [
        ("[0, 1]", [0, 0.5, 1, None, True], [-0.1, 1.1, float("nan"), float("inf")]),
        ("(0, 1)", [0.5], [0, 1]),
        ("[1, inf)", [1, 10**30], [0, float("inf")]),
        ("(0, 100]", [[0.1, 100]], [[0.1, 0], [101]]),
    ],
)
def test_intervals(interval, inside, outside):
    for value in inside:
        check_range("x", value, interval)
    for value in outside:
        with pytest.raises(ValueError, match=r"^x must be (at least|greater than)"):
            check_range("x", value, interval)
    with pytest.raises(ValueError, match="x must be a number, got 'a'"):
        check_range("x", "a", interval)


def test_intervals_in_words():
    assert describe_range("[1, inf)") == "at least 1" and describe_range("(0, 1]") == "greater than 0 and at most 1"
