"""Low-rank adapters of the backbone: nothing else of it changes, and what is saved needs no peft."""

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoConfig

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation
from mpformer_hf.training import finetune
from mpformer_hf.training.arguments import OptimizationArguments
from mpformer_hf.training.checkpoints import save_model
from mpformer_hf.training.engine import FineTuner, batch_norms, freeze
from mpformer_hf.training.lora import merge_adapters
from tests.model.test_backbone import tiny_model
from tests.runs import flags
from tests.tiny import SIZES, batch_of


def adapted(kind: str) -> MPFormerForUniversalSegmentation:
    torch.manual_seed(0)
    model = tiny_model(kind).eval()
    freeze(model, OptimizationArguments(lora_rank=2))
    return model


@pytest.mark.parametrize("kind", ["dinov2", "swin", "resnet"])
def test_a_step_changes_adapters_and_heads_only_and_merging_keeps_the_outputs(kind):
    model = adapted(kind)
    torch.manual_seed(0)
    plain, pixel_values = tiny_model(kind).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, actual = plain(pixel_values), model(pixel_values)
    torch.testing.assert_close(actual.masks_queries_logits, expected.masks_queries_logits)
    encoder = model.model.pixel_level_module.encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    encoder.eval()
    for _ in range(2):  # the first step moves only one of an adapter's two factors
        model(**batch_of((2, 1))).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)
    merged = merge_adapters(model.eval())
    assert [*merged.state_dict()] == [*plain.state_dict()]
    with torch.no_grad():
        actual, expected = merged(pixel_values), model(pixel_values)
        initial = plain(pixel_values)
    torch.testing.assert_close(actual.masks_queries_logits, expected.masks_queries_logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(initial.masks_queries_logits, expected.masks_queries_logits, atol=1e-3)


def test_adapters_without_gradient_are_frozen_and_named(caplog):
    config = AutoConfig.for_model(
        "dinov2", hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, out_indices=[2]
    )
    model = MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=config, num_labels=4, **SIZES)).train()
    freeze(model, OptimizationArguments(lora_rank=2))
    assert "lora_rank: adapters of 6 of 18 layers get no gradient and are not trained." in caplog.text
    model(**batch_of((2, 1))).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_the_backbone_stays_in_training_mode_apart_from_batch_norms(kind, shapes, tmp_path, monkeypatch):
    modes = []

    def watched(tuner, batches):
        encoder = tuner.model.model.pixel_level_module.encoder
        modes.append((encoder.training, {module.training for module in batch_norms(encoder)}))
        return optimize(tuner, batches)

    optimize = FineTuner.optimize
    monkeypatch.setattr(FineTuner, "optimize", watched)
    tiny_model(kind, num_labels=8).save_pretrained(tmp_path / "model")
    options = {"model_name_or_path": tmp_path / "model", "model_fields": "{}", "gradient_checkpointing": True}
    finetune.main(flags(shapes, tmp_path / "run", **options, lora_rank=2, max_train_steps=1, max_eval_samples=1))
    assert modes == [(True, {False} if kind == "resnet" else set())]


def test_a_model_with_adapters_is_no_mask2former():
    with pytest.raises(ValueError, match="has adapters; merge them into its weights first"):
        adapted("resnet").to_mask2former()
    merge_adapters(adapted("resnet")).to_mask2former()


def test_a_model_without_adapters_is_not_copied():
    model = tiny_model("resnet")
    assert merge_adapters(model) is model


def test_a_run_saves_merged_weights_and_resumes(shapes, tmp_path):
    options = {
        "lora_rank": 2,
        "max_eval_samples": 1,
        "eval_steps": 2,
        "checkpointing_steps": 2,
        "lr_schedule": "constant",
    }
    finetune.main(flags(shapes, tmp_path / "whole", **options))
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.main(flags(shapes, tmp_path / "parts", **{**options, "max_train_steps": 2}))
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.main(flags(shapes, tmp_path / "parts", **options, resume_from_checkpoint="latest"))
    whole, parts = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    _, info = MPFormerForUniversalSegmentation.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_moving_averages_are_merged_too(shapes, tmp_path):
    options = {"lora_rank": 2, "ema_decay": 0.5, "max_train_steps": 1, "max_eval_samples": 1}
    finetune.main(flags(shapes, tmp_path / "run", **options))
    assert not any("lora" in name for name in load_file(tmp_path / "run" / "model.safetensors"))


def test_training_goes_on_after_saving(tmp_path):
    model = adapted("resnet")
    save_model(model, type("Processor", (), {"save_pretrained": lambda self, folder: None})(), tmp_path / "saved")
    assert any("lora_A" in name and p.requires_grad for name, p in model.named_parameters())


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="lora_rank trains adapters of the backbone, freeze_backbone nothing of it"):
        OptimizationArguments(lora_rank=2, freeze_backbone=True)
    with pytest.raises(ValueError, match="lora_rank"):
        OptimizationArguments(lora_rank=0)
