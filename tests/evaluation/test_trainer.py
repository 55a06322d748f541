"""`transformers.Trainer`: training, scores at the original size, the best model, resuming."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import TimmBackboneConfig, Trainer, TrainingArguments

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation.evaluator import evaluate_model, evaluation_loader
from mpformer_hf.evaluation.trainer import LABEL_NAMES, SegmentationCollator, SegmentationMetrics
from tests.tiny import SIZES, tiny_model

SIDES = {"height": 64, "width": 64}


def opened(folder, split, task="panoptic"):
    return open_dataset(DataArguments(dataset_name=str(folder), task=task), split)


def model_of(backbone: str, seed: int = 0) -> MPFormerForUniversalSegmentation:
    torch.manual_seed(seed)
    if backbone != "timm":
        return tiny_model(backbone, num_labels=8)
    config = TimmBackboneConfig(backbone="efficientnet_lite0", out_indices=[-4, -3, -2, -1])
    return MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=config, num_labels=8, **SIZES))


def trainer_of(model, shapes, folder, task="panoptic", **options) -> Trainer:
    stuff = [4, 5, 6, 7] if task == "panoptic" else []
    processor = MPFormerImageProcessor(size=SIDES, task=task, threshold=0.0, label_ids_to_fuse=stuff)
    validation = opened(shapes, "validation", task)
    arguments = TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "learning_rate": 1e-3,
            "remove_unused_columns": False,
            "batch_eval_metrics": True,
            "label_names": LABEL_NAMES,
            "report_to": "none",
            "use_cpu": True,
            **options,
        },
    )
    return Trainer(
        model,
        arguments,
        train_dataset=opened(shapes, "train", task),
        eval_dataset=validation,
        data_collator=SegmentationCollator(processor),
        compute_metrics=SegmentationMetrics(processor, validation),
        processing_class=processor,
    )


@pytest.mark.parametrize("task, metric", [("panoptic", "mean_iou"), ("instance", "ap")])
def test_training_evaluation_and_the_best_model(shapes, tmp_path, task, metric):
    options = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "save_strategy": "steps", "logging_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": metric, "eval_strategy": "steps"}
    model = model_of("resnet").train()
    trainer = trainer_of(model, shapes, tmp_path / "out", task, **options)
    trainer.train()
    log = trainer.state.log_history
    scores = [row[f"eval_{metric}"] for row in log if f"eval_{metric}" in row]
    assert len(scores) == 3 and len([row for row in log if "loss" in row]) == 6
    assert trainer.state.best_metric == max(scores)
    assert trainer.evaluate()[f"eval_{metric}"] == pytest.approx(max(scores), abs=1e-6)
    processor = MPFormerImageProcessor.from_pretrained(trainer.state.best_model_checkpoint)
    best = MPFormerForUniversalSegmentation.from_pretrained(trainer.state.best_model_checkpoint)
    accelerator = Accelerator(cpu=True)
    loader = evaluation_loader(opened(shapes, "validation", task), processor, accelerator, 2)
    assert evaluate_model(best, processor, loader, accelerator)[metric] == pytest.approx(max(scores), abs=1e-6)


@pytest.mark.parametrize("backbone", ["swin", "resnet", "timm"])
def test_a_resumed_run_has_every_tensor(shapes, tmp_path, backbone):
    trained = model_of(backbone).train()
    trainer_of(trained, shapes, tmp_path / "out", max_steps=3, save_steps=3).train()
    fresh = model_of(backbone, seed=1).train()
    resumed = trainer_of(fresh, shapes, tmp_path / "out", max_steps=3, save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    expected, actual = trained.state_dict(), fresh.state_dict()
    assert not [name for name in expected if not torch.equal(expected[name].cpu(), actual[name].cpu())]


def test_names_of_saved_files_and_own_names_load(tmp_path):
    model = model_of("swin")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) != set(model.state_dict()), "this version of transformers does not rename Swin's weights"
    for weights in (saved, model.state_dict()):
        fresh = model_of("swin", seed=1)
        fresh.load_state_dict(weights)
        assert all(torch.equal(x, fresh.state_dict()[name]) for name, x in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        model_of("swin").load_state_dict(
            {name: x for name, x in saved.items() if "qkv" not in name and "query" not in name}
        )


def test_settings_that_do_not_fit_are_named(shapes, tmp_path):
    trainer = trainer_of(model_of("resnet"), shapes, tmp_path / "out", batch_eval_metrics=False)
    with pytest.raises(ValueError, match=r"needs TrainingArguments\(batch_eval_metrics=True\)"):
        trainer.evaluate()
    trainer = trainer_of(model_of("resnet"), shapes, tmp_path / "out")
    more = opened(shapes, "validation")
    more.rows = more.rows.select([0, 1, 2, 0])
    with pytest.raises(ValueError, match="evaluates more images than the 3 of SegmentationMetrics"):
        trainer.evaluate(more)
    other = opened(shapes, "train")
    other.rows = other.rows.select([2, 3, 4])
    with pytest.raises(ValueError, match="evaluates other images than those of SegmentationMetrics"):
        trainer.evaluate(other)
    trainer.compute_metrics = SegmentationMetrics(trainer.processing_class, opened(shapes, "train"))
    trainer.compute_metrics.dataset.rows = opened(shapes, "validation").rows.select([0, 1, 2, 0])
    with pytest.raises(ValueError, match="evaluated 3 images, SegmentationMetrics has 4"):
        trainer.evaluate()


def test_processors_and_processes_that_do_not_fit_are_named(shapes, monkeypatch):
    data = opened(shapes, "validation")
    with pytest.raises(ValueError, match=r"label_ids_to_fuse of the processor is \[\], expected \[4, 5, 6, 7\]"):
        SegmentationMetrics(MPFormerImageProcessor(), data)
    with pytest.raises(ValueError, match=r"label_ids_to_fuse of the processor is \[1\], expected \[\]"):
        SegmentationMetrics(MPFormerImageProcessor(task="instance", label_ids_to_fuse=[1]), data)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="SegmentationMetrics is for one process"):
        SegmentationMetrics(MPFormerImageProcessor(label_ids_to_fuse=[4, 5, 6, 7]), data)


def test_scores_that_are_not_defined_are_left_out(shapes, tmp_path):
    trainer = trainer_of(model_of("resnet"), shapes, tmp_path / "out", "instance")
    scores = trainer.evaluate()
    assert "eval_ap" in scores and "eval_ap_large" not in scores


def test_the_collator_augments(shapes):
    processor, data = MPFormerImageProcessor(size=SIDES), opened(shapes, "train")
    plain = SegmentationCollator(processor)([data[0], data[1]])
    inverted = SegmentationCollator(processor, lambda image, segments: (255 - image, segments))([data[0], data[1]])
    assert set(plain) == {"pixel_values", "pixel_mask", "mask_labels", "class_labels"}
    assert not torch.equal(plain["pixel_values"], inverted["pixel_values"])
    reduced = SegmentationCollator(MPFormerImageProcessor(size=SIDES, do_reduce_labels=True))([data[0], data[1]])
    assert all(torch.equal(a, b) for a, b in zip(plain["class_labels"], reduced["class_labels"], strict=True))
    assert torch.equal(plain["mask_labels"][1], inverted["mask_labels"][1])
