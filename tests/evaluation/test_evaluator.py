"""Tests of `evaluator`."""

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli import evaluate
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from tests import datasets_on_disk as make
from tests.tiny import tiny_model


def test_joined_datasets_have_scores_of_their_own(tmp_path):
    folders = [make.shapes(tmp_path / name, 1, number) for name, number in (("a", 2), ("b", 3))]
    labels = open_dataset(DataArguments(dataset_name=str(folders[0])), "validation").labels
    model = tiny_model(num_labels=len(labels.names), id2label=labels.id2label)
    model.save_pretrained(tmp_path / "model")
    stuff = sorted(set(range(len(labels.names))) - labels.things)
    processor = MPFormerImageProcessor(task="panoptic", threshold=0.0, label_ids_to_fuse=stuff)
    processor.save_pretrained(tmp_path / "model")
    both = evaluate.main([str(tmp_path / "model"), str(folders[0]), "--join", str(folders[1])])
    for folder in folders:
        alone = evaluate.main([str(tmp_path / "model"), str(folder)])
        assert both["by_dataset"][str(folder)] == {name: alone[name] for name in both["by_dataset"][str(folder)]}
    assert "by_dataset" not in alone and both["images"] == 5
