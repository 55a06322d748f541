"""Words that tools use for splits, in names of files, folders and mappings."""

import re

SPLIT_NAMES = ({"train", "training"}, {"val", "valid", "validation"}, {"test", "testing"})
ALL_SPLITS = frozenset().union(*SPLIT_NAMES)


def words_of(name: str) -> set[str]:
    """Words of a file or folder name: `instances_val2017` -> instances, val."""
    return set(re.findall("[a-z]+", name.lower()))


def names_of_split(split: str) -> set[str]:
    """Words that tools use for a split: `validation` -> val, valid, validation; other names as they are."""
    return next((names for names in SPLIT_NAMES if split in names), words_of(split) or {split})
