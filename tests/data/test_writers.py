"""From a dataset as distributed to the official score: the files that `mpformer evaluate` writes, read by the official
tools without a change, give the scores that it prints."""

import json
import shutil
from pathlib import Path

import hotcoco.panoptic
import hotcoco.semantic
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_dilation, binary_fill_holes

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli import evaluate, predict
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.coco_masks import decode_segmentation
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.data.result_names import result_names
from mpformer_hf.data.writers.ade20k import Ade20k
from mpformer_hf.data.writers.cityscapes import Cityscapes
from mpformer_hf.data.writers.format import Category, ImageRecord, describe_segments
from mpformer_hf.data.writers.registry import FORMATS
from mpformer_hf.data.writers.yolo import Yolo
from mpformer_hf.evaluation import evaluator
from mpformer_hf.evaluation.task_metrics import semantic_reference
from mpformer_hf.hub import converting
from mpformer_hf.inference import arguments
from mpformer_hf.model.boxes import mask_boxes
from mpformer_hf.model.cleaning import without_duplicates
from mpformer_hf.training import finetune
from mpformer_hf.utils.files import read_json
from tests import official_folders
from tests.data.test_layouts import CASES, ONE_SPLIT
from tests.runs import flags
from tests.tiny import tiny_model


def opened(folder, task, split="train", **fields):
    return open_dataset(DataArguments(dataset_name=str(folder), task=task, **fields), split)


def areas(dataset, index=0):
    """Pixels of each segment of an image."""
    segments = dataset[index][1]
    return sorted(int((segments.map == i).sum()) for i in segments.classes)


def saved_model(folder: Path, names: list[str], **fields) -> Path:
    tiny_model(num_labels=len(names), id2label=dict(enumerate(names))).save_pretrained(folder)
    MPFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, **fields).save_pretrained(folder)
    return folder


def test_files_for_cityscapes_have_its_names_and_ids(tmp_path):
    folder = official_folders.cityscapes(tmp_path / "data")
    names = opened(folder, "semantic").labels.names
    plain = saved_model(tmp_path / "plain", names, task="semantic")
    argv = [str(folder / "leftImg8bit" / "val"), str(tmp_path / "out"), "--formats", "cityscapes"]
    with pytest.raises(SystemExit, match="needs label ids of Cityscapes; 'road' has 0"):
        mpformer(["predict", str(plain), *argv])
    ids = converting.category_ids("cityscapes", names, "semantic")
    saved = saved_model(tmp_path / "saved", names, task="semantic", category_ids=ids)
    mpformer(["predict", str(saved), *argv])
    files = sorted(path.name for path in (tmp_path / "out" / "cityscapes").iterdir())
    assert files == [f"berlin_{i:06d}_000019_pred.png" for i in range(2)]
    writer = Cityscapes(tmp_path / "x", "semantic", [Category(7, "road", False)], 0.0)
    for name in ("a", "b"):
        record = ImageRecord(name, f"{name}/same.png", name, 2, 2)
        if name == "b":
            with pytest.raises(ValueError, match="b and a have one file name"):
                writer.write(record, torch.zeros(2, 2, dtype=torch.int64))
        else:
            writer.write(record, torch.zeros(2, 2, dtype=torch.int64))


def test_writers_refuse_or_fill_what_they_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="has 8 bits, for 255 classes; there are 300"):
        Ade20k(tmp_path, "semantic", [Category(i, str(i), False) for i in range(300)], 0.0)
    mask = np.zeros((60, 60), bool)
    mask[5:55, 5:55] = True
    mask[15:45, 15:45] = False
    mask[25:35, 25:35] = True  # an island in a hole
    names = ["5\" x 3'", "a\\nb"]
    writer = Yolo(tmp_path, "instance", [Category(i, name, True) for i, name in enumerate(names)], 0.0)
    result = {"segmentation": torch.from_numpy(mask)[None], "segments_info": [{"label_id": 1, "score": 0.9}]}
    writer.write(ImageRecord(0, "one.jpg", "one", 60, 60), result)
    writer.finish([])
    with pytest.raises(ValueError, match="train is images, which does not exist"):
        opened(tmp_path, "instance")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "images" / "one.jpg")
    dataset = opened(tmp_path, "instance")
    assert dataset.labels.names == names and areas(dataset) == [2500]


def objects_of(segments, labels, rng, damage: bool, ties: bool = False) -> dict:
    """Instances: the objects of the truth; with damage moved, some missing, of another class, or found twice."""
    layers = segments.map.view(-1, *segments.map.shape[-2:])
    objects = [(label, (layers == i).any(0)) for i, label in (segments.classes | segments.crowds).items()]
    objects = [(label, mask) for label, mask in objects if label in labels.things and mask.any()]
    found = []
    for label, mask in objects:
        if not damage:
            found.append((label, mask))
            continue
        for _ in range(int(rng.integers(0, 3))):
            moved = torch.roll(mask, tuple(rng.integers(-3, 4, 2).tolist()), (0, 1))
            other = sorted(labels.things)[int(rng.integers(len(labels.things)))]
            found.append((label if rng.random() < 0.8 else other, moved))
    if damage:  # one on whatever is there
        free = torch.zeros(layers.shape[-2:], dtype=torch.bool)
        free[30:48, 30:] = True
        found.append((sorted(labels.things)[0], free))
    scores = rng.random(len(found)).round(1 if ties else 9)
    rows = sorted(zip(scores.tolist(), found, strict=True), key=lambda row: -row[0])
    masks = torch.stack([mask for _, (_, mask) in rows]) if rows else layers[:0].bool()
    boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in mask_boxes(masks).tolist()]
    infos = [
        {"id": i, "label_id": label, "score": score, "bbox": box}
        for i, ((score, (label, _)), box) in enumerate(zip(rows, boxes, strict=True))
    ]
    return evaluator.instance_prediction({"segmentation": masks, "segments_info": infos}, 0.5)


def panoptic_of(segments, rng, damage: bool) -> dict:
    """Panoptic result: the segments of the truth; with damage moved, and one of another class."""
    map_ = segments.map
    if damage:
        map_ = torch.roll(map_, tuple(rng.integers(-4, 5, 2).tolist()), (0, 1))
    rows, result = [], torch.zeros_like(map_, dtype=torch.int64)
    known = segments.classes | (segments.crowds if damage else {})
    for number, (segment, label) in enumerate(known.items(), start=1):
        mask = map_ == segment
        if mask.any() and not (damage and rng.random() < 0.1):
            result[mask] = number + 300
            rows.append({"id": number + 300, "label_id": label, "score": 0.9, "was_fused": False})
    if damage and len(rows) > 1:
        rows[0]["label_id"] = rows[1]["label_id"]
    return {"segmentation": result, "segments_info": rows}


def semantic_of(segments, labels, rng, damage: bool) -> torch.Tensor:
    """Semantic map: the truth, void as class 0; with damage moved and partly of random classes."""
    map_ = semantic_reference(segments).clamp(min=0)
    if damage:
        map_ = torch.roll(map_, tuple(rng.integers(-4, 5, 2).tolist()), (0, 1))
        map_[30:36, :20] = int(rng.integers(len(labels.names)))
    return map_


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Evaluates with results that are made of the truth instead of a model's; returns a function of folder, task,
    formats and damage that gives the scores."""

    def run(folder: Path, task: str, split: str, formats: str, damage: bool, seed: int = 0, ties: bool = False) -> dict:
        labels = open_dataset(DataArguments(dataset_name=str(folder), task=task), split).labels
        saved = tmp_path / "model"
        shutil.rmtree(saved, ignore_errors=True)
        tiny_model(num_labels=len(labels.names), id2label=labels.id2label).save_pretrained(saved)
        MPFormerImageProcessor(task=task).save_pretrained(saved)
        rng = np.random.default_rng(seed)

        def predict_batch(model, processor, batch, accelerator, max_detections=100, things=False):
            (segments,) = batch["segments"]
            if task == "semantic":
                map_ = semantic_of(segments, labels, rng, damage)
                return [{"semantic": map_, "drawn": map_, "result": map_}]
            instances = objects_of(segments, labels, rng, damage, ties)
            if task == "instance":
                return [instances]
            panoptic = panoptic_of(segments, rng, damage)
            map_ = semantic_of(segments, labels, rng, damage)
            return [{**instances, "semantic": map_, "panoptic": panoptic, "drawn": panoptic, "result": panoptic}]

        monkeypatch.setattr(evaluator, "predict_batch", predict_batch)
        out = tmp_path / "predictions"
        shutil.rmtree(out, ignore_errors=True)
        argv = ["--dataset_name", str(folder), "--task", task, "--eval_split", split, "--num_pictures", "0"]
        argv += ["--model", str(saved), "--predictions_dir", str(out), "--save_predictions"]
        return evaluate.main([*argv, *formats.split()])

    run.out = tmp_path / "predictions"
    return run


@pytest.fixture
def cityscapes_tools(tmp_path, monkeypatch):
    """cityscapesScripts, which needs a function that NumPy 2.4 no longer has, and cannot write its own matches as JSON
    (numbers of NumPy)."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.chdir(tmp_path)
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as instances
    from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as panoptic
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as pixels
    from cityscapesscripts.preparation import createPanopticImgs as preparation

    monkeypatch.setattr(instances, "writeDict2JSON", lambda content, file: None)
    for module in (instances, pixels):
        monkeypatch.setattr(module.args, "quiet", True)
        monkeypatch.setattr(module.args, "JSONOutput", False)
        monkeypatch.setattr(module.args, "predictionWalk", None)
    return instances, panoptic, pixels, preparation


DAMAGES = pytest.mark.parametrize("damage", [False, True], ids=["perfect", "damaged"])


def coco_scores(annotations: Path, predictions: Path) -> dict:
    """pycocotools on unchanged files."""
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(predictions)), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    return {name: value if value > -1 else None for name, value in zip(names, evaluation.stats.tolist(), strict=False)}


@DAMAGES
@pytest.mark.parametrize(
    ("build", "file"),
    [
        (official_folders.coco_instances, "annotations/instances_val2017.json"),
        (official_folders.roboflow, "valid/_annotations.coco.json"),
        (official_folders.cvat, "annotations/instances_default.json"),
    ],
)
def test_coco_instances(build, file, damage, model, tmp_path):
    folder = build(tmp_path / "data")
    scores = model(folder, "instance", "validation", "coco cvat", damage)
    official = coco_scores(folder / file, model.out / "predictions.json")
    assert {name: scores[name] for name in official} == pytest.approx(official, abs=1e-6)
    assert scores["ap"] == 1 if not damage else 0 < scores["ap"] < 1
    ids = {image["id"] for image in read_json(folder / file)["images"]}
    assert {row["image_id"] for row in read_json(model.out / "predictions.json")} <= ids
    assert scores["ap_medium"] is not None and scores["ap_large"] is None


def test_objects_have_the_sizes_that_coco_states(model, tmp_path):
    folder = official_folders.coco_instances(tmp_path / "data")
    small = model(folder, "instance", "validation", "coco", False)["ap_small"]
    file = folder / "annotations" / "instances_val2017.json"
    content = read_json(file)
    for row in content["annotations"]:
        row["area"] = 1e6
    file.write_text(json.dumps(content))
    scores = model(folder, "instance", "validation", "coco", False)
    assert small == 1 and scores["ap_small"] is None and scores["ap_large"] == 1
    assert coco_scores(file, model.out / "predictions.json")["ap_large"] == 1


@DAMAGES
@pytest.mark.parametrize(
    ("build", "annotations"),
    [
        (official_folders.coco_panoptic, "annotations/panoptic_val2017.json"),
        (official_folders.ade20k_prepared, "ade20k_panoptic_val.json"),
        (official_folders.mapillary, "validation/panoptic/panoptic_2018.json"),
    ],
)
def test_panoptic_quality(build, annotations, damage, model, cityscapes_tools, tmp_path):
    """Both tools follow panopticapi; hotcoco reads no ids that are texts, as those of ADE20K are."""
    folder = build(tmp_path / "data")
    scores = model(folder, "panoptic", "validation", "coco_panoptic", damage)
    truth = folder / annotations
    maps = truth.with_suffix("") if "mapillary" not in build.__name__ else truth.parent
    files = [truth, maps, model.out / "predictions.json", model.out / "predictions", tmp_path / "results.json"]
    tools = [cityscapes_tools[1].evaluatePanoptic(*map(str, files))]
    if isinstance(read_json(truth)["images"][0]["id"], int):
        tools.append(hotcoco.panoptic.pq_compute(files[0], files[2], files[1], files[3]))
    for official in tools:
        for name, ours in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
            for key in ("pq", "sq", "rq"):
                assert scores[key + ours] == pytest.approx(official[name][key], abs=1e-6), (name, key)
    assert scores["boundary_pq"] <= scores["pq"] and (damage or scores["ap"] is not None)


@DAMAGES
def test_cityscapes_semantic(damage, model, cityscapes_tools, tmp_path):
    _, _, tool, _ = cityscapes_tools
    folder = official_folders.cityscapes(tmp_path / "data")
    scores = model(folder, "semantic", "val", "cityscapes", damage)
    truth = sorted(str(file) for file in (folder / "gtFine" / "val").glob("*/*_labelIds.png"))
    tool.args.predictionPath = str(model.out)
    predicted = [tool.getPrediction(tool.args, file) for file in truth]
    official = tool.evaluateImgLists(predicted, truth, tool.args)
    assert scores["mean_iou"] == pytest.approx(official["averageScoreClasses"], abs=1e-6)
    assert scores["mean_iou"] == 1 if not damage else 0 < scores["mean_iou"] < 1


@DAMAGES
def test_cityscapes_instances(damage, model, cityscapes_tools, tmp_path):
    tool, *_ = cityscapes_tools
    folder = official_folders.cityscapes(tmp_path / "data")
    scores = model(folder, "instance", "val", "cityscapes", damage)
    truth = sorted(str(file) for file in (folder / "gtFine" / "val").glob("*/*_instanceIds.png"))
    tool.args.predictionPath, tool.args.gtInstancesFile = str(model.out), str(tmp_path / "instances.json")
    predicted = [tool.getPrediction(file, tool.args) for file in truth]
    official = tool.evaluateImgLists(predicted, truth, tool.args)["averages"]
    assert scores["ap"] == pytest.approx(official["allAp"], abs=1e-6)
    assert scores["ap50"] == pytest.approx(official["allAp50%"], abs=1e-6)
    per_class = {name: value for name, value in scores["per_class_ap"].items() if value is not None}
    assert per_class == pytest.approx({name: official["classes"][name]["ap"] for name in per_class}, abs=1e-6)


def random_scene(rng) -> np.ndarray:
    """instanceIds of random rectangles: objects of two classes, also small ones, groups and void."""
    map_ = np.full((official_folders.HEIGHT, official_folders.WIDTH), 7, np.uint16)
    for number in range(8):
        height, width = rng.integers(4, 24, 2)
        y, x = rng.integers(0, official_folders.HEIGHT - height), rng.integers(0, official_folders.WIDTH - width)
        map_[y : y + height, x : x + width] = rng.choice([26000 + number, 24000 + number, 24, 26, 1, 29000, 23])
    return map_


@pytest.mark.parametrize("seed", [1, 2, 3, 5])
def test_cityscapes_instances_of_random_scenes(seed, model, cityscapes_tools, tmp_path):
    """Small objects, groups, void, predictions found twice and of equal scores."""
    tool, *_ = cityscapes_tools
    folder, rng = official_folders.cityscapes(tmp_path / "data"), np.random.default_rng(seed)
    for file in (folder / "gtFine" / "val").glob("*/*_instanceIds.png"):
        official_folders.save(random_scene(rng), file)
    scores = model(folder, "instance", "val", "cityscapes", True, seed=seed, ties=True)
    truth = sorted(str(file) for file in (folder / "gtFine" / "val").glob("*/*_instanceIds.png"))
    tool.args.predictionPath, tool.args.gtInstancesFile = str(model.out), str(tmp_path / "instances.json")
    official = tool.evaluateImgLists([tool.getPrediction(file, tool.args) for file in truth], truth, tool.args)
    averages = official["averages"]
    assert scores["ap"] == pytest.approx(averages["allAp"], abs=1e-6) and 0 < scores["ap"] < 1
    for name, value in scores["per_class_ap"].items():
        expected = averages["classes"][name]["ap"]
        assert np.isnan(expected) if value is None else value == pytest.approx(expected, abs=1e-6)


@DAMAGES
@pytest.mark.parametrize("prepared", [False, True])
def test_cityscapes_panoptic(prepared, damage, model, cityscapes_tools, tmp_path, capsys):
    _, tool, _, preparation = cityscapes_tools
    folder = official_folders.cityscapes(tmp_path / "data")
    truth = folder / "gtFine" if prepared else tmp_path / "prepared"
    truth.mkdir(exist_ok=True)
    preparation.convert2panoptic(str(folder / "gtFine"), str(truth), setNames=["val", "train"])
    scores = model(folder, "panoptic", "val", "cityscapes", damage)
    official = tool.evaluatePanoptic(
        str(truth / "cityscapes_panoptic_val.json"),
        str(truth / "cityscapes_panoptic_val"),
        str(model.out / "predictions.json"),
        str(model.out / "predictions"),
        str(tmp_path / "results.json"),
    )
    for name, ours in (("All", "pq"), ("Things", "pq_things"), ("Stuff", "pq_stuff")):
        assert scores[ours] == pytest.approx(official[name]["pq"], abs=1e-6), name


@DAMAGES
def test_ade20k_semantic(damage, model, tmp_path):
    folder = official_folders.ade20k(tmp_path / "data")
    scores = model(folder, "semantic", "validation", "ade20k", damage)
    tool = hotcoco.semantic.SemanticEval(151, ignore_index=0)  # files of the server: 0 = other, class + 1
    assert tool.update_folders(folder / "annotations" / "validation", model.out / "ade20k") == 2
    confusion = tool.confusion().astype(int)[1:, 1:]
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    assert scores["mean_iou"] == pytest.approx((np.diag(confusion)[union > 0] / union[union > 0]).mean(), abs=1e-6)
    assert scores["mean_iou"] == 1 if not damage else 0 < scores["mean_iou"] < 1


@DAMAGES
def test_yolo_labels_are_read_again(damage, model, tmp_path):
    folder = official_folders.yolo(tmp_path / "data")
    model(folder, "instance", "val", "yolo", damage)
    assert "1: car" in (model.out / "data.yaml").read_text()
    for split in ("train", "valid"):
        shutil.rmtree(folder / split / "labels")
        shutil.copytree(model.out / "labels", folder / split / "labels")
    read = open_dataset(DataArguments(dataset_name=str(folder), task="instance"), "val")
    rng = np.random.default_rng(0)
    truth = open_dataset(
        DataArguments(dataset_name=str(official_folders.yolo(tmp_path / "truth")), task="instance"), "val"
    )
    for index in range(3):
        expected = without_duplicates(objects_of(truth[index][1], truth.labels, rng, damage)["drawn"], 0.7)
        layers = read[index][1].map.view(-1, official_folders.HEIGHT, official_folders.WIDTH)
        found = [((layers == i).any(0), label) for i, label in read[index][1].classes.items()]
        assert len(found) == len(expected["segments_info"])
        for (mask, label), info, other in zip(found, expected["segments_info"], expected["segmentation"], strict=True):
            assert label == info["label_id"] and torch.equal(mask, other)


def test_annotations_for_cvat_are_coco(model, tmp_path):
    folder = official_folders.cvat(tmp_path / "data")
    model(folder, "instance", "train", "cvat", False)
    coco = COCO(str(model.out / "annotations" / "instances_default.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["person", "car"]
    masks = [coco.annToMask(row) for row in coco.loadAnns(coco.getAnnIds())]
    assert masks and {mask.shape for mask in masks} == {(official_folders.HEIGHT, official_folders.WIDTH)}
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == ["000000037777.jpg", "000000397133.jpg"]
    own = COCO(str(next((folder / "annotations").glob("*.json"))))
    names = {image["file_name"]: image["id"] for image in own.loadImgs(own.getImgIds())}
    assert {image["file_name"]: image["id"] for image in images} == names
    assert {row["name"]: row["id"] for row in coco.loadCats(coco.getCatIds())} == {
        row["name"]: row["id"] for row in own.loadCats(own.getCatIds())
    }


def brush_mask(numbers: list[int], shape: tuple[int, int]) -> np.ndarray:
    """The mask of Label Studio's brush, as its converter reads it: a header, then runs or single values."""
    bits = "".join(f"{number:08b}" for number in numbers)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, size = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        is_run, count = read(1), read(lengths[read(2)]) + 1
        values += [read(size)] * count if is_run else [read(size) for _ in range(count)]
    return np.array(values).reshape(*shape, 4)[..., 3] > 0


def test_labels_lie_where_tools_look_for_them(tmp_path, caplog):
    """By the path of the image; of two images with one path without suffix, at the top and with the whole path."""
    files = ["./day 1/a.jpg", "day 2/a:1.jpg", "b.jpg", "b.png"]
    records = [
        ImageRecord(i, file, name, 4, 6) for i, (file, name) in enumerate(zip(files, result_names(files), strict=True))
    ]
    result = {"segmentation": torch.ones(1, 4, 6), "segments_info": [{"id": 1, "label_id": 0, "score": 1.0}]}
    for name, suffix in (("labelme", ".json"), ("yolo", ".txt")):
        writer = FORMATS[name](tmp_path, "instance", [Category(1, "cat", True)], 0.5)
        for record in records:
            record.segments = describe_segments(result, "instance", {0: "cat"})
            writer.write(record, result)
        [folder] = writer.finish(records)
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
        assert found == [f"{stem}{suffix}" for stem in ("b.jpg", "b.png", "day 1/a", "day 2/a_1")]
        assert f"3 files of {name} are not named as their images" in caplog.text
    paths = [read_json(file)["imagePath"] for file in sorted((tmp_path / "labelme").rglob("*.json"))]
    assert paths == ["b.jpg", "b.png", "a.jpg", "a:1.jpg"]


def test_instances_in_the_forms_of_annotation_tools(tmp_path):
    """Each tool gets the instances above the threshold, without duplicates, pixel by pixel; polygons within 1 pixel."""
    torch.manual_seed(0)
    saved = saved_model(tmp_path / "model", ["cat", "dog", "cow", "pig"], task="instance")
    official_folders.save_photo(tmp_path / "photos" / "a.png")
    argv = [str(saved), str(tmp_path / "photos"), str(tmp_path / "out"), "--threshold", "0"]
    predict.main([*argv, "--formats", "labelme", "label_studio", "yolo"])
    out = tmp_path / "out"
    rows = read_json(out / "results" / "a.json")["segments"]
    kept = [row for row in rows if not row["duplicate"] and row["area"]]
    assert 1 < len(kept) < len([row for row in rows if row["area"]])
    expected = sorted((row["label"], decode_segmentation(row["segmentation"], 48, 64).tobytes()) for row in kept)
    [task] = read_json(out / "label_studio.json")
    assert task["data"] == {"image": "a.png"}
    found = [
        (row["value"]["brushlabels"][0], brush_mask(row["value"]["rle"], (48, 64)))
        for row in task["predictions"][0]["result"]
    ]
    assert sorted((name, mask.tobytes()) for name, mask in found if mask.any()) == expected
    shutil.copy(tmp_path / "photos" / "a.png", out / "labelme" / "a.png")
    for split in ("train",):
        (tmp_path / "lm" / split).mkdir(parents=True)
        for name in ("a.png", "a.json"):
            shutil.copy(out / "labelme" / name, tmp_path / "lm" / split / name)
    dataset = opened(tmp_path / "lm", "instance")
    _, segments = dataset[0]
    layers = segments.map.view(-1, 48, 64)
    masks = [(dataset.labels.names[label], (layers == i).any(0).numpy()) for i, label in segments.classes.items()]
    assert sorted((name, mask.tobytes()) for name, mask in masks if mask.any()) == expected
    argv = [*argv[:2], str(tmp_path / "polygons"), "--threshold", "0", "--polygons", "1"]
    predict.main([*argv, "--formats", "cvat"])
    file = tmp_path / "polygons" / "annotations" / "instances_default.json"
    content = read_json(file)
    assert len((out / "labels" / "a.txt").read_text().splitlines()) == len(kept)
    coco = COCO(str(file))
    by_id = {row["id"]: row["name"] for row in content["categories"]}
    for row, original in zip([r for r in content["annotations"] if r["area"]], kept, strict=True):
        assert isinstance(row["segmentation"], list) and by_id[row["category_id"]] == original["label"] and row["bbox"]
        mask, truth = coco.annToMask(row) > 0, decode_segmentation(original["segmentation"], 48, 64)
        near = binary_dilation(truth, iterations=2), ~binary_dilation(~binary_fill_holes(truth), iterations=2)
        assert not (mask & ~binary_fill_holes(near[0])).any() and not (near[1] & ~mask).any()
    with pytest.raises(SystemExit, match="polygons is for the formats cvat and label_studio"):
        mpformer(["predict", *argv, "--formats", "coco"])


def test_polygons_of_label_studio_are_the_masks(tmp_path):
    """Read by our reader, each part is an object; together they are the mask without holes, within a pixel."""
    torch.manual_seed(0)
    saved = saved_model(tmp_path / "model", ["cat"], task="instance")
    official_folders.save_photo(tmp_path / "photos" / "a.png")
    argv = [
        saved,
        tmp_path / "photos",
        tmp_path / "out",
        "--threshold",
        "0",
        "--formats",
        "label_studio",
        "--polygons",
        "1",
    ]
    mpformer(["predict", *map(str, argv)])
    [task] = read_json(tmp_path / "out" / "label_studio.json")
    rows = [
        r for r in read_json(tmp_path / "out" / "results" / "a.json")["segments"] if not r["duplicate"] and r["area"]
    ]
    regions = task["predictions"][0]["result"]
    assert rows and {r["type"] for r in regions} == {"polygonlabels"} and regions[0]["value"]["closed"] is True
    shutil.copytree(tmp_path / "photos", tmp_path / "read")
    for row in rows:
        own = [r for r in regions if r["id"].partition("-")[0] == str(row["id"])]
        accepted = [{**task, "annotations": [{"result": own}]}]
        (tmp_path / "read" / "export.json").write_text(json.dumps(accepted))
        _, segments = opened(tmp_path / "read", "instance")[0]
        mask = (segments.map.view(-1, 48, 64) > 0).any(0).numpy()
        truth = binary_fill_holes(decode_segmentation(row["segmentation"], 48, 64))
        assert len(segments.classes) == len(own)
        assert not (mask & ~binary_dilation(truth, iterations=2)).any()
        assert not (~binary_dilation(~truth, iterations=2) & ~mask).any()


def test_writers_that_do_not_fit(model, tmp_path):
    folder = official_folders.coco_instances(tmp_path / "data")
    with pytest.raises(ValueError, match="Format coco_panoptic is for task panoptic, not for task instance"):
        model(folder, "instance", "val", "coco_panoptic", False)
    with pytest.raises(ValueError, match="--save_predictions: invalid choice: 'pascal'"):
        model(folder, "instance", "val", "pascal", False)
    with pytest.raises(ValueError, match="must be given together"):
        evaluate.main(["model", str(folder), "--save_predictions", "coco"])
    assert set(arguments.FORMATS) == set(FORMATS)


@pytest.mark.parametrize("name", CASES)
def test_every_layout_is_trained_on_and_evaluated(name, tmp_path):
    build, task, _ = CASES[name]
    folder = build(tmp_path / "data")
    share = {"validation_share": 0.5} if any(name.startswith(one) for one in ONE_SPLIT) else {}
    output = tmp_path / "out"
    finetune.main(flags(folder, output, task=task, max_train_steps=2, num_pictures=1, **share))
    argv = ["--model", str(output), "--dataset_name", str(folder), "--task", task]
    argv += [word for key, value in share.items() for word in (f"--{key}", str(value))]
    formats = {"semantic": "ade20k", "instance": "coco", "panoptic": "coco_panoptic"}[task]
    argv += ["--save_predictions", formats, "--predictions_dir", str(tmp_path / "written")]
    scores = evaluate.main(argv)
    assert scores["images"] in (1, 2, 3)
    assert any((tmp_path / "written").rglob("*.png")) or read_json(tmp_path / "written" / "predictions.json")


def test_ids_of_the_dataset_come_out_of_predict(tmp_path):
    folder = official_folders.coco_instances(tmp_path / "data")
    output = tmp_path / "out"
    finetune.main(flags(folder, output, task="instance", max_train_steps=1, num_pictures=0))
    annotations = folder / "annotations" / "instances_val2017.json"
    argv = [str(output), str(folder / "val2017"), str(tmp_path / "found"), "--threshold", "0", "--write", "overlays"]
    predict.main([*argv, "--image_ids", str(annotations), "--formats", "coco", "yolo"])
    rows = read_json(tmp_path / "found" / "predictions.json")
    assert {row["category_id"] for row in rows} <= {1, 3} and {row["image_id"] for row in rows} == {397133, 397134}
    assert 0 <= coco_scores(annotations, tmp_path / "found" / "predictions.json")["ap"] <= 1
    assert len(list((tmp_path / "found" / "labels").iterdir())) == 2
    maps = tmp_path / "semantic"
    semantic = official_folders.cityscapes(tmp_path / "c")
    finetune.main(flags(semantic, tmp_path / "s", task="semantic", max_train_steps=1, num_pictures=0))
    argv = [str(tmp_path / "s"), str(semantic / "leftImg8bit" / "val"), str(maps), "--formats", "cityscapes"]
    predict.main(argv)
    files = sorted((maps / "cityscapes").iterdir())
    assert len(files) == 2 and set(np.unique(np.array(Image.open(files[0])))) <= set(range(7, 34))
