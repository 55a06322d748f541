"""Invalid annotations end in a sentence that names what is wrong; nothing is silently misread."""

import json

import numpy as np
import pytest
import torch
from datasets import Image, Value
from PIL import Image as PILImage
from pycocotools import mask as coco_mask

from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.coco_masks import decode_segmentation
from mpformer_hf.data.dataset import open_dataset
from mpformer_hf.evaluation.task_metrics import TaskMetrics, semantic_reference
from mpformer_hf.files import write_json
from mpformer_hf.label_maps import encode_rle, split_segments
from mpformer_hf.metrics.mean_iou import MeanIoU
from tests import datasets_on_disk as make
from tests.runs import flags
from training import finetune

HUGE = [[1.0, 1.0, 1e9, 1.0, 1e9, 1e9]]


def random_mask(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, 2)
    return rng.random((height, width)) < rng.random()


@pytest.mark.parametrize("seed", range(20))
def test_rle_equals_pycocotools(seed):
    mask = random_mask(seed)
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    for rle in (compressed, {**compressed, "counts": compressed["counts"].decode()}, encode_rle(mask)):
        assert np.array_equal(decode_segmentation(rle, *mask.shape), mask)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_equal_pycocotools(seed):
    rng = np.random.default_rng(seed)
    polygons = [(rng.random(2 * rng.integers(3, 8)) * 50 - 5).tolist() for _ in range(2)]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 60))).astype(bool)
    assert np.array_equal(decode_segmentation(polygons, 40, 60), expected)


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ({"size": [40, 60], "counts": [10, 20]}, "an RLE of 30 pixels, the image has 2400"),
        ({"size": [40, 60], "counts": [10, -20, 2410]}, "not integers of at least 0"),
        ({"size": [40, 60], "counts": [10.5, 2389.5]}, "not integers of at least 0"),
        ({"size": [40, 60], "counts": "0"}, "an RLE of 0 pixels"),
        ({"size": [40, 60], "counts": "o"}, "truncated"),
        ({"size": [40, 60], "counts": "\n"}, "not COCO's compressed format"),
        ({"size": [40, 60], "counts": 7}, "neither a list nor a string"),
        ({"size": [60, 40], "counts": [2400]}, "an RLE of 60x40, the image is 40x60"),
        ({"counts": [2400]}, "without size and counts"),
        (HUGE, "far outside of the image"),
        ([[1.0, 1.0, float("inf"), 1.0, 5.0, 5.0]], "far outside of the image"),
        ([[1.0, 1.0, float("nan"), 1.0, 5.0, 5.0]], "far outside of the image"),
        ([[1.0, 1.0, 5.0, 5.0]], "a polygon of 4 coordinates"),
        ([[1.0, 1.0, 5.0, 5.0, 7.0, 7.0, 9.0]], "a polygon of 7 coordinates"),
        ([["a"] * 6], "neither polygons nor RLE"),
        ([], "neither polygons nor RLE"),
        ("polygon", "neither polygons nor RLE"),
        (None, "neither polygons nor RLE"),
    ],
)
def test_invalid_segmentations_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_segmentation(segmentation, 40, 60)


def coco_folder(folder, **changes):
    """The folder of `make.coco_instances` with changes to the content of its train file."""
    make.coco_instances(folder)
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for key, change in changes.items():
        change(content[key])
    file.write_text(json.dumps(content))
    return DataArguments(dataset_name=str(folder), task="instance")


def set_first(**values):
    return lambda rows: rows[0].update(values)


def drop_first(key):
    return lambda rows: rows[0].pop(key)


def repeat_first(rows):
    rows.append(dict(rows[0]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"annotations": drop_first("category_id")}, r"annotations\[0\] has category_id None"),
        ({"annotations": set_first(category_id=99)}, r"annotations\[0\] has category_id 99"),
        ({"annotations": set_first(category_id=18.7)}, r"annotations\[0\] has category_id 18.7"),
        ({"annotations": set_first(iscrowd="0")}, r"annotations\[0\] has iscrowd '0', expected 0 or 1"),
        ({"annotations": set_first(image_id=8)}, r"annotations\[0\] has image_id 8, which is not in images"),
        ({"annotations": drop_first("segmentation")}, r"annotations\[0\] has no segmentation"),
        ({"categories": set_first(id=18)}, "categories have the id 18 2 times"),
        ({"categories": set_first(name="dog")}, "categories have the name 'dog' 2 times"),
        ({"categories": set_first(isthing=None)}, r"categories\[0\] has isthing None"),
        ({"images": repeat_first}, "images have the id 7 2 times"),
        ({"images": drop_first("file_name")}, r"images\[0\] has no file_name"),
        ({"images": set_first(height=-1)}, r"images\[0\] has height -1"),
    ],
)
def test_invalid_coco_files_are_refused_before_training(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_dataset(coco_folder(tmp_path / "coco", **changes), "train")


def test_all_problems_of_a_coco_file_are_counted_and_ten_are_named(tmp_path):
    def break_all(rows):
        rows[:] = [{**rows[0], "category_id": -index} for index in range(25)]

    with pytest.raises(ValueError, match=r"has 25 problems: .*; and 15 more") as error:
        open_dataset(coco_folder(tmp_path / "coco", annotations=break_all), "train")
    assert str(error.value).count("category_id") == 10


@pytest.mark.parametrize(
    "text, message", [("{", "cannot be read as JSON"), ("[]", "not a mapping"), ("{}", "no list of")]
)
def test_files_that_are_not_coco_are_refused(text, message, tmp_path):
    data = coco_folder(tmp_path / "coco")
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset(data, "train")


def test_sizes_in_coco_files_are_compared_with_the_images(tmp_path):
    data = coco_folder(tmp_path / "coco", images=set_first(height=80, width=120))
    with pytest.raises(ValueError, match="Row 0: the image is 40x60, but 80x120 in the annotations"):
        open_dataset(data, "train")[0]


@pytest.mark.parametrize("segment", [{"id": 0}, {"id": 5}, {"category_id": 7}, {"iscrowd": "0"}])
def test_invalid_segments_of_panoptic_files_are_refused(segment, tmp_path):
    folder = make.coco_panoptic(tmp_path / "coco")
    content = json.loads((folder / "panoptic.json").read_text())
    content["annotations"][0]["segments_info"][0].update(segment)
    (folder / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"panoptic\.json has 1 problem: annotations"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")


def test_categories_that_contradict_the_names_are_refused(tmp_path):
    ids, segments = np.ones((40, 60), dtype=np.int32), [{"id": 1, "category_id": 0, "isthing": 0, "iscrowd": 0}]
    categories = [{"id": 0, "name": "road", "isthing": 0}, {"id": 1, "name": "car", "isthing": 1}]
    folder = make.panoptic(tmp_path / "data", ids, segments, categories=categories)
    (folder / "id2label.json").write_text(json.dumps({"0": "car", "1": "road"}))
    with pytest.raises(ValueError, match=r"two names for class 0: 'car' in id2label\.json and 'road'"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")
    categories[1]["isthing"] = None
    (folder / "panoptic_categories.json").write_text(json.dumps(categories))
    with pytest.raises(ValueError, match="isthing None"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")


def test_lossy_and_fractional_label_images_are_refused(tmp_path):
    photo, column = make.photo(), {"image": Image(), "label": Image()}
    names = {"id2label.json": {"0": "a", "1": "b"}}
    lossy = tmp_path / "lossy.jpg"
    make.photo(mode="L").save(lossy)
    make.write(tmp_path / "jpeg", [{"image": photo, "label": {"path": str(lossy)}}], column, names)
    fractional = PILImage.fromarray(np.full((40, 60), 0.7, dtype=np.float32))
    fractional.save(tmp_path / "float.tiff")
    make.write(tmp_path / "float", [{"image": photo, "label": {"path": str(tmp_path / "float.tiff")}}], column, names)
    for name, message in (
        ("jpeg", "Row 0: the label is a JPEG"),
        ("float", "Row 0: the label has values of type float"),
    ):
        data = DataArguments(dataset_name=str(tmp_path / name), task="semantic")
        with pytest.raises(ValueError, match=message):
            open_dataset(data, "train")[0]


# --- More than 255 classes ---


def test_class_255_is_a_class_where_there_are_more(tmp_path):
    map_ = np.full((40, 60), 254, dtype=np.uint16)
    map_[:10], map_[10:20] = 255, 299
    names = [f"class {i}" for i in range(300)]
    data = DataArguments(dataset_name=str(make.semantic(tmp_path / "d", [map_], names=names)), task="semantic")
    split = open_dataset(data, "train")
    _, segments = split[0]
    assert sorted(segments.classes.values()) == [254, 255, 299]
    assert semantic_reference(segments)[0, 0] == 255
    scores = TaskMetrics("semantic", split.labels)
    wrong = torch.from_numpy(map_.astype(np.int64))
    wrong[:10] = 299
    scores.add({"semantic": wrong}, segments)
    assert scores.compute()["per_class_iou"]["class 255"] == 0.0
    with pytest.raises(ValueError, match="ignore_index 255 is one of the 300 classes"):
        MeanIoU(num_labels=300)


def test_objects_of_class_255_are_targets(tmp_path):
    square = [[1.0, 1.0, 20.0, 1.0, 20.0, 20.0, 1.0, 20.0]]
    objects = json.dumps([{"category": c, "segmentation": square, "iscrowd": 0} for c in (254, 255, 256)])
    names = {"id2label.json": {str(i): f"class {i}" for i in range(300)}}
    features = {"image": Image(), "objects": Value("string")}
    folder = make.write(tmp_path / "d", [{"image": make.photo(), "objects": objects}], features, names)
    _, segments = open_dataset(DataArguments(dataset_name=str(folder), task="instance"), "train")[0]
    assert sorted(segments.classes.values()) == [254, 255, 256]


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


# --- Images that cannot be read ---


def broken_images(folder):
    """Three rows; the second image is truncated, the third label is not an image."""
    rows, names = [], {"0": "road", "1": "car"}
    for index in range(3):
        image, label = folder / f"image{index}.png", folder / f"label{index}.png"
        folder.mkdir(exist_ok=True)
        make.photo().save(image)
        PILImage.fromarray(np.zeros((40, 60), dtype=np.uint8)).save(label)
        rows.append({"image": str(image), "label": str(label)})
    (folder / "image1.png").write_bytes((folder / "image1.png").read_bytes()[:200])
    (folder / "label2.png").write_text("no image")
    make.write(folder / "data", rows, {"image": Image(), "label": Image()}, {})
    write_json(names, folder / "data" / "id2label.json")
    return folder / "data"


def test_images_that_cannot_be_read_are_named(tmp_path):
    split = open_dataset(DataArguments(dataset_name=str(broken_images(tmp_path / "d")), task="semantic"), "train")
    assert split[0][0].shape == (3, 40, 60)
    with pytest.raises(ValueError, match=r"Row 1 \(.*image1\.png\): it cannot be decoded"):
        split[1]
    with pytest.raises(ValueError, match=r"Row 2 \(.*label2\.png\): it is not an image file"):
        split[2]
    assert split.image_size(0) == (40, 60) and split.image_size(1) == (0, 0)


def test_a_flipped_byte_in_a_label_png_is_noticed(tmp_path):
    folder = make.coco_panoptic(tmp_path / "coco")
    file = folder / "panoptic" / "one.png"
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 255
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"Row 0 \(.*one\.png\): it cannot be decoded: broken PNG file"):
        open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_invalid_row_stops_training_in_one_sentence(workers, shapes, tmp_path):
    argv = flags(broken_images(tmp_path / "d"), tmp_path / "out", task="semantic", dataloader_num_workers=workers)
    with pytest.raises(ValueError, match=r"^Row [12] \(.*\): it "):
        finetune.main([*argv, "--train_split", "train", "--eval_split", "train"])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_and_named_if_that_is_asked_for(workers, tmp_path, capsys):
    options = {"task": "semantic", "dataloader_num_workers": workers, "skip_bad_images": True, "max_train_steps": 1}
    argv = flags(broken_images(tmp_path / "d"), tmp_path / "out", **options)
    results = finetune.main([*argv, "--train_split", "train", "--eval_split", "train"])
    assert results["last"]["images"] == 1 and len(results["skipped_images"]) == 4  # two of each split
    assert (
        json.loads((tmp_path / "out" / "all_results.json").read_text())["skipped_images"] == results["skipped_images"]
    )
    assert "4 images were left out: Row 1 (" in capsys.readouterr().out
    (tmp_path / "d" / "image0.png").write_text("no image")
    with pytest.raises(ValueError, match="All 3 images are invalid; the first one: Row 0"):
        open_dataset(
            DataArguments(dataset_name=str(tmp_path / "d" / "data"), task="semantic", skip_bad_images=True), "train"
        )


def test_rows_are_named_by_their_number_in_the_file(tmp_path):
    folder = str(broken_images(tmp_path / "d"))
    data = DataArguments(dataset_name=folder, task="semantic", validation_share=0.34, skip_bad_images=True)
    skipped = []
    for split in ("train", "validation"):
        try:
            skipped += open_dataset(data, split).skipped
        except ValueError as error:  # its only image is invalid
            skipped.append(str(error).split("first one: ")[1])
    assert sorted(error.split(" (")[0] for error in skipped) == ["Row 1", "Row 2"]


# --- COCO folders as people have them ---


def test_a_linked_folder_of_images_is_found(tmp_path):
    folder = make.coco_panoptic(tmp_path / "coco")
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    (folder / "images" / "above").symlink_to(folder)  # a cycle
    split = open_dataset(DataArguments(dataset_name=str(folder), task="panoptic"), "train")
    assert split[0][0].shape == (3, 40, 60)


def test_archives_beside_the_folders_are_ignored(tmp_path):
    data = coco_folder(tmp_path / "coco")
    (tmp_path / "coco" / "train2017.zip").write_bytes(b"PK")
    assert len(open_dataset(data, "train")) == 1


def test_coco_folders_cannot_be_streamed(tmp_path):
    data = coco_folder(tmp_path / "coco")
    data.streaming = True
    with pytest.raises(ValueError, match=r"is COCO .*, which cannot be read with streaming: leave it out"):
        open_dataset(data, "train")


def single_json(folder, images=10):
    """A COCO folder with one JSON for all images, as annotation tools export it."""
    make.coco_instances(folder)
    names = [f"{index}.png" for index in range(images)]
    for name in names:
        make.photo().save(folder / "train2017" / name)
    square = [[1, 1, 20, 1, 20, 20, 1, 20]]
    content = {
        "images": [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(names)],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": i, "category_id": 3, "segmentation": square} for i in range(images)],
    }
    for file in (folder / "annotations").iterdir():
        file.unlink()
    (folder / "annotations" / "annotations.json").write_text(json.dumps(content))
    return folder


def test_one_json_is_not_used_for_training_and_evaluation(tmp_path):
    folder = single_json(tmp_path / "coco")
    argv = flags(folder, tmp_path / "out", task="instance")
    with pytest.raises(ValueError, match=r"annotations\.json is of no split, .* give --validation_share 0\.1"):
        finetune.main(argv)
    results = finetune.main([*argv, "--validation_share", "0.2", "--max_train_steps", "1"])
    assert results["last"]["images"] == 2
    assert "`validation` split (0.2 of `train`)" in (tmp_path / "out" / "README.md").read_text()


def test_the_validation_share_is_drawn_by_a_fixed_seed(tmp_path):
    args = {"dataset_name": str(single_json(tmp_path / "coco")), "task": "instance", "validation_share": 0.3}
    data = DataArguments(**args)

    def files(split):
        return [row["image"]["path"] for row in open_dataset(data, split).rows]

    train, validation = files("train"), files("validation")
    assert len(train) == 7 and len(validation) == 3 and not set(train) & set(validation)
    assert files("validation") == validation and len(open_dataset(data, "test").rows) == 10
    with pytest.raises(ValueError, match="leaves 0 to evaluate on"):
        open_dataset(DataArguments(**{**args, "validation_share": 0.01}), "train")
    with pytest.raises(ValueError, match="eval_split must have another name"):
        DataArguments(**args, eval_split="train")
    with pytest.raises(ValueError, match="validation_share needs the whole dataset: leave out streaming"):
        DataArguments(**args, streaming=True)
