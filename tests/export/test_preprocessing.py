"""One description of preprocessing: a change of any field of the image processor reaches the exported graph, its
metadata, the program that runs it, and the processor of a plain Mask2Former."""

import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Mask2FormerImageProcessor

from mpformer_hf import MPFormerImageProcessor
from mpformer_hf.export import exporter
from mpformer_hf.hub.converting import mask2former_processor
from mpformer_hf.model.images import read_image
from mpformer_hf.model.postprocessing import segments_of
from tests.export.examples import EXAMPLES, ROOT, rows_of
from tests.tiny import tiny_model

NAMES = {0: "sky", 1: "road", 2: "car", 3: "tree"}
FIELDS = {"task": "panoptic", "size": {"shortest_edge": 60, "longest_edge": 150}, "threshold": 0.2}
FIELDS |= {
    "stretch_to_divisor": True
}  # graphs with post-processing take images without padding, so programs stretch them
CHANGES = {
    "category_ids": [7, 8, 9, 10],
    "do_convert_rgb": False,
    "do_normalize": False,
    "do_reduce_labels": True,
    "do_rescale": False,
    "do_resize": False,
    "ignore_index": 3,
    "image_mean": [0.1, 0.2, 0.6],
    "image_std": [0.1, 0.3, 0.5],
    "label_ids_to_fuse": [0, 1, 2, 3],
    "mask_threshold": 0.3,
    "overlap_mask_area_threshold": 0.1,
    "palette": [[1, 2, 3]] * 4,
    "resample": 3,
    "rescale_factor": 1 / 127.5,
    "size": {"height": 120, "width": 60},
    "size_divisor": 64,
    "task": "semantic",
    "threshold": 0.96,
}
OF_LABELS = {"category_ids", "do_convert_rgb", "do_reduce_labels", "ignore_index", "palette"}  # no effect on RGB photos
OF_CALLS = {"crop_size", "data_format", "default_to_square", "device", "disable_grouping", "do_center_crop", "do_pad"}
OF_CALLS |= {"image_processor_type", "image_seq_length", "input_data_format", "return_tensors"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = tiny_model(id2label=NAMES, num_labels=4).eval()
    model.class_predictor.weight.data.mul_(40)  # scores that differ
    return model


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photo that is turned as its EXIF data say."""
    file, exif = tmp_path_factory.mktemp("photo") / "photo.png", Image.Exif()
    exif[0x0112] = 6
    with Image.open(ROOT / "tests" / "fixtures" / "coffee.jpg") as opened:
        opened.resize((128, 96)).save(file, exif=exif)
    return file


def program_rows(model, processor, photo, monkeypatch, capsys) -> list:
    """What segment.py prints of a graph with this processor; the graph is not written to a file."""
    graph = exporter.EndToEndModel(exporter.ExportableModel(model), processor, 20)
    metadata = exporter.describe("model", processor, NAMES, graph.smallest_side)

    class Session:
        def __init__(self, *_, **__):
            pass

        def get_modelmeta(self):
            return SimpleNamespace(custom_metadata_map=metadata)

        def get_inputs(self):
            return [SimpleNamespace(name="image", shape=["batch", 3, "rows", "columns"])]

        def get_outputs(self):
            return [SimpleNamespace(name=name) for name in graph.output_names]

        def run(self, names, feeds):
            with torch.no_grad():
                return [output.numpy() for output in graph(torch.tensor(feeds["image"]))]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    monkeypatch.setattr(sys, "argv", ["segment.py", "model.onnx", str(photo)])
    runpy.run_path(str(EXAMPLES / "segment.py"))
    return rows_of(capsys.readouterr().out)


def expected_rows(model, processor, photo) -> list:
    """What the image processor makes of the photo and of the outputs for it, at the size that the model sees."""
    with torch.no_grad():
        outputs = model(**processor(read_image(photo), return_tensors="pt"))
    options = {"return_binary_maps": True} if processor.task == "instance" else {}
    (raw,) = getattr(processor, f"post_process_{processor.task}_segmentation")(outputs, **options)
    found = segments_of(raw)
    return sorted(
        (NAMES[row["label_id"]], row.get("score", 0.0), 100 * mask.float().mean().item()) for row, mask in found
    )


def test_every_field_is_changed():
    known = {*MPFormerImageProcessor.valid_kwargs.__annotations__, *MPFormerImageProcessor().to_dict()}
    assert known - OF_CALLS == {*CHANGES, "stretch_to_divisor", "pad_size"}


def test_padding_is_refused(model):
    processor = MPFormerImageProcessor(**FIELDS, pad_size={"height": 160, "width": 160})
    with pytest.raises(ValueError, match="has no padding: set pad_size of the image processor to null"):
        exporter.EndToEndModel(exporter.ExportableModel(model), processor, 20)
    processor = MPFormerImageProcessor(**{**FIELDS, "size": {"max_height": 60, "max_width": 90}})
    with pytest.raises(ValueError, match="must have shortest_edge, or height and width"):
        exporter.EndToEndModel(exporter.ExportableModel(model), processor, 20)


CASES = [(task, None) for task in ("semantic", "instance", "panoptic")] + [
    ("instance" if field == "mask_threshold" else "panoptic", field) for field in CHANGES
]


@pytest.mark.parametrize("task, field", CASES)
def test_a_field_reaches_the_program(task, field, model, photo, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    fields = {**FIELDS, "task": task, **({field: CHANGES[field]} if field else {})}
    processor = MPFormerImageProcessor(**fields)
    expected = expected_rows(model, processor, photo)
    if field is not None and field not in OF_LABELS:
        assert expected != expected_rows(model, MPFormerImageProcessor(**{**FIELDS, "task": task}), photo), "no effect"
    found = program_rows(model, processor, photo, monkeypatch, capsys)
    assert [label for label, *_ in found] == [label for label, *_ in expected] != []
    for (_, score, share), (_, own_score, own_share) in zip(found, expected, strict=True):
        assert score == pytest.approx(own_score, abs=0.001) and share == pytest.approx(own_share, abs=0.1)


@pytest.mark.parametrize("field", sorted({*CHANGES} & {*Mask2FormerImageProcessor.valid_kwargs.__annotations__}))
def test_a_field_reaches_a_plain_mask2former(field, photo):
    """Images are equal if ours are stretched, as theirs are; labels too."""
    own = MPFormerImageProcessor(**{**FIELDS, field: CHANGES[field]})
    labels = np.arange(96 * 128).reshape(128, 96) % 4
    image = read_image(photo)
    ours, theirs = (p(image, labels, return_tensors="pt") for p in (own, mask2former_processor(own)))
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"])
    assert ours["class_labels"][0].tolist() == theirs["class_labels"][0].tolist()
