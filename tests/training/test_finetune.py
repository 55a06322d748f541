"""Fine-tuning end to end, on tiny data: arguments, optimizer, loop, results, errors."""

import json
import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import Mask2FormerImageProcessor, pipeline

from mpformer_hf import MPFormerForUniversalSegmentation, MPFormerImageProcessor
from mpformer_hf.cli import evaluate
from mpformer_hf.data.arguments import DataArguments
from mpformer_hf.data.labels import Labels
from mpformer_hf.data.opening import open_dataset
from mpformer_hf.evaluation.evaluator import evaluate_model, evaluation_loader
from mpformer_hf.training import checkpoints, engine, finetune
from mpformer_hf.training.arguments import ModelArguments, OptimizationArguments, PilotArguments, parse_arguments
from mpformer_hf.training.building import build_model, load_checkpoint
from mpformer_hf.training.optimization import build_optimizer, build_scheduler, parameter_groups
from mpformer_hf.utils.arguments import parse
from tests import datasets_on_disk as make
from tests.runs import Run, flags
from tests.tiny import BACKBONES, SIZES, tiny_config, tiny_model

LABELS = Labels(["a", "b", "c"], {0: 0, 1: 1, 2: 2}, {0})


def test_flags_override_recipes_and_recipes_their_base(tmp_path):
    (tmp_path / "base.yaml").write_text("task: semantic\nlearning_rate: 1.0e-3\nmodel_fields: {hidden_dim: 64}\n")
    (tmp_path / "own.yaml").write_text(
        "base: base.yaml\nlearning_rate: 2.0e-3\nlr_milestones: [0.5, 0.6]\nwarmup_steps: 3\n"
    )
    classes = [ModelArguments, DataArguments, OptimizationArguments]
    parse(classes, [f"--config={tmp_path / 'own.yaml'}"])
    model, data, optimization = parse(classes, ["--config", str(tmp_path / "own.yaml"), "--warmup_steps", "7"])
    assert (data.task, optimization.learning_rate, optimization.warmup_steps) == ("semantic", 2e-3, 7)
    assert optimization.lr_milestones == [0.5, 0.6] and json.loads(model.model_fields) == {"hidden_dim": 64}
    (tmp_path / "bad.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match="unknown flags: learning_rat"):
        parse(classes, ["--config", str(tmp_path / "bad.yaml")])
    with pytest.raises(ValueError, match=r"Recipe nothing\.yaml does not exist"):
        parse(classes, ["--config", "nothing.yaml"])


def test_pilot_flags_reach_the_configuration(tmp_path):
    fields = {"backbone_config": BACKBONES["resnet"].to_dict(), **SIZES}
    pilot = PilotArguments(pilot_groups=3, pilot_noise="shift", pilot_label_noise=0.5, pilot_layers=2)
    model = build_model(ModelArguments(model_fields=json.dumps(fields)), pilot, LABELS)
    assert model.config.pilot_groups == 3 and model.config.pilot_noise == "shift" and model.config.pilot_layers == 2
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"} and model.config.label2id == {"a": 0, "b": 1, "c": 2}
    model.save_pretrained(tmp_path)
    again = build_model(ModelArguments(model_name_or_path=str(tmp_path)), PilotArguments(mask_piloting=False), LABELS)
    assert again.config.pilot_groups == 3 and not again.config.mask_piloting
    weight = "model.pixel_level_module.decoder.mask_projection.weight"
    assert torch.equal(again.state_dict()[weight], model.state_dict()[weight])
    with pytest.raises(ValueError, match="does not have: hiden_dim"):
        build_model(ModelArguments(model_fields='{"hiden_dim": 3}'), PilotArguments(), LABELS)
    with pytest.raises(ValueError, match="weights are missing or have other shapes"):
        args = ModelArguments(model_name_or_path=str(tmp_path), model_fields='{"hidden_dim": 64}')
        build_model(args, PilotArguments(), LABELS)
    with pytest.raises(ValueError, match="Cannot load"):
        build_model(ModelArguments(model_name_or_path=str(tmp_path / "none")), PilotArguments(), LABELS)
    with pytest.raises(ValueError, match="backbone_config has no model_type"):
        build_model(ModelArguments(model_fields='{"backbone_config": {}}'), PilotArguments(), LABELS)
    with pytest.raises(ValueError, match="model_fields is not JSON"):
        build_model(ModelArguments(model_fields="{"), PilotArguments(), LABELS)


BIAS_TABLE = (
    "model.pixel_level_module.encoder.swin.encoder.layers.0.blocks.0.attention.relative_position_bias."
    "relative_position_bias_table"
)


def test_optimizer_groups_are_the_official_ones():
    model = tiny_model("swin")
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, OptimizationArguments())
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    encoder, decoder = "model.pixel_level_module.encoder.", "model.pixel_level_module.decoder."
    expected = {
        encoder + "swin.embeddings.patch_embeddings.projection.weight": (1e-5, 0.05),
        encoder + "swin.embeddings.norm.weight": (1e-5, 0.0),
        encoder + "hidden_states_norms.stage1.bias": (1e-5, 0.0),
        encoder + "swin.encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table": (
            1e-5,
            0,
        ),
        decoder + "level_embed": (1e-4, 0.05),
        decoder + "adapter_1.1.weight": (1e-4, 0.0),
        decoder + "encoder.layers.0.fc1.bias": (1e-4, 0.05),
        "model.transformer_module.level_embed.weight": (1e-4, 0.0),
        "model.transformer_module.queries_features.weight": (1e-4, 0.0),
        "model.transformer_module.pilot_class_embedder.weight": (1e-4, 0.0),
        "class_predictor.weight": (1e-4, 0.05),
    }
    assert {name: found[name] for name in expected} == {k: pytest.approx(v) for k, v in expected.items()}
    for fields, beta2 in (({}, 0.999), ({"adam_beta2": 0.99}, 0.99)):
        optimizer = build_optimizer(model, OptimizationArguments(**fields), torch.device("cpu"))
        assert {group["betas"] for group in optimizer.param_groups} == {(0.9, beta2)}


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"lr_schedule": "step", "lr_milestones": [0.5, 0.8]}, {0: 1, 49: 1, 50: 0.1, 79: 0.1, 80: 0.01}),
        ({"lr_schedule": "poly", "poly_power": 0.9}, {0: 1, 50: 0.5**0.9, 99: 0.01**0.9}),
        ({"lr_schedule": "constant", "warmup_steps": 10}, {0: 0.1, 4: 0.5, 9: 1, 99: 1}),
    ],
)
def test_schedules(fields, expected):
    args = OptimizationArguments(learning_rate=2.0, **fields)
    optimizer = build_optimizer(tiny_model(), args, torch.device("cpu"))
    scheduler = build_scheduler(optimizer, args, 100)
    rates = []
    for _ in range(100):
        rates.append(max(scheduler.get_last_lr()))
        optimizer.step()
        scheduler.step()
    assert {step: rates[step] for step in expected} == pytest.approx({k: 2 * v for k, v in expected.items()})


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    results = finetune.main(flags(shapes, output, eval_on_start=True, num_pictures=2))
    return output, results


def test_the_output_folder_holds_everything(trained):
    output, results = trained
    names = {path.name for path in output.iterdir()} - {".lock"}
    assert names == {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "all_results.json",
        "arguments.json",
        "log.jsonl",
        "evaluations.jsonl",
        "pictures",
        "README.md",
        "last",
    }
    assert {path.name for path in (output / "last").iterdir()} == {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert log[0]["lr"] == 1e-3, "the recipe's rate, not the backbone's"
    assert all(row["loss"] > 0 and row["images_per_second"] > 0 and "loss_mask_pilot" in row for row in log)
    assert log[0]["loss"] == pytest.approx(sum(v for k, v in log[0].items() if k.startswith("loss_")), rel=1e-4)
    saved = json.loads((output / "all_results.json").read_text())
    assert saved == results and saved["before_training"]["step"] == 0 and saved["last"]["step"] == 4
    assert saved["best"]["pq"] == max(saved["best"]["pq"], saved["last"]["pq"])
    evaluations = [json.loads(line) for line in (output / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluations] == [0, 2, 4] and evaluations[-1] == saved["last"]
    pictures = sorted((output / "pictures").iterdir())
    assert len(pictures) == 2 and Image.open(pictures[0]).width > 2 * 64


def test_the_card_has_the_runs_numbers(trained):
    output, results = trained
    card = (output / "README.md").read_text()
    assert f"| pq | {results['best']['pq']:.4f} |" in card and "pipeline_tag: image-segmentation" in card
    assert "model-index" in card and "disc, square, triangle" in card


def test_the_result_loads_and_segments(trained):
    output, _ = trained
    segmenter = pipeline("image-segmentation", model=str(output))
    assert type(segmenter.model) is MPFormerForUniversalSegmentation
    assert segmenter.image_processor.task == "panoptic" and segmenter.image_processor.label_ids_to_fuse == [4, 5, 6, 7]
    found = segmenter(make.photo(64, 64), subtask="semantic")
    assert {row["label"] for row in found} <= set(segmenter.model.config.id2label.values()) and found


def test_evaluate_gives_the_runs_numbers(trained, shapes, tmp_path, capsys):
    output, results = trained
    file = tmp_path / "scores.json"
    args = ["--dataset_name", str(shapes), "--task", "panoptic", "--output_file", str(file)]
    plot = tmp_path / "layers.png"
    scores = evaluate.main([*args, "--model", str(output), "--diagnostics", str(plot)])
    assert Image.open(plot).width > 500 and len(scores["mask_consistency"]) == 4
    assert len(scores["query_utilisation"]) == 5 and scores["query_utilisation"][-1] == 1.0
    for name in ("pq", "mean_iou", "per_class_pq"):
        assert scores[name] == pytest.approx(results["best"][name])
    assert json.loads(file.read_text())["pq"] == scores["pq"] and '"pq"' in capsys.readouterr().out
    with pytest.raises(ValueError, match="choose another name"):
        evaluate.main([*args, "--model", str(output)])
    frequent = evaluate.main([*args[:-2], "--model", "most_frequent_class"])
    assert frequent["class"] in ("grass", "water", "sand", "brick") and 0 < frequent["pq"] < 0.5
    with pytest.raises(ValueError, match=r"pictures exists|layers.png exists"):
        evaluate.main([*args[:-2], "--model", str(output), "--diagnostics", str(plot)])
    with pytest.raises(ValueError, match="MODEL is missing"):
        evaluate.main(args[:-2])


def test_evaluating_a_plain_mask2former(trained, shapes, tmp_path):
    """Its processor knows no stuff; the dataset does."""
    output, results = trained
    model = MPFormerForUniversalSegmentation.from_pretrained(output)
    model.to_mask2former().save_pretrained(tmp_path / "plain")
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(tmp_path / "plain")
    args = ["--dataset_name", str(shapes), "--task", "panoptic", "--model"]
    assert evaluate.main([*args, str(tmp_path / "plain")])["pq"] == pytest.approx(results["best"]["pq"])
    model.config.id2label = {i: name for i, name in enumerate(reversed(model.config.id2label.values()))}
    model.save_pretrained(tmp_path / "other")
    MPFormerImageProcessor().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="Class 0 is 'brick' in the model and 'disc' in the dataset"):
        evaluate.main([*args, str(tmp_path / "other")])


def test_semantic_training_lowers_the_loss(tmp_path):
    import numpy as np

    map_ = np.zeros((64, 64), dtype=np.uint8)
    map_[:, 20:50], map_[50:] = 1, 255
    photo = Image.fromarray(np.stack((60 * map_, map_, 90 + map_), -1).astype(np.uint8))
    data = make.semantic(tmp_path / "d", [map_] * 4, [photo] * 4, names=("a", "b"))
    output = tmp_path / "o"
    results = finetune.main(
        flags(
            data,
            output,
            task="semantic",
            eval_split="train",
            max_train_steps=40,
            eval_steps=40,
            lr_schedule="constant",
            max_grad_norm=1.0,
            backbone_lr_multiplier=1.0,
            learning_rate=2e-3,
        )
    )
    losses = [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert results["best"]["mean_iou"] > 0.6 and "pq" not in results["best"]


def test_the_same_seed_gives_the_same_run(shapes, tmp_path):
    def losses(name, seed):
        finetune.main(flags(shapes, tmp_path / name, seed=seed, max_train_steps=2, max_eval_samples=1))
        return [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]

    first = losses("a", 3)
    assert first == losses("b", 3) and first != losses("c", 4)


def test_accumulation_and_options(shapes, tmp_path):
    finetune.main(
        flags(
            shapes,
            tmp_path / "a",
            gradient_accumulation_steps=2,
            freeze_batch_norm=True,
            gradient_checkpointing=True,
            mixed_precision="bf16",
            max_train_steps=2,
            max_eval_samples=1,
        )
    )
    log = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 2
    model = MPFormerForUniversalSegmentation.from_pretrained(tmp_path / "a" / "last")
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((norm.running_mean == 0).all() and (norm.weight == 1).all() for norm in norms)


def test_frozen_batch_norms_are_in_no_group():
    model = tiny_model("resnet")
    for module in engine.batch_norms(model):
        module.requires_grad_(False)
    groups = parameter_groups(model, OptimizationArguments())
    trained = {id(p) for group in groups for p in group["params"]}
    assert not trained & {id(p) for module in engine.batch_norms(model) for p in module.parameters()}


def test_a_loss_that_is_not_finite_stops_the_run(shapes, tmp_path):
    with pytest.raises(FloatingPointError, match=r"The .* is (nan|inf) in step \d+, training rows \d, \d\."):
        finetune.main(flags(shapes, tmp_path / "a", learning_rate=1e30, max_grad_norm=1e9, max_train_steps=8))


@pytest.mark.parametrize("broken", ["loss", "gradient norm"])
def test_weights_do_not_change_in_a_step_that_is_not_finite(shapes, tmp_path, monkeypatch, broken):
    weights, read_losses = {}, engine.FineTuner.read_losses

    def broken_losses(tuner, values, rows):
        key = {"loss": "loss", "gradient norm": "grad_norm"}[broken]
        weights.update({name: p.detach().clone() for name, p in tuner.model.named_parameters()})
        weights["tuner"] = tuner
        return read_losses(tuner, {**values, key: torch.tensor(float("inf"))}, rows)

    monkeypatch.setattr(engine.FineTuner, "read_losses", broken_losses)
    with pytest.raises(FloatingPointError, match=rf"The {broken} is inf in step 1, training rows \d, \d\."):
        finetune.main(flags(shapes, tmp_path / "a"))
    tuner = weights.pop("tuner")
    assert all(torch.equal(weights[name], p) for name, p in tuner.model.named_parameters())


def test_a_failing_evaluation_keeps_the_weights(shapes, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"metric_for_best must be one of pq, .*got 'miou'"):
        finetune.main(flags(shapes, tmp_path / "a", metric_for_best="miou"))
    assert {path.name for path in (tmp_path / "a").iterdir()} <= {".lock"}, "found out too late"

    def fail(*args, **options):
        raise ValueError("Row 3 is broken")

    monkeypatch.setattr(engine, "evaluate_model", fail)
    with pytest.raises(ValueError, match="Row 3 is broken"):
        finetune.main(flags(shapes, tmp_path / "b", max_train_steps=2))
    assert (tmp_path / "b" / "last" / "model.safetensors").is_file()


def test_scores_do_not_depend_on_the_batch_size(tmp_path):
    images = [make.photo(40, width) for width in (40, 60, 90, 60, 41)]
    maps = [np.random.default_rng(i).integers(0, 3, image.size[::-1], dtype=np.uint8) for i, image in enumerate(images)]
    folder = make.semantic(tmp_path / "data", maps, images)
    split = open_dataset(DataArguments(dataset_name=str(folder), task="semantic"), "train")
    processor = MPFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 160}, task="semantic")
    model, accelerator = tiny_model(num_labels=3), Accelerator()
    loaders = [evaluation_loader(split, processor, accelerator, batch_size) for batch_size in (1, 2, 5)]
    assert sorted(len(batch["index"]) for batch in loaders[2]) == [1, 1, 1, 2]
    scores = [evaluate_model(model, processor, loader, accelerator)["pixel_accuracy"] for loader in loaders]
    assert scores == [scores[0]] * 3


def test_metric_for_best_acts(shapes, tmp_path):
    scores = iter([{"pq": 0.1, "sq": 0.9}, {"pq": 0.2, "sq": 0.5}] * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "evaluate_model", lambda *a, **k: {**next(scores), "mean_iou": 0.0, "images": 1})
        results = [finetune.main(flags(shapes, tmp_path / m, metric_for_best=m))["best"]["step"] for m in ("pq", "sq")]
    assert results == [4, 2]


def test_nothing_is_overwritten(shapes, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; choose another one, or"):
        finetune.main(flags(shapes, tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"kept.txt", ".lock"}
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_a_failed_save_leaves_the_old_weights(tmp_path, monkeypatch):
    processor, model = MPFormerImageProcessor(), tiny_model()
    checkpoints.save_model(model, processor, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(MPFormerImageProcessor, "save_pretrained", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        checkpoints.save_model(MPFormerForUniversalSegmentation(tiny_config()), processor, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("module", ["mpformer_hf.training", "mpformer_hf.cli.main"])
def test_help_is_readable(module):
    helped = Run([module, *(["evaluate"] if "cli" in module else []), "--help"])
    assert helped.wait() == 0
    usage, *groups = re.split(r"\n\n(?=[a-z ]+:\n)", helped.told)
    assert len(usage.splitlines()) < 20 and all(len(group.splitlines()) <= 24 for group in groups)
    groups = [group for group in groups if not group.startswith("positional")]
    flags = [line.split() for group in groups for line in group.splitlines()[1:]]
    assert {"--config", "--eval_split"} <= {words[0] for words in flags}
    assert all(words[0].startswith("-") and len(words) > 3 for words in flags), "a flag and its help on one line"


@pytest.mark.parametrize("flag", ["task", "augmentation", "lr_schedule", "pilot_noise", "mixed_precision"])
def test_flags_with_choices_refuse_other_values(flag, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"{flag}: nonsense\n")
    for argv in ([f"--{flag}", "nonsense"], ["--config", str(tmp_path / "recipe.yaml")]):
        with pytest.raises(ValueError, match=f"^--{flag}: invalid choice: 'nonsense'"):
            parse_arguments(argv)


def test_another_number_of_queries_starts_the_queries_afresh_and_nothing_else(tmp_path):
    tiny_model(num_queries=8).save_pretrained(tmp_path)
    model = load_checkpoint(str(tmp_path), {"num_queries": 12})
    assert model.model.transformer_module.queries_features.weight.shape[0] == 12
    with pytest.raises(ValueError, match="weights are missing or have other shapes"):
        load_checkpoint(str(tmp_path), {"num_queries": 12, "dim_feedforward": 128})
