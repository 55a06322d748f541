"""The whole model: equality with transformers' Mask2Former, and what users of transformers expect."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
)

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation, MPFormerModel
from mpformer_hf.model.criterion import Prediction
from mpformer_hf.model.point_sampling import ByteMasks
from mpformer_hf.model.targets import collect_targets
from tests.tiny import BACKBONES, SIZES, batch_of, tiny_config, tiny_model


@pytest.mark.parametrize(
    "labels, message",
    [(torch.ones(2, dtype=torch.bool), "dtype torch.bool"), (torch.zeros(2, 1).long(), r"shape \(2, 1\)")],
)
def test_class_labels_of_other_forms_are_refused(labels, message):
    masks = [torch.ones(2, 64, 64)]
    with pytest.raises(ValueError, match=message):
        tiny_model().train()(torch.randn(1, 3, 64, 64), mask_labels=masks, class_labels=[labels])


EMBEDDER = "model.transformer_module.pilot_class_embedder.weight"


def mask2former(backbone, **fields):
    config = Mask2FormerConfig(backbone_config=BACKBONES[backbone], num_labels=4, **{**SIZES, **fields})
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def assert_equal_outputs(a, b, atol=1e-4):
    torch.testing.assert_close(a.class_queries_logits, b.class_queries_logits, atol=atol, rtol=0)
    torch.testing.assert_close(a.masks_queries_logits, b.masks_queries_logits, atol=atol, rtol=0)


FIELDS = [{}, {"pre_norm": True}]


if any("transformer_module.input_projections" in key for key in mask2former("resnet", hidden_dim=64).state_dict()):
    FIELDS[1] |= {"enforce_input_projection": True, "hidden_dim": 64}  # early releases do not save them


@pytest.mark.parametrize("backbone", list(BACKBONES))
@pytest.mark.parametrize("fields", FIELDS, ids=["usual", "pre-norm"])
def test_mask2former_loads_and_comes_back(backbone, fields, tmp_path):
    theirs = mask2former(backbone, **fields)
    theirs.save_pretrained(tmp_path)
    ours, info = MPFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    back = ours.to_mask2former()
    assert type(back) is Mask2FormerForUniversalSegmentation and not back.training
    assert back.state_dict().keys() == theirs.state_dict().keys()
    for size in ((64, 64), (64, 128), (96, 32)):
        pixels = torch.randn(2, 3, *size)
        with torch.no_grad():
            a, b, c = (model(pixels, output_auxiliary_logits=True) for model in (theirs, ours, back))
        assert_equal_outputs(a, b)
        assert_equal_outputs(b, c)
        assert len(a.auxiliary_logits) == len(b.auxiliary_logits) == 4
        for x, y in zip(a.auxiliary_logits, b.auxiliary_logits, strict=True):
            for name in x:
                torch.testing.assert_close(x[name], y[name], atol=1e-4, rtol=0)


def test_without_query_positions_to_mask2former(tmp_path):
    ours = tiny_model(query_position_embeddings=False)
    theirs = ours.to_mask2former()
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_equal_outputs(theirs(pixels), ours(pixels))
    theirs.save_pretrained(tmp_path)
    assert Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).config.model_type == "mask2former"


def test_hidden_states_and_attentions_as_mask2former(tmp_path):
    theirs = mask2former("swin")
    theirs.save_pretrained(tmp_path)
    ours = MPFormerForUniversalSegmentation.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        a, b = (m(pixels, output_hidden_states=True, output_attentions=True) for m in (theirs, ours))
    for name in ("encoder_hidden_states", "pixel_decoder_hidden_states", "attentions"):
        assert len(a[name]) == len(b[name])
        for x, y in zip(a[name], b[name], strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    for x, y in zip(a.transformer_decoder_hidden_states, b.transformer_decoder_hidden_states, strict=True):
        torch.testing.assert_close(x.transpose(0, 1), y, atol=1e-4, rtol=1e-4)  # theirs: queries first
    with torch.no_grad():
        a, b = (m(pixels, return_dict=False) for m in (theirs, ours))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


def test_save_and_load(tmp_path):
    model = tiny_model("swin", pilot_groups=3, pilot_noise="shift")
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    pixels = torch.randn(1, 3, 64, 96)
    for auto in (AutoModelForUniversalSegmentation, AutoModelForImageSegmentation):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is MPFormerForUniversalSegmentation
        assert loaded.config.pilot_groups == 3 and loaded.config.pilot_noise == "shift"
        with torch.no_grad():
            assert torch.equal(loaded(pixels).masks_queries_logits, model(pixels).masks_queries_logits)
    assert type(AutoModel.from_pretrained(tmp_path)) is MPFormerModel
    assert type(AutoConfig.from_pretrained(tmp_path)) is MPFormerConfig


def test_half_precision_and_device_map(tmp_path):
    model = tiny_model("swin")
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 96)
    half = MPFormerForUniversalSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    with torch.no_grad():
        assert half(pixels.to(torch.bfloat16)).masks_queries_logits.dtype == torch.bfloat16
    mapped = MPFormerForUniversalSegmentation.from_pretrained(tmp_path, device_map="cpu")
    with torch.no_grad():
        assert torch.equal(mapped(pixels).class_queries_logits, model(pixels).class_queries_logits)


def test_new_labels_start_afresh(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded, info = MPFormerForUniversalSegmentation.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {EMBEDDER, "class_predictor.weight", "class_predictor.bias"}
    assert torch.isfinite(loaded.train()(**batch_of((2,), num_labels=7)).loss)


def test_initialisation():
    torch.manual_seed(0)
    model = MPFormerForUniversalSegmentation(tiny_config(hidden_dim=64, feature_size=64, num_queries=100))
    parameters = dict(model.named_parameters())
    decoder = "model.transformer_module.decoder.layers.0."
    assert parameters["class_predictor.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    assert parameters[decoder + "self_attn.q_proj.weight"].std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert parameters[decoder + "cross_attn.in_proj_weight"].std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert parameters["model.transformer_module.queries_features.weight"].std().item() == pytest.approx(1, rel=0.05)
    assert (parameters[decoder + "fc1.bias"] == 0).all()
    assert all(torch.isfinite(p).all() for p in parameters.values())
    wide = MPFormerForUniversalSegmentation(tiny_config(init_std=0.5, init_xavier_std=2.0))
    assert wide.class_predictor.weight.std().item() == pytest.approx(0.5, rel=0.2)
    query = wide.model.transformer_module.decoder.layers[0].self_attn.q_proj.weight
    assert query.std().item() == pytest.approx(2 * (2 / 64) ** 0.5, rel=0.1)


@pytest.mark.parametrize("backbone", list(BACKBONES))
@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0), (11, 0)])
def test_every_trainable_parameter_gets_a_gradient(backbone, counts):
    model = tiny_model(backbone).train()
    output = model(**batch_of(counts))
    assert torch.isfinite(output.loss)
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))
    output.loss.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]


def test_training_output_holds_matching_queries_only():
    model = tiny_model(pilot_groups=2).train()
    output = model(**batch_of((3, 1)), output_auxiliary_logits=True)
    assert output.class_queries_logits.shape == (2, 8, 5) and output.masks_queries_logits.shape == (2, 8, 16, 24)
    assert output.auxiliary_logits[0]["masks_queries_logits"].shape == (2, 8, 16, 24)
    output = model(**batch_of((3, 1)), output_hidden_states=True, output_attentions=True)
    assert torch.equal(output.transformer_decoder_hidden_states[-1], output.transformer_decoder_last_hidden_state)
    assert {tuple(weights.shape) for weights in output.attentions} == {(2, 4, 8, 8)}
    assert len(output.loss_dict) == 5 * 3 * 2


def test_gradients_reach_hidden_states_and_attentions():
    model = tiny_model(mask_piloting=False).train()
    losses, batch = [], batch_of((3, 1))
    for outputs in (True, False):
        generator = torch.Generator().manual_seed(0)
        given = {"output_hidden_states": outputs, "output_attentions": outputs}
        output = model(**batch, **given, generator=generator)
        losses.append(output.loss)
        if outputs:
            kept = [*output.transformer_decoder_hidden_states, *output.attentions]
            kept += [*output.encoder_hidden_states, *output.pixel_decoder_hidden_states]
            kept += [output.transformer_decoder_last_hidden_state]
            for tensor in kept:
                tensor.retain_grad()
            output.loss.backward()
            assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in kept)
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-5)


def test_loss_without_pilot():
    batch = batch_of((3, 1))
    model = tiny_model(mask_piloting=False).train()
    assert EMBEDDER not in model.state_dict()
    assert not [key for key in model(**batch).loss_dict if "pilot" in key]
    piloted = tiny_model().eval()
    assert not [key for key in piloted(**batch).loss_dict if "pilot" in key]


def test_without_auxiliary_loss():
    model = tiny_model(use_auxiliary_loss=False).train()
    assert len(model(**batch_of((3, 1))).loss_dict) == 6


def step(model, batch, seed=3):
    model.zero_grad()
    loss = model(**batch, generator=torch.Generator().manual_seed(seed)).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_step_is_reproducible_bit_for_bit():
    model = tiny_model("convnext", pilot_noise_scale=0.4).train()
    batch = batch_of((3, 2))
    (first, grads), (second, again), (other, _) = (step(model, batch, seed) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert all(torch.equal(grads[name], again[name]) for name in grads)


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_gradient_checkpointing_changes_nothing(backbone):
    model = tiny_model(backbone).train()
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = batch_of((3, 2))
    plain, grads = step(model, batch)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    calls = []
    layer = model.model.transformer_module.decoder.layers[0]
    layer.fc1.register_forward_hook(lambda *_: calls.append(1))
    checkpointed, again = step(model, batch)
    assert len(calls) == 2, "the layer did not run again in the backward pass"
    torch.testing.assert_close(plain, checkpointed)
    for name in grads:
        torch.testing.assert_close(grads[name], again[name], atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_trains():
    model = tiny_model("resnet").train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch_of((3, 2)))
    assert output.loss.dtype == torch.float32 and torch.isfinite(output.loss)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_masks_of_the_model_are_those_of_the_head():
    model = tiny_model()
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        inner, outer = model.model(pixels), model(pixels, output_auxiliary_logits=True)
    assert len(inner.masks_queries_logits) == 5
    torch.testing.assert_close(inner.masks_queries_logits[-1], outer.masks_queries_logits)
    torch.testing.assert_close(inner.masks_queries_logits[1], outer.auxiliary_logits[1]["masks_queries_logits"])


def test_copies_and_num_channels():
    model = copy.deepcopy(tiny_model())
    with pytest.raises(ValueError, match="pixel_values has 4 channels, the backbone takes 3"):
        model(torch.zeros(1, 4, 64, 64))
    backbone = copy.deepcopy(BACKBONES["resnet"])
    backbone.num_channels = 4
    four = MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=backbone, num_labels=4, **SIZES)).eval()
    assert four(torch.zeros(1, 4, 64, 64)).class_queries_logits.shape == (1, 8, 5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_labels": None}, "must be given together"),
        ({"class_labels": [torch.zeros(2, dtype=torch.int64)] * 2}, "Image 0: mask_labels has 3 masks"),
        ({"mask_labels": [torch.zeros(3, 32, 32), torch.zeros(1, 32, 32)]}, r"expected \(targets, 64, 96\)"),
        ({"pixel_values": torch.zeros(3, 3, 64, 96)}, "pixel_values has 3 images, mask_labels has 2"),
        ({"mask_labels": [torch.zeros(3, 64, 96)]}, "mask_labels has 1 images, class_labels has 2"),
        (
            {"class_labels": [torch.tensor([0, 4, 1]), torch.tensor([0])]},
            "Image 0: class_labels has 4, expected 0 to 3",
        ),
        ({"class_labels": [[0, 1, 2], [-1]]}, "Image 1: class_labels has -1"),
    ],
)
def test_bad_labels_are_one_sentence(change, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_model()(**{**batch_of((3, 1)), **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "field, value",
    [
        ("pilot_groups", 0),
        ("pilot_query_budget", 0),
        ("pilot_layers", -1),
        ("pilot_noise", "blur"),
        ("pilot_noise_scale", -0.1),
        ("pilot_label_noise", 1.5),
        ("pilot_loss_weight", -1.0),
        ("importance_sample_ratio", 1.5),
        ("oversample_ratio", 0.5),
        ("decoder_layers", 1),
        ("hidden_dim", 33),
        ("feature_strides", [2, 4, 8, 16]),
    ],
)
def test_out_of_range_fields_are_named(field, value):
    with pytest.raises(StrictDataclassError, match=f"{field} must be"):
        MPFormerConfig(**{field: value})


def test_a_backbone_with_too_few_maps():
    backbone = copy.deepcopy(BACKBONES["resnet"])
    backbone.out_features = ["stage3", "stage4"]
    with pytest.raises(ValueError, match=r"must have strides 4, 8, 16, 32 or one stride from 7 to 16, got 16, 32\."):
        MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=backbone, num_labels=4, **SIZES))


def test_hub_checkpoints_with_the_old_swin_names(tmp_path):
    """Files on the Hub carry Swin's former parameter names; saving writes them too."""
    theirs = mask2former("swin")
    theirs.save_pretrained(tmp_path, save_original_format=True)
    assert any("attention.self.query" in key for key in load_file(tmp_path / "model.safetensors"))
    ours, info = MPFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_equal_outputs(theirs(pixels), ours(pixels))


def test_the_configs_no_object_weight_decides(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    batch, losses = batch_of((2, 1)), []
    for weight in (0.1, 0.9):
        model = MPFormerForUniversalSegmentation.from_pretrained(tmp_path, no_object_weight=weight)
        out = model(**batch, generator=torch.Generator().manual_seed(0))
        losses.append(out.loss_dict["loss_cross_entropy"].item())
        logits, labels = out.class_queries_logits, torch.full((2, 8), 4)
        targets = collect_targets(batch["mask_labels"], batch["class_labels"], (64, 96))
        assignment = model.criterion.matcher(
            [Prediction(logits, model.model(batch["pixel_values"]).mask_embeddings[-1])],
            out.pixel_decoder_last_hidden_state,
            targets,
            ByteMasks(targets.masks),
            torch.Generator().manual_seed(0),
        )[0]
        labels[assignment.batch_index, assignment.query] = targets.labels[assignment.target]
        weights = torch.tensor([1.0] * 4 + [weight])
        expected = 2 * torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights)
        assert losses[-1] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_offloaded_weights(tmp_path):
    model = tiny_model("swin")
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(("model.pixel_level_module.encoder", "class_predictor", "criterion"), "cpu")
    places |= dict.fromkeys(("model.pixel_level_module.decoder", "model.transformer_module"), "disk")
    loaded = MPFormerForUniversalSegmentation.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "off"
    )
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(pixels).masks_queries_logits, model(pixels).masks_queries_logits)


def test_labels_and_masks_of_the_wrong_kind_are_refused():
    model, batch = tiny_model(), batch_of((2,))
    with pytest.raises(ValueError, match=r"Image 0: class_labels has dtype torch\.float32, expected integers"):
        model(**{**batch, "class_labels": [torch.tensor([0.7, 1.7])]})
    with pytest.raises(ValueError, match=r"pixel_mask has shape \(1, 32, 96\), expected \(1, 64, 96\)"):
        model(**batch, pixel_mask=torch.ones(1, 32, 96))
