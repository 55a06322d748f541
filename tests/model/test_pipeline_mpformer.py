"""`pipeline("image-segmentation")` from a saved folder."""

import base64
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, pipeline
from transformers.pipelines import ImageSegmentationPipeline
from transformers.utils import logging as hf_logging

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor, MPFormerImageSegmentationPipeline
from tests.tiny import tiny_config, tiny_model

SIZE = {"height": 64, "width": 96}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    model = tiny_model(id2label={0: "road", 1: "car", 2: "sky", 3: "tree"})
    with torch.no_grad():
        model.class_predictor.bias[1] = 6.0
        model.class_predictor.weight.mul_(0.1)
    model.save_pretrained(path)
    MPFormerImageProcessor(size=SIZE, threshold=0.3, overlap_mask_area_threshold=0.0).save_pretrained(path)
    return path


def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))


def test_default_is_the_processors_task_and_threshold(folder, caplog):
    hf_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        segmenter = pipeline("image-segmentation", model=str(folder))
        assert isinstance(segmenter, MPFormerImageSegmentationPipeline)
        assert isinstance(segmenter.model, MPFormerForUniversalSegmentation)
        result = segmenter(image())
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert result and all(r["label"] == "car" and r["mask"].size == (70, 50) for r in result)
    assert {value for r in result for value in np.unique(r["mask"])} <= {0, 255}
    segmenter.image_processor.threshold = 1.0
    assert segmenter(image()) == []
    assert "No segment is above threshold 1.0" in caplog.text


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_each_task(folder, task):
    segmenter = pipeline("image-segmentation", model=str(folder))
    by_flag = segmenter(image(), subtask=task)
    segmenter.image_processor.task = task
    by_default = segmenter(image())
    assert [r["label"] for r in by_flag] == [r["label"] for r in by_default] and by_flag
    coverage = sum(np.asarray(r["mask"], dtype=np.int64) // 255 for r in by_default)
    assert {"semantic": (coverage == 1).all(), "panoptic": coverage.max() == 1, "instance": coverage.max() > 1}[task]
    assert (by_default[0]["score"] is None) == (task == "semantic")


def test_batches_paths_and_overrides(folder, tmp_path):
    segmenter = pipeline("image-segmentation", model=str(folder))
    path = tmp_path / "image.png"
    image().save(path)
    single = segmenter(str(path))
    both = segmenter([str(path), str(path)], batch_size=2)
    assert [len(r) for r in both] == [len(single)] * 2
    assert segmenter(image(), threshold=1.0) == []
    with pytest.raises(ValueError, match="subtask must be semantic, instance or panoptic"):
        segmenter(image(), subtask="depth")


def test_batches_of_images_of_different_sizes(folder):
    segmenter = pipeline("image-segmentation", model=str(folder))
    segmenter.image_processor = MPFormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 128}, threshold=0.3, overlap_mask_area_threshold=0.0
    )
    rng = np.random.default_rng(1)
    shapes = [(50, 70), (90, 60), (40, 80)]
    images = [Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    results = segmenter(images, batch_size=3)
    from_generator = list(segmenter((picture for picture in images), batch_size=2))
    with torch.no_grad():
        inputs = segmenter.image_processor(images, return_tensors="pt").to(segmenter.device)
        outputs = segmenter.model(**inputs)
    expected = segmenter.image_processor.post_process_panoptic_segmentation(outputs, target_sizes=shapes)
    for result, reference, shape in zip(results, expected, shapes, strict=True):
        assert len(result) == len(reference["segments_info"]) > 0
        for segment, row in zip(result, reference["segments_info"], strict=True):
            mask = np.asarray(segment["mask"]) > 0
            assert mask.shape == shape and np.array_equal(mask, (reference["segmentation"] == row["id"]).cpu().numpy())
            assert segment["score"] == pytest.approx(row["score"], abs=1e-5)
    assert [len(result) for result in from_generator[:2]] == [
        len(result) for result in segmenter(images[:2], batch_size=2)
    ]
    alone = [segmenter(picture) for picture in images]
    assert [len(result) for result in alone] == [len(result) for result in segmenter(images)]


def test_other_models_get_transformers_own_pipeline(tmp_path):
    fields = {
        k: v for k, v in tiny_config("swin").to_dict().items() if not k.startswith(("pilot", "model_type", "arch"))
    }
    fields.pop("mask_piloting")
    fields.pop("query_position_embeddings")
    from transformers import Mask2FormerConfig

    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**fields)).eval()
    model.save_pretrained(tmp_path)
    Mask2FormerImageProcessor(size=SIZE).save_pretrained(tmp_path)
    segmenter = pipeline("image-segmentation", model=str(tmp_path))
    assert type(segmenter) is ImageSegmentationPipeline
    assert type(segmenter) is not MPFormerImageSegmentationPipeline
    assert len(segmenter(image(), subtask="semantic")) >= 1


def test_unknown_options_and_thresholds_out_of_range_are_refused(folder):
    segmenter = pipeline("image-segmentation", model=str(folder))
    with pytest.raises(ValueError, match="Unknown options: treshold"):
        segmenter(image(), treshold=0.5)
    for threshold in (5.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must be at least 0 and at most 1"):
            segmenter(image(), threshold=threshold)
    with pytest.raises(ValueError, match=r"mask_threshold must be at least 0 and at most 1, got 2"):
        MPFormerImageProcessor(mask_threshold=2)


def test_logits_that_are_not_finite_are_refused(folder):
    processor = MPFormerImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = tiny_model()(torch.randn(1, 3, 64, 96))
    outputs.class_queries_logits[0, 0, 0] = float("nan")
    for task in ("semantic", "instance", "panoptic"):
        with pytest.raises(ValueError, match="class_queries_logits has values that are not finite"):
            getattr(processor, f"post_process_{task}_segmentation")(outputs)


def test_keys_of_segment_tables_may_be_strings():
    processor = MPFormerImageProcessor(size=SIZE)
    map_ = np.ones(image().size[::-1], dtype=np.int32)
    inputs = [processor(image(), map_, table, return_tensors="pt") for table in ({1: 2}, {"1": 2}, {"1": "2"})]
    assert [x["class_labels"][0].tolist() for x in inputs] == [[2]] * 3


def test_texts_in_base64_have_the_values_of_their_files(folder, tmp_path):
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    segmenter = pipeline("image-segmentation", model=str(folder))
    text = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    of_file = segmenter.preprocess(str(tmp_path / "a.png"))["pixel_values"][0]
    for given in (text, f"data:image/png;base64,{text}"):
        assert torch.equal(segmenter.preprocess(given)["pixel_values"][0], of_file)
    with pytest.raises(ValueError, match="is no file, no URL and not base64"):
        segmenter("no_such_file.jpg")


def test_a_model_in_training_mode_is_used_in_evaluation_mode(folder):
    segmenter = pipeline("image-segmentation", model=str(folder))
    expected = segmenter(image())
    segmenter.model.train()
    before = {name: tensor.clone() for name, tensor in segmenter.model.named_buffers()}
    assert [row["score"] for row in segmenter(image())] == [row["score"] for row in expected]
    assert segmenter.model.training and all(torch.equal(before[n], x) for n, x in segmenter.model.named_buffers())
