"""LoRA with peft on any projection, and int8 with torchao."""

import copy
import io

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import TorchAoConfig, Trainer, TrainingArguments

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor, Predictor
from mpformer_hf.evaluation.trainer import SegmentationCollator
from mpformer_hf.inference.loading import load_weights
from tests.evaluation.test_trainer import opened
from tests.tiny import batch_of, tiny_model

PACKED = "cross_attn.in_proj_weight"


LORA = {
    "r": 4,
    "target_modules": r".*\.(q_proj|v_proj|fc1|fc2|query|value)",
    "target_parameters": [PACKED],
    "modules_to_save": ["class_predictor"],
}


def masks_of(model):
    with torch.no_grad():
        pixel_values = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        return model.eval()(pixel_values).masks_queries_logits


def test_lora_of_all_projections_trains_alone_saves_alone_and_merges(tmp_path):
    base = tiny_model("swin")
    initial, before = copy.deepcopy(base), masks_of(base)
    model = get_peft_model(base, LoraConfig(**LORA))
    torch.testing.assert_close(masks_of(model), before)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        model.train()(**batch_of((2, 1))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = masks_of(model)
    assert not torch.allclose(trained, before, atol=1e-3)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(initial), tmp_path)
    torch.testing.assert_close(masks_of(again), trained)
    merged = model.merge_and_unload()
    torch.testing.assert_close(masks_of(merged), trained, atol=1e-4, rtol=1e-4)
    weights, old = merged.state_dict(), initial.state_dict()
    assert set(weights) == set(old)
    changed = {name for name in old if not torch.equal(weights[name], old[name])}
    assert sum(PACKED in name for name in changed) == 4, "the packed projections of the layers did not change"
    parts = ("q_proj", "v_proj", "fc1", "fc2", "query", "value", PACKED, "class_predictor")
    assert not [name for name in changed if not any(part in name for part in parts)]


def test_lora_under_trainer(shapes, tmp_path):
    model = get_peft_model(tiny_model("resnet", num_labels=8), LoraConfig(**{**LORA, "target_modules": ["q_proj"]}))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, remove_unused_columns=False, report_to="none", use_cpu=True, save_steps=2
    )
    collator = SegmentationCollator(MPFormerImageProcessor(size={"height": 64, "width": 64}))
    Trainer(model, arguments, train_dataset=opened(shapes, "train"), data_collator=collator).train()
    names = {file.name for file in (tmp_path / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names


def test_a_saved_int8_model_predicts_the_same_and_is_not_trained(tmp_path):
    tiny_model("swin").save_pretrained(tmp_path / "plain")
    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = MPFormerForUniversalSegmentation.from_pretrained(
        tmp_path / "plain", quantization_config=config, device_map="cpu"
    )
    model.save_pretrained(tmp_path / "int8")
    MPFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "int8")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("int8", "plain")]
    assert sizes[0] < 0.8 * sizes[1]
    predictor = Predictor.from_pretrained(str(tmp_path / "int8"))
    assert torch.equal(masks_of(predictor.model), masks_of(model))
    with pytest.raises(ValueError, match=r"The weights of .*int8 are quantised, for predictions only"):
        load_weights(str(tmp_path / "int8"))


def saved_bytes(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
def test_int8_changes_outputs_little_and_shrinks_the_model(config):
    model = tiny_model("resnet")
    expected, size = masks_of(model), saved_bytes(model)
    quantize_(model, config())
    actual = masks_of(model)
    assert saved_bytes(model) < 0.8 * size
    assert 0 < (actual - expected).abs().mean() < 0.05 * expected.abs().mean()
