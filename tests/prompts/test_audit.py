"""`mpformer audit`: wrong masks and classes, missing objects and duplicates are found; planted errors are as listed."""

import json

import numpy as np
import pytest
import torch

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli.main import main as mpformer
from mpformer_hf.data.layouts.coco import read_coco_json
from mpformer_hf.data.segments import ObjectMask, Segments, from_objects
from mpformer_hf.prompts.audit import audit_image, predicted_objects
from mpformer_hf.prompts.audit_page import choose_drawn
from tests import datasets_on_disk as make
from tests.browser import check_page
from tests.tiny import tiny_model

SIZE = (40, 60)


def box(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def result(*rows: tuple[np.ndarray, int, float]) -> dict:
    """An instance result of (mask, class, score)."""
    masks = torch.from_numpy(np.array([mask for mask, *_ in rows]).reshape(-1, *SIZE))
    return {"segmentation": masks, "segments_info": [{"label_id": label, "score": s} for _, label, s in rows]}


class KnownPredictor:
    """Predicts what it was given, and refines every prompt to one of the predicted masks."""

    def __init__(self, predicted: dict, refined: dict):
        self.predicted, self.refined = predicted, refined

    def predict(self, images):
        return [self.predicted]

    def refine(self, image, masks, labels):
        assert masks.shape == self.refined["segmentation"].shape and len(labels) == len(masks)
        return self.refined


def audit(objects: list[ObjectMask], predicted: dict, refined: dict, things=frozenset({0, 1})):
    segments = from_objects(objects, *SIZE)
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    annotations, findings = audit_image(KnownPredictor(predicted, refined), image, segments, set(things))
    return annotations, sorted(findings, key=lambda finding: -finding.suspicion)


def test_a_moved_mask():
    given, true = box(0, 0, 20, 20), box(0, 10, 20, 30)
    annotations, findings = audit(
        [ObjectMask(given, 0), ObjectMask(box(30, 30, 40, 60), 1)],
        result(),
        result((true, 0, 0.9), (box(30, 30, 40, 60), 1, 0.8)),
    )
    assert [finding.kind for finding in findings] == ["mask", "mask"]
    assert findings[0].annotation is annotations[0] and findings[0].suspicion == pytest.approx(0.9 - 1 / 3)
    assert findings[1].suspicion == 0 and (findings[0].mask == true).all()


def test_a_wrong_class():
    mask, near = box(0, 0, 20, 20), box(0, 0, 20, 21)
    predicted = result((near, 1, 0.9), (mask, 0, 0.2), (mask, 1, 0.1))
    annotations, findings = audit([ObjectMask(mask, 0)], predicted, result((mask, 0, 0.9)))
    assert findings[0].kind == "class" and findings[0].label_id == 1 and findings[0].annotation is annotations[0]
    assert findings[0].suspicion == pytest.approx(0.9 * 0.8) and (findings[0].mask == mask).all()
    _, findings = audit([ObjectMask(mask, 1)], predicted, result((mask, 1, 0.9)))
    assert findings[0].suspicion == pytest.approx(0.2 * 0.1), "the predicted class is the annotated one"


def test_a_doubtful_prediction_does_not_hide_a_certain_one():
    mask, near = box(0, 0, 20, 20), box(0, 0, 20, 14)
    predicted = result((near, 1, 0.95), (mask, 0, 0.02))
    _, findings = audit([ObjectMask(mask, 0)], predicted, result((mask, 0, 0.9)))
    assert findings[0].kind == "class" and findings[0].suspicion == pytest.approx(0.95 * 0.98)


def test_a_mask_that_is_refined_to_nothing_is_no_finding():
    _, findings = audit([ObjectMask(box(0, 0, 9, 9), 0)], result(), result((np.zeros(SIZE, bool), 0, 0.4)))
    assert findings == []


def test_a_missing_object():
    seen, annotated, crowd = box(0, 0, 20, 20), box(20, 40, 40, 60), box(0, 40, 15, 60)
    predicted = result((seen, 1, 0.8), (annotated, 0, 0.9), (crowd, 1, 0.7))
    objects = [ObjectMask(annotated, 0), ObjectMask(crowd, 1, crowd=True)]
    annotations, findings = audit(objects, predicted, result((annotated, 0, 0.9)))
    assert len(annotations) == 1
    (missing,) = (finding for finding in findings if finding.kind == "missing")
    assert missing.annotation is None and missing.label_id == 1 and missing.suspicion == pytest.approx(0.8)


def test_void_is_not_missing_where_the_dataset_states_it():
    ids = torch.from_numpy(np.where(box(0, 0, 20, 20), 5, 0).astype(np.int32))
    for ignored, count in ((None, 1), (frozenset({5}), 0)):
        segments = Segments(ids, {}, ignored=ignored)
        predictor = KnownPredictor(result((box(0, 0, 20, 20), 0, 0.9)), result())
        _, findings = audit_image(predictor, torch.zeros(3, *SIZE, dtype=torch.uint8), segments, {0})
        assert len(findings) == count


def test_duplicates():
    one, two = box(0, 0, 20, 20), box(0, 0, 20, 18)
    objects = [ObjectMask(one, 0), ObjectMask(two, 0), ObjectMask(two, 1)]
    annotations, findings = audit(objects, result(), result((one, 0, 0.9), (two, 0, 0.9), (two, 1, 0.9)))
    (duplicate,) = (finding for finding in findings if finding.kind == "duplicate")
    assert duplicate.annotation is annotations[1] and duplicate.suspicion == pytest.approx(0.9)
    assert (duplicate.mask == one).all()


def test_predictions_of_one_query_are_one_object():
    mask, other = box(0, 0, 20, 20), box(20, 20, 40, 40)
    objects = predicted_objects(result((mask, 0, 0.3), (other, 1, 0.5), (mask, 1, 0.6), (np.zeros(SIZE, bool), 0, 0.9)))
    assert [found.scores for found in objects] == [{1: 0.6, 0: 0.3}, {1: 0.5}]
    assert objects[0].label_id == 1 and predicted_objects(result()) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model and a dataset."""
    folder = tmp_path_factory.mktemp("audit")
    data = make.shapes(folder / "shapes", train=12, validation=2)
    names = dict(enumerate(json.loads((data / "id2label.json").read_text()).values()))
    torch.manual_seed(0)
    tiny_model(id2label=names, num_labels=len(names), decoder_layers=3).save_pretrained(folder / "model")
    MPFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "model")
    return folder


def test_pictures_are_of_all_kinds_and_the_first_ones():
    findings = [{"kind": "class"}] * 6 + [{"kind": "mask"}, {"kind": "class"}, {"kind": "mask"}, {"kind": "mask"}]
    findings = [{**finding, "place": place} for place, finding in enumerate(findings)]
    assert [finding["place"] for finding in choose_drawn(findings, 4)] == [0, 1, 6, 8]
    assert [finding["place"] for finding in choose_drawn(findings, 8)] == [0, 1, 2, 3, 4, 6, 8, 9]
    assert choose_drawn(findings, 99) == findings and choose_drawn([], 5) == []


def test_the_command_writes_page_json_and_suggestions(saved, tmp_path):
    flags = ["--dataset_name", str(saved / "shapes"), "--task", "panoptic", "--eval_split", "train"]
    flags += ["--model", str(saved / "model"), "--min_suspicion", "0.0", "--num_pictures", "7"]
    tools = ["--formats", "cvat", "labelme", "label_studio", "--polygons", "1"]
    mpformer(["audit", *flags, "--output", str(tmp_path / "out"), *tools])
    findings = json.loads((tmp_path / "out" / "audit.json").read_text())
    values = [finding["suspicion"] for finding in findings]
    assert values == sorted(values, reverse=True) and len(findings) > 7
    assert {"mask", "missing"} <= {finding["kind"] for finding in findings}
    content = read_coco_json(tmp_path / "out" / "annotations" / "instances_default.json")
    assert len(content["annotations"]) == len(findings)
    assert {row["attributes"]["finding"] for row in content["annotations"]} == {f["kind"] for f in findings}
    assert all(isinstance(row["segmentation"], list) for row in content["annotations"])
    shapes = [json.loads(file.read_text())["shapes"] for file in (tmp_path / "out" / "labelme").rglob("*.json")]
    assert sum(map(len, shapes)) == len(findings)
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    regions = [row for task in tasks for row in task["predictions"][0]["result"]]
    assert len(tasks) == len(shapes) and {row["id"].count("-") for row in regions if "-" in row["id"]} <= {1}
    assert len(
        {(t["data"]["image"], r["id"].split("-")[0]) for t in tasks for r in t["predictions"][0]["result"]}
    ) == len(findings)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<figure") == 7 and f"{len(findings)} findings" in page
    check_page(tmp_path / "out" / "index.html")
    for other, message in (
        (["--output", str(tmp_path / "out")], "is not an empty folder"),
        (["--output", str(tmp_path / "new"), "--task", "semantic"], "task must be instance or panoptic"),
        ([], "OUTPUT is missing"),
    ):
        with pytest.raises(SystemExit, match=message):
            mpformer(["audit", *flags, *other])
