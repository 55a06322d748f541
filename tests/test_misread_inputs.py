"""Inputs that were once silently misread, ended in a traceback or were refused although they are good."""

import json

import numpy as np
import pytest
import torch
from datasets import Image, Value
from PIL import Image as PILImage

from mpformer_hf import MPFormerConfig, MPFormerImageProcessor
from mpformer_hf.arguments import read_recipe
from mpformer_hf.cli import convert, evaluate, predict
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.data.labels import Labels
from mpformer_hf.images import ORIENTATION, to_eight_bits
from mpformer_hf.label_maps import as_maps
from mpformer_hf.loading import load_model
from tests import datasets_on_disk as make
from tests.runs import flags
from tests.test_invalid_data import coco_folder, set_first
from tests.tiny import tiny_model
from training import finetune
from training.arguments import ModelArguments, PilotArguments, parse_arguments
from training.building import build_model

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    MPFormerImageProcessor(task="panoptic", size=SIZE, threshold=0.0, label_ids_to_fuse=[3]).save_pretrained(folder)
    return folder


# --- COCO folders ---


def test_other_categories_in_the_evaluation_split_are_refused(tmp_path):
    folder = make.coco_instances(tmp_path / "coco")
    file = folder / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"], content["categories"][1]["name"] = "dog", "cat"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"The categories of split 'val' of .* are not those of 'train'"):
        finetune.main(flags(folder, tmp_path / "out", task="instance", eval_split="val"))


def test_an_image_of_another_split_is_not_taken_for_a_missing_one(tmp_path):
    data = coco_folder(tmp_path / "coco")
    (tmp_path / "coco" / "train2017" / "train.jpg").rename(tmp_path / "coco" / "val2017" / "train.jpg")
    with pytest.raises(ValueError, match=r"train\.jpg, which was found 0 times"):
        open_dataset(data, "train")


def test_a_label_map_is_not_taken_for_a_missing_photograph(tmp_path):
    folder = make.coco_panoptic(tmp_path / "coco")
    (folder / "images" / "one.jpg").unlink()
    content = json.loads((folder / "panoptic.json").read_text())
    content["images"][0]["file_name"] = "one.png"
    (folder / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"one\.png, which was found 0 times"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")


@pytest.mark.parametrize("name", ["train2017\\train.jpg", "./train.jpg", "../train2017/train.jpg"])
def test_paths_of_other_systems_are_understood(name, tmp_path):
    assert len(open_dataset(coco_folder(tmp_path / "coco", images=set_first(file_name=name)), "train")) == 1


def test_tables_beside_a_coco_folder_and_words_in_names(tmp_path):
    data = coco_folder(tmp_path / "coco")
    (tmp_path / "coco" / "log.jsonl").write_text("{}")
    (tmp_path / "coco" / "stats.csv").write_text("a")
    assert len(open_dataset(data, "train")) == 1
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").rename(
        tmp_path / "coco" / "annotations" / "instances_trainval.json"
    )
    with pytest.raises(ValueError, match="for split 'tset', 0 of annotations/captions"):
        open_dataset(data, "tset")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": lambda rows: rows.append({**rows[0], "id": 9})}, "images have the file_name 'train.jpg' 2 times"),
        ({"annotations": set_first(segmentation=[[1, 1, 5]])}, r"annotations\[0\] has a polygon of 3 coordinates"),
        (
            {"annotations": lambda rows: rows.append({"image_id": 7, "segments_info": []})},
            "no segments_info, but other",
        ),
        ({"images": lambda rows: rows.clear(), "annotations": lambda rows: rows.clear()}, "has no images"),
    ],
)
def test_more_problems_of_coco_files(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_dataset(coco_folder(tmp_path / "coco", **changes), "train")


def test_phone_photographs_have_their_masks_where_they_are_shown(tmp_path):
    data = coco_folder(tmp_path / "coco", images=set_first(height=60, width=40))
    exif = PILImage.Exif()
    exif[ORIENTATION] = 6
    make.photo().save(tmp_path / "coco" / "train2017" / "train.jpg", exif=exif)
    image, segments = open_dataset(data, "train")[0]
    assert image.shape == (3, 60, 40) and segments.map.shape == (60, 40)


# --- Tables ---


@pytest.mark.parametrize(
    "segments, message",
    [
        ([{"id": 1, "category_id": 0}, {"id": 1, "category_id": 2}], "has the id 1, which must be positive"),
        ([{"id": 0, "category_id": 0}], "has the id 0, which must be positive"),
        ([{"id": 1, "category_id": 0, "isthing": 5}], "has isthing 5 of category 0"),
        ([{"id": 1, "category_id": 0, "isthing": 1}, {"id": 2, "category_id": 0, "isthing": 0}], "thing and as stuff"),
    ],
)
def test_segments_of_tables_are_checked(segments, message, tmp_path):
    ids = np.ones((40, 60), dtype=np.int32)
    ids[:10] = 2
    segments = [{"isthing": 0, "iscrowd": 0, **segment} for segment in segments]
    data = DataArguments(dataset_name=str(make.panoptic(tmp_path / "d", ids, segments)), task="panoptic")
    with pytest.raises(ValueError, match=message):
        open_dataset(data, "train")[0]


@pytest.mark.parametrize("objects", ["null", "5", "[5]", '[{"category": [0], "segmentation": []}]', "{", None])
def test_objects_of_any_form_are_named_by_row(objects, tmp_path):
    names = {"id2label.json": {"0": "a"}}
    rows = [{"image": make.photo(), "objects": objects}]
    folder = make.write(tmp_path / "d", rows, {"image": Image(), "objects": Value("string")}, names)
    data = DataArguments(dataset_name=str(folder), task="instance")
    with pytest.raises(ValueError, match=r"^Row 0: ") as error:
        open_dataset(data, "train")[0]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names", [["a"], "x", {"x": "a"}, {"0": None}, {"0": 3}, {"0": "a", "00": "b"}, {"-1": "a"}, {}]
)
def test_names_of_a_dataset_are_checked(names, tmp_path):
    folder = make.semantic(tmp_path / "d", [np.zeros((40, 60), dtype=np.uint8)])
    (folder / "id2label.json").write_text(json.dumps(names))
    for option in (None, str(folder / "id2label.json")):
        with pytest.raises(ValueError, match=r"id2label\.json"):
            open_dataset(DataArguments(dataset_name=str(folder), task="semantic", id2label=option), "train")


def test_tables_of_names_that_differ_between_rows_are_refused(tmp_path):
    folder = make.instance_maps(tmp_path / "d")
    from datasets import concatenate_datasets, load_dataset

    rows = load_dataset(str(folder), split="train")
    other = rows.map(lambda _: {"semantic_class_to_id": {"background": 0, "cat": 2, "dog": 1}}, features=rows.features)
    concatenate_datasets([rows, other]).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="Row 1: semantic_class_to_id is not that of row 0"):
        open_dataset(DataArguments(dataset_name=str(folder), task="instance"), "train")


def test_masks_of_0_and_255_are_refused_with_the_reason(tmp_path):
    map_ = np.zeros((40, 60), dtype=np.uint8)
    map_[10:30] = 255
    folder = make.semantic(tmp_path / "d", [map_, map_], names=("background", "foreground"))
    argv = flags(folder, tmp_path / "out", task="semantic", eval_split="train")
    with pytest.raises(ValueError, match="have only 'background' and void; 255 is void: divide masks of 0 and 255"):
        finetune.main(argv)


def test_a_split_without_objects_and_flags_without_effect_are_refused(tmp_path):
    names = {"id2label.json": {"0": "a"}}
    rows = [{"image": make.photo(), "objects": "[]"}]
    folder = str(make.write(tmp_path / "d", rows, {"image": Image(), "objects": Value("string")}, names))
    with pytest.raises(ValueError, match="has no image with an object"):
        open_dataset(DataArguments(dataset_name=folder, task="instance"), "train", drop_empty=True)
    with pytest.raises(ValueError, match="do_reduce_labels is for label maps"):
        open_dataset(DataArguments(dataset_name=folder, task="instance", do_reduce_labels=True), "train")
    folder = str(make.semantic(tmp_path / "s", [np.zeros((40, 60), dtype=np.uint8)]))
    with pytest.raises(ValueError, match="void_label 1 is the id of a class"):
        open_dataset(DataArguments(dataset_name=folder, task="semantic", void_label=1), "train")


# --- Models, processors, flags ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_checkpoints_of_half_precision_work(dtype, tmp_path, saved):
    tiny_model().to(dtype).save_pretrained(saved)
    assert load_model(str(saved)).dtype == torch.float32
    make.photo().save(tmp_path / "photo.png")
    predict.main([str(saved), str(tmp_path / "photo.png"), str(tmp_path / "out")])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mask_piloting": "false"}, "mask_piloting must be true or false"),
        ({"pilot_class_loss": "no"}, "pilot_class_loss must be true or false"),
        ({"pilot_layers": 1.5}, "pilot_layers must be an integer"),
        ({"pilot_groups": True}, "pilot_groups must be an integer"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label must map the ids 0 to 1 to names, it has the ids 0, 2"),
    ],
)
def test_fields_of_the_wrong_type_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MPFormerConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"do_resize": "false"},
        {"label_ids_to_fuse": "12"},
        {"label_ids_to_fuse": [1.7]},
        {"ignore_index": "255"},
        {"size_divisor": -32},
        {"rescale_factor": float("nan")},
    ],
)
def test_fields_of_the_processor_are_checked(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} must be"):
        MPFormerImageProcessor(**fields)


def test_images_and_maps_of_other_types():
    assert to_eight_bits(np.array([[True, False]])).tolist() == [[255, 0]]
    with pytest.raises(ValueError, match="values of type complex64"):
        to_eight_bits(np.zeros((2, 2), dtype=np.complex64))
    assert as_maps(np.full((2, 2), 3_000_000_000, dtype=np.uint32))[0].tolist() == [[3_000_000_000] * 2] * 2
    with pytest.raises(ValueError, match="has ids down to"):
        as_maps(np.full((2, 2), -(2**40), dtype=np.int64))
    with torch.no_grad():
        outputs = tiny_model()(torch.randn(1, 3, 64, 96))
    for size in ((40, 60, 3), (40,), (40.7, 60), (0, 60), (-1, 60)):
        with pytest.raises(ValueError, match="target_sizes must be pairs"):
            MPFormerImageProcessor().post_process_panoptic_segmentation(outputs, target_sizes=[size])


@pytest.mark.parametrize(
    "labels, message",
    [(torch.ones(2, dtype=torch.bool), "dtype torch.bool"), (torch.zeros(2, 1).long(), r"shape \(2, 1\)")],
)
def test_class_labels_of_other_forms_are_refused(labels, message):
    masks = [torch.ones(2, 64, 64)]
    with pytest.raises(ValueError, match=message):
        tiny_model().train()(torch.randn(1, 3, 64, 64), mask_labels=masks, class_labels=[labels])


def test_recipes_and_flags_without_effect_are_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ValueError, match="seed is given twice"):
        read_recipe(str(recipe))
    recipe.write_text("lr_milestones: []\n")
    with pytest.raises(ValueError, match="lr_milestones is an empty list"):
        parse_arguments(["--config", str(recipe)])
    with pytest.raises(ValueError, match="early_stopping_patience needs eval_steps"):
        parse_arguments(["--early_stopping_patience", "2"])
    for fields, message in (
        ({"backbone_config": {"model_type": "resnet", "hidden_sizess": [1]}}, "unknown fields: hidden_sizess"),
        ({"id2label": {"0": "a"}}, "class names are read from the dataset"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(ModelArguments(model_fields=json.dumps(fields)), PilotArguments(), Labels(["a"], {0: 0}, set()))


# --- Commands ---


def test_a_plain_mask2former_is_scored_with_the_stuff_of_the_dataset(saved, shapes, tmp_path, monkeypatch, capsys):
    tiny_model(num_labels=8).save_pretrained(saved)
    convert.main(["to-mask2former", str(saved), str(tmp_path / "plain")])
    used = []
    monkeypatch.setattr(evaluate, "evaluate_model", lambda model, processor, *_, **__: used.append(processor) or {})
    data = ["--dataset_name", str(shapes), "--task", "panoptic"]
    evaluate.main(["--model_name_or_path", str(tmp_path / "plain"), *data])
    labels = open_dataset(DataArguments(dataset_name=str(shapes)), "validation").labels
    assert used[0].label_ids_to_fuse == labels.stuff != []
    make.photo().save(tmp_path / "photo.png")
    predict.main([str(tmp_path / "plain"), str(tmp_path / "photo.png"), str(tmp_path / "out")])
    assert "names no stuff classes" in capsys.readouterr().err


def test_lost_pictures_are_written_again_and_broken_results_replaced(saved, tmp_path):
    make.photo().save(tmp_path / "photo.png")
    argv = [str(saved), str(tmp_path / "photo.png"), str(tmp_path / "out")]
    predict.main(argv)
    out = tmp_path / "out"
    (out / "predictions" / "photo.png").unlink()
    predict.main(argv)
    assert (out / "predictions" / "photo.png").is_file()
    expected = (out / "results" / "photo.json").read_text()
    for text in ("[]", "null", "5", json.dumps({"pixels_sha256": json.loads(expected)["pixels_sha256"]})):
        (out / "results" / "photo.json").write_text(text)
        predict.main(argv)
        assert (out / "results" / "photo.json").read_text() == expected
    (out / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a mapping of settings"):
        predict.main(argv)


def test_earlier_predictions_are_not_segmented_and_tables_not_ignored(saved, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    make.photo().save(photos / "a.png")
    predict.main([str(saved), str(photos), str(photos / "one")])
    predict.main([str(saved), str(photos), str(photos / "two")])
    assert capsys.readouterr().out.count("1 of 1 images") == 2
    make.semantic(photos / "table", [np.zeros((40, 60), dtype=np.uint8)])
    with pytest.raises(ValueError, match="has parquet files and 1 images"):
        predict.main([str(saved), str(photos), str(tmp_path / "out")])


def test_unreadable_images_of_a_dataset_are_skipped(saved, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    rows = [{"image": {"path": str(tmp_path / "bad.png")}}, {"image": make.photo()}]
    folder = make.write(tmp_path / "d", rows, {"image": Image()}, {})
    predict.main([str(saved), str(folder), str(tmp_path / "out"), "--split", "train"])
    told = capsys.readouterr()
    assert "1 of 2 images" in told.out and "skipped train_000000: it is not an image file" in told.err


def test_a_push_that_cannot_work_is_noticed_before_training(shapes, tmp_path):
    with pytest.raises(ValueError, match=r"^push_to_hub: .*(Token|offline)"):
        finetune.main(flags(shapes, tmp_path / "out", push_to_hub=True))
    assert not (tmp_path / "out").exists()


def test_two_outputs_of_one_name_are_refused(tmp_path):
    both = str(tmp_path / "same")
    with pytest.raises(ValueError, match="is given twice"):
        evaluate.main(["--output_file", both, "--report", both, "--dataset_name", "x"])
    with pytest.raises(ValueError, match="diagnostics must be a file"):
        evaluate.main(["--diagnostics", str(tmp_path / "plot.xyz"), "--dataset_name", "x"])
