"""The HTML page of an evaluation: complete, self-contained, and drawn by a browser where there is one."""

import json
import re

import numpy as np
import pytest

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.cli import evaluate
from mpformer_hf.data.labels import Labels
from mpformer_hf.evaluation.details import EvaluationDetails
from mpformer_hf.evaluation.object_matches import ObjectCounts
from mpformer_hf.evaluation.plots import plot_precision_recall
from mpformer_hf.evaluation.report import confusion_table, write_report
from tests import datasets_on_disk as make
from tests.browser import check_page
from tests.tiny import tiny_model


@pytest.fixture(scope="module", params=["panoptic", "instance"])
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    data = make.shapes(folder / "shapes", train=2, validation=5)
    names = json.loads((data / "id2label.json").read_text())
    names = {i: name for i, name in enumerate(list(names.values())[: 4 if request.param == "instance" else 8])}
    tiny_model(id2label=names, num_labels=len(names)).save_pretrained(folder / "model")
    processor = MPFormerImageProcessor(task=request.param, size={"height": 64, "width": 64}, threshold=0.1)
    processor.save_pretrained(folder / "model")
    argv = ["--model", folder / "model", "--dataset_name", data, "--task", request.param]
    argv += ["--report", folder / "report.html", "--num_pictures", "4"]
    scores = evaluate.main([str(part) for part in argv])
    return folder / "report.html", request.param, scores


def test_it_has_the_scores_and_nothing_from_elsewhere(page):
    file, task, scores = page
    text = file.read_text()
    assert f"<b>{scores['pq' if task == 'panoptic' else 'ap']:.3f}</b>" in text and "<td>triangle</td>" in text
    figures = re.findall(r'<figure data-classes="([\d ]*)"', text)
    assert 2 < len(figures) <= 4 and text.count("data:image/jpeg;base64,") == 2 * len(figures), "worst and best"
    shown = set(" ".join(figures).split())
    assert shown == set(re.findall(r'<button type="button" value="(\d+)"', text)), "the filter has the classes"
    assert text.count("data:image/svg+xml;base64,") == (3 if task == "instance" else 2), "curves and layers"
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert ("Confusion of pixels" in text) == (task == "panoptic") and "(missed)" in text
    assert ("threshold" in text.split("<h2>Objects")[1].split("<h2>")[0]) == (task == "instance")
    assert scores["images"] == 5


def test_a_browser_draws_it(page):
    check_page(page[0])


def test_many_classes_become_a_list_of_mistakes():
    confusion = np.diag(np.full(50, 100))
    confusion[3, 7] = 300
    table = confusion_table(confusion, *[[f"class {i}" for i in range(50)]] * 2, "pixels")
    assert table["pairs"] == [{"truth": "class 3", "prediction": "class 7", "count": 300, "share": 75.0}]


def test_names_are_no_formulas(tmp_path):
    labels, counts = Labels(["$a_$", "_hidden", "x" * 200], {0: 0, 1: 1, 2: 2}, {0, 1, 2}), ObjectCounts(3, 0.5)
    counts.objects += 1
    counts.predictions = [(0, 0.9, True), (1, 0.8, False), (2, 0.7, True)]
    plot_precision_recall(counts, labels, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "<!--  _hidden -->" in text and f"<!--  {'x' * 27}... -->" in text and "a_" in text


def test_names_cannot_inject_anything(tmp_path):
    scores = {"mean_iou": 0.5, "images": 1, "images_per_second": 1.0, "per_class_iou": {"<b>x": None}}
    details = EvaluationDetails([], np.ones((1, 1)))
    write_report(tmp_path / "a.html", "<i>", "semantic", scores, details, Labels(["<b>x"], {0: 0}, set()), [], [])
    text = (tmp_path / "a.html").read_text()
    assert "<b>x" not in text and "&lt;b&gt;x" in text and "<i>" not in text
