"""Every recipe parses and builds; those of the official releases have their sizes, schedules and augmentation."""

import json

import pytest
import torch

from mpformer_hf.data.labels import Labels
from mpformer_hf.training.arguments import parse_arguments
from mpformer_hf.training.building import build_model, build_processor
from mpformer_hf.training.engine import freeze
from mpformer_hf.training.optimization import build_optimizer, build_scheduler, parameter_groups
from mpformer_hf.training.transforms import build_transform, choose_augmentation
from mpformer_hf.utils.recipes import RECIPES, as_flags, merge, read_recipe
from scripts.study.runs import flags_of_seed
from tests.tiny import tiny_model

ALL = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml") if path.parent.name != "arms")


WHOLE = [name for name in ALL if not name.startswith(("base_", "backbones/", "own_", "nuclei", "matting", "nuinsseg"))]


OFFICIAL = [name for name in WHOLE if name.startswith(("coco", "ade20k", "cityscapes", "mapillary"))]


LABELS = Labels([f"class {i}" for i in range(80)], {i: i for i in range(80)}, set(range(80)))


def parsed(*names, flags=()):
    return parse_arguments(["--config", *(str(RECIPES / name) for name in names), *flags])


def scheduler_of(optimization, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    return build_scheduler(optimizer, optimization, steps)


def on_meta(*names):
    """The model of a recipe without memory, without asking the Hub for the backbone's weights."""
    args = parsed(*names)
    args.model.backbone = None
    with torch.device("meta"):
        model = build_model(args.model, args.pilot, LABELS)
    freeze(model, args.optimization)
    return model


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_parses(name):
    args = parsed(name)
    for epochs in (1, 100):
        processor = build_processor(args.data, args.transforms, LABELS)
        build_transform(choose_augmentation(args.transforms, epochs, processor.size))
    assert 0 < scheduler_of(args.optimization, 100).get_last_lr()[0] <= 1 and args.run.num_pictures >= 0


@pytest.mark.parametrize(
    "names, expected",
    [
        (["coco_instance_r50.yaml"], 43_965_137),
        (["coco_instance_r50_12ep.yaml"], 43_965_137),
        (["coco_instance_r50.yaml", "backbones/r101.yaml"], 62_905_041),
        (["coco_instance_r50.yaml", "backbones/swin_t.yaml"], 47_416_523),
        (["coco_instance_swin_l.yaml"], 215_491_269),
    ],
)
def test_trainable_parameters_are_the_official_numbers(names, expected):
    model = on_meta(*names)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("name", WHOLE)
def test_models_and_optimizers_of_recipes(name):
    optimization = parsed(name).optimization
    model = on_meta(name)
    groups = parameter_groups(model, optimization)
    counted = sum(p.numel() for group in groups for p in group["params"])
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert build_optimizer(model, optimization, torch.device("cpu")).defaults["lr"] == optimization.learning_rate
    if name in OFFICIAL:
        rates = {(group["lr"], group["weight_decay"]) for group in groups}
        frozen_norms = optimization.freeze_batch_norm
        backbone = {(1e-5, 0.05)} | (set() if frozen_norms else {(1e-5, 0.0)})
        assert {(round(lr, 9), decay) for lr, decay in rates} == {(1e-4, 0.05), (1e-4, 0.0)} | backbone
        assert optimization.max_grad_norm == 0.01 and not model.config.query_position_embeddings
        assert model.config.num_queries == (200 if "swin_l" in name and "semantic" not in name else 100)
        assert (model.config.pilot_groups, model.config.pilot_noise_scale, model.config.pilot_label_noise) == (
            1,
            0,
            0.2,
        )


@pytest.mark.parametrize(
    "name", ["own_dataset.yaml", "nuclei_instance.yaml", "matting_semantic.yaml", "nuinsseg_panoptic.yaml"]
)
def test_recipes_that_start_from_a_checkpoint_build_from_one(name, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    args = parsed(name, flags=["--model_name_or_path", str(tmp_path)])
    model = build_model(args.model, args.pilot, LABELS)
    assert (
        model.config.num_queries
        == (300 if name.startswith("nu") else 8)
        == len(model.model.transformer_module.queries_features.weight)
    )
    assert model.config.num_labels == 80 and args.run.max_detections == (300 if name.startswith("nu") else 100)
    assert args.optimization.max_train_steps == 5000 and build_optimizer(model, args.optimization, torch.device("cpu"))


# The release's table: steps, and where the rate falls to a tenth, or None for the polynomial decay.
SCHEDULES = {
    "coco_instance_r50": (368750, (327778, 355092)),
    "coco_instance_r50_12ep": (88500, (73750, 81125)),
    "coco_instance_r50_36ep": (265500, (245000, 260000)),
    "coco_instance_swin_l": (737500, (655556, 710184)),
    "coco_panoptic_r50": (368750, (327778, 355092)),
    "coco_panoptic_r50_12ep": (88500, (73750, 81125)),
    "coco_panoptic_r50_36ep": (265500, (245000, 260000)),
    "coco_panoptic_swin_l": (737500, (655556, 710184)),
    "ade20k_semantic_r50": (160000, None),
    "ade20k_semantic_swin_l": (160000, None),
    "ade20k_panoptic_r50": (160000, None),
    "ade20k_panoptic_swin_l": (160000, None),
    "ade20k_instance_r50": (160000, None),
    "ade20k_instance_swin_l": (160000, None),
    "cityscapes_semantic_r50": (90000, None),
    "cityscapes_semantic_swin_l": (90000, None),
    "cityscapes_instance_r50": (90000, None),
    "cityscapes_instance_swin_l": (90000, None),
    "cityscapes_panoptic_r50": (90000, (80000, 85000)),
    "cityscapes_panoptic_swin_l": (90000, (80000, 85000)),
    "mapillary_semantic_r50": (300000, None),
    "mapillary_panoptic_r50": (300000, None),
}


def test_every_official_recipe_has_its_schedule():
    assert {name.removesuffix(".yaml") for name in OFFICIAL} == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_the_official_ones(name):
    optimization = parsed(f"{name}.yaml").optimization
    steps, falls = SCHEDULES[name]
    assert optimization.max_train_steps == steps
    scheduler = scheduler_of(optimization, steps)
    if falls is None:
        assert (scheduler.total_iters, scheduler.power) == (steps, 0.9)
    else:
        assert (sorted(scheduler.milestones), scheduler.gamma) == (list(falls), 0.1)


# (augmentation, crop, shortest edges, longest edge, evaluation's shortest and longest edge)
SIZES = {
    "coco": ("lsj", [1024, 1024], None, None, 800, 1333),
    "ade20k_semantic_r50": ("crop", [512, 512], (256, 1024), 2048, 512, 2048),
    "ade20k_semantic_swin_l": ("crop", [640, 640], (320, 1280), 2560, 640, 2560),
    "ade20k_panoptic": ("crop", [640, 640], (320, 1280), 2560, 640, 2560),
    "ade20k_instance": ("crop", [640, 640], (320, 1280), 2560, 640, 2560),
    "cityscapes": ("crop", [512, 1024], (512, 2048), 4096, 1024, 2048),
    "mapillary": ("crop", [1024, 1024], (1024, 4096), 8192, 2048, 2048),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_sizes_are_the_official_ones(name):
    args = parsed(f"{name}.yaml")
    data, transforms = args.data, args.transforms
    augmentation, crop, edges, longest, shortest_edge, longest_edge = next(
        sizes for prefix, sizes in SIZES.items() if name.startswith(prefix)
    )
    assert (transforms.augmentation, transforms.crop_size) == (augmentation, crop) and data.task in name
    assert data.drop_empty == name.startswith("coco_instance")
    assert (transforms.eval_shortest_edge, transforms.eval_longest_edge) == (shortest_edge, longest_edge)
    if augmentation == "crop":
        chosen = transforms.shortest_edges
        assert (chosen[0], chosen[-1], len(chosen), transforms.longest_edge) == (*edges, 16, longest)
        assert transforms.color_jitter and transforms.max_category_share == 1.0
    else:
        assert transforms.scale_range == [0.1, 2.0] and not transforms.color_jitter
    assert transforms.horizontal_flip
    if "panoptic" in name:
        assert transforms.eval_threshold == (0.0 if "mapillary" in name else 0.8)


def test_later_recipes_and_flags_override(tmp_path):
    flags = ["--learning_rate", "0.5"]
    args = parsed("coco_instance_r50.yaml", "backbones/swin_t.yaml", flags=flags)
    fields = json.loads(args.model.model_fields)
    assert fields["backbone_config"]["model_type"] == "swin" and "layer_type" not in fields["backbone_config"]
    assert fields["num_queries"] == 100 and args.optimization.learning_rate == 0.5
    (tmp_path / "a.yaml").write_text(
        "model_fields: {hidden_dim: 64, backbone_config: {model_type: swin, embed_dim: 8}}"
    )
    (tmp_path / "b.yaml").write_text("base: [a.yaml]\nmodel_fields: {backbone_config: {model_type: swin, depths: [1]}}")
    expected = {"hidden_dim": 64, "backbone_config": {"model_type": "swin", "embed_dim": 8, "depths": [1]}}
    assert read_recipe(str(tmp_path / "b.yaml")) == {"model_fields": expected}
    assert merge({"a": {"model_type": "x", "b": 1}}, {"a": {"model_type": "y"}}) == {"a": {"model_type": "y"}}


@pytest.mark.parametrize("file", sorted((RECIPES / "study" / "arms").glob("*.yaml")), ids=lambda file: file.stem)
def test_flags_of_all_arms_exist(file):
    arms = read_recipe(str(file))
    assert arms
    for own in arms.values():
        given = parse_arguments(as_flags(flags_of_seed(own, 0))).as_dict()
        assert set(own) <= set(given) and given["model_fields"] == json.dumps(own.get("model_fields", {}))
