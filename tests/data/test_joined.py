"""Several datasets as one: classes by name, completeness by dataset, draws by weight."""

import json
from collections import Counter
from itertools import islice

import pytest
import torch
from datasets import Image as ImageColumn
from datasets import Value

from mpformer_hf.data.arguments import DataArguments, TrainingDataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.training import finetune
from mpformer_hf.training.batches import SeededSampler
from mpformer_hf.utils.files import read_json
from tests import datasets_on_disk as make
from tests import official_folders
from tests.data.test_completeness import box
from tests.runs import flags


def dataset(folder, rows, names):
    table = [{"image": make.photo(), "objects": json.dumps(row)} for row in rows]
    features = {"image": ImageColumn(), "objects": Value("string")}
    return make.write(folder, table, features, {"id2label.json": dict(enumerate(names))})


@pytest.fixture
def pets(tmp_path):
    return dataset(tmp_path / "pets", [[box(0, 0, 9, 5)], [box(0, 0, 9, 5, 1)], []], ["cat", "dog"])


@pytest.fixture
def farm(tmp_path):
    return dataset(tmp_path / "farm", [[box(2, 2, 9, 5), box(20, 2, 9, 5, 1)]], ["cow", "hound"])


def opened(*folders, **fields):
    first, *others = map(str, folders)
    return open_dataset(DataArguments(dataset_name=first, join=others, task="instance", **fields), "train")


def test_classes_are_joined_by_name_and_images_know_those_of_their_dataset(pets, farm, tmp_path, caplog):
    caplog.set_level("INFO")
    joined = opened(pets, farm)
    assert len(joined) == 4 and joined.labels.names == ["cat", "dog", "cow", "hound"]
    assert joined[1][1].classes == {1: 1} and joined[3][1].classes == {1: 2, 2: 3}
    known = [joined[index][1].annotated for index in range(4)]
    assert known == [(True, True, False, False)] * 3 + [(False, False, True, True)]
    assert f"class 2 cow: {farm}" in caplog.text
    (tmp_path / "names.json").write_text('{"hound": "dog"}')
    joined = opened(pets, farm, synonyms=str(tmp_path / "names.json"))
    assert joined.labels.names == ["cat", "dog", "cow"]
    assert joined[3][1].classes == {1: 2, 2: 1} and joined[3][1].annotated == (False, True, True)
    assert joined[0][1].annotated == (True, True, False)
    same = opened(pets, pets)
    assert same.labels.names == ["cat", "dog"] and same[4][1].annotated is None and len(same) == 6
    names = [joined.identity(index)[2] for index in range(4)]
    assert len(set(names)) == 4


def test_layouts_may_differ(pets, tmp_path):
    folder = official_folders.coco_instances(tmp_path / "coco")
    joined = opened(pets, folder)
    assert joined.labels.names[:2] == ["cat", "dog"] and len(joined) > 3
    image, segments = joined[3]
    plain = open_dataset(DataArguments(dataset_name=str(folder), task="instance"), "train")[0]
    assert torch.equal(image, plain[0]) and torch.equal(segments.map, plain[1].map)


def test_draws_are_in_proportion_to_the_weights(pets, farm):
    joined = opened(pets, farm)
    assert joined.row_weights([]) is None
    weights = joined.row_weights([1, 3])
    rows = [row for row, _ in islice(SeededSampler(4, 0, 0, weights), 4000)]
    counts = Counter(rows)
    assert counts[3] / 4000 == pytest.approx(0.75, abs=0.03)
    assert all(counts[row] / 4000 == pytest.approx(1 / 12, abs=0.03) for row in range(3))
    again = [row for row, _ in islice(SeededSampler(4, 0, 10, weights), 20)]
    assert again == rows[10:30], "a run resumes anywhere"


def test_training_on_both(pets, farm, tmp_path):
    output = tmp_path / "out"
    finetune.main(
        flags(
            str(pets),
            output,
            task="instance",
            join=str(farm),
            join_weights="1 2",
            train_split="train",
            eval_split="train",
            max_train_steps=2,
            num_pictures=0,
        )
    )
    assert read_json(output / "config.json")["id2label"] == {"0": "cat", "1": "dog", "2": "cow", "3": "hound"}
    assert read_json(output / "all_results.json")["best"]["images"] == 4


def test_what_does_not_fit_is_said(pets, farm, tmp_path):
    (tmp_path / "names.json").write_text('{"hound": "cow"}')
    with pytest.raises(ValueError, match=r"synonyms make two classes of .*farm the same: cow"):
        opened(pets, farm, synonyms=str(tmp_path / "names.json"))
    (tmp_path / "names.json").write_text("[1]")
    with pytest.raises(ValueError, match="must map names to names"):
        opened(pets, farm, synonyms=str(tmp_path / "names.json"))
    with pytest.raises(ValueError, match="ignore_labels is for one dataset"):
        opened(pets, farm, ignore_labels=["cat"])
    with pytest.raises(ValueError, match="give join too"):
        opened(pets, synonyms="x.json")
    with pytest.raises(ValueError, match="join_weights has 1 numbers for 2 datasets"):
        TrainingDataArguments(dataset_name="a", join=["b"], join_weights=[1.0])
    broken = dataset(tmp_path / "broken", [[box(0, 0, 9, 5, 7)]], ["cow"])
    with pytest.raises(ValueError, match="broken: Row 0: object 0 has category 7"):
        opened(pets, broken)[3]
