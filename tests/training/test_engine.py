"""Long runs: resuming after a kill, moving averages, freezing, early stopping, trackers, streams, processes."""

import json
import signal
import time
from types import SimpleNamespace

import datasets
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file

from mpformer_hf.training import engine, finetune
from mpformer_hf.training.sharding import prepare_sharding
from tests.runs import ROOT, Run, flags, run_together


def rows_of(output, name="log.jsonl"):
    return [json.loads(line) for line in (output / name).read_text().splitlines()]


def losses_of(output):
    return {row["step"]: row["loss"] for row in rows_of(output)}


def test_a_killed_run_resumes_with_equal_results(shapes, tmp_path):
    torch.set_num_threads(1)
    options = {"max_train_steps": 9, "eval_steps": 3, "checkpointing_steps": 2, "ema_decay": 0.9, "max_eval_samples": 1}
    finetune.main(flags(shapes, tmp_path / "whole", **options))
    killed = Run(["mpformer_hf.training", *flags(shapes, tmp_path / "killed", **options)])
    log, deadline = tmp_path / "killed" / "log.jsonl", time.time() + 120
    while time.time() < deadline and not (log.is_file() and log.read_text().count("\n") >= 5):
        time.sleep(0.01)
    killed.send(signal.SIGKILL)
    killed.wait()
    step = max(losses_of(tmp_path / "killed"))
    assert 5 <= step < 9, killed.told[-2000:]
    with log.open("a") as file:
        file.write('{"step": 6, "lo')  # as if it had died while it wrote
    AcceleratorState._reset_state(reset_partial_state=True)
    options["resume_from_checkpoint"] = "latest"
    results = finetune.main(flags(shapes, tmp_path / "killed", **options))
    assert losses_of(tmp_path / "killed") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-6)
    assert [row["step"] for row in rows_of(tmp_path / "killed")] == list(range(1, 10))
    assert [row["step"] for row in rows_of(tmp_path / "killed", "evaluations.jsonl")] == [3, 6, 9]
    ours, theirs = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("killed", "whole"))
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-6, rtol=1e-5, msg=key)
    assert sorted(path.name for path in (tmp_path / "killed").glob("*checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    whole = json.loads((tmp_path / "whole" / "all_results.json").read_text())
    assert results["best"]["step"] == whole["best"]["step"] and results["steps"] == 9


def test_training_does_not_depend_on_when_it_is_evaluated(shapes, tmp_path):
    for every in (1, 4):
        AcceleratorState._reset_state(reset_partial_state=True)
        options = {"max_train_steps": 4, "eval_steps": every, "max_eval_samples": 1, "num_pictures": 0}
        finetune.main(flags(shapes, tmp_path / str(every), **options))
    assert losses_of(tmp_path / "1") == losses_of(tmp_path / "4")


def test_moving_averages_are_what_is_saved(shapes, tmp_path):
    options = {"max_train_steps": 2, "eval_steps": 2, "max_eval_samples": 1}
    finetune.main(flags(shapes, tmp_path / "still", ema_decay=0.9999999, learning_rate=0.1, **options))
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.main(flags(shapes, tmp_path / "plain", learning_rate=0.1, **options))
    still, plain = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("still", "plain"))
    torch.manual_seed(0)
    key = "class_predictor.weight"
    assert not torch.equal(still[key], plain[key]) and still[key].abs().max() < plain[key].abs().max()


def test_a_frozen_backbone_stays(shapes, tmp_path):
    finetune.main(flags(shapes, tmp_path / "a", freeze_backbone=True, max_train_steps=1, max_eval_samples=1))
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.main(flags(shapes, tmp_path / "b", freeze_backbone=True, max_train_steps=3, max_eval_samples=1))
    first, third = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("a", "b"))
    encoder = [key for key in first if "pixel_level_module.encoder." in key]
    assert encoder and all(torch.equal(first[key], third[key]) for key in encoder)
    assert not torch.equal(first["class_predictor.weight"], third["class_predictor.weight"])


def test_early_stopping(shapes, tmp_path, monkeypatch):
    scores = iter([0.3, 0.2, 0.4, 0.1, 0.1, 0.9])
    monkeypatch.setattr(engine, "evaluate_model", lambda *a, **k: {"pq": next(scores), "mean_iou": 0.0, "images": 1})
    options = {"max_train_steps": 6, "eval_steps": 1, "early_stopping_patience": 2}
    results = finetune.main(flags(shapes, tmp_path / "a", **options))
    assert results["steps"] == 5 and results["best"]["step"] == 3 and len(rows_of(tmp_path / "a")) == 5


def test_trackers_get_losses_scores_and_pictures(shapes, tmp_path):
    options = {"max_train_steps": 2, "eval_steps": 2, "num_pictures": 1, "max_eval_samples": 1}
    finetune.main(flags(shapes, tmp_path / "a", report_to="tensorboard", **options))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = {"scalars": set(), "images": set()}
    for file in (tmp_path / "a").rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        for kind in tags:
            tags[kind] |= set(events.Tags()[kind])
    assert {"loss", "loss_mask_pilot", "lr", "eval_pq"} <= tags["scalars"] and "samples/00000" in tags["images"]


def test_the_compile_flag_compiles_the_model_without_its_criterion(shapes, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kwargs: compiled.append(type(self).__name__))
    finetune.main(flags(shapes, tmp_path / "a", torch_compile="model", max_train_steps=1, max_eval_samples=1))
    assert compiled == ["MPFormerModel"]


def test_a_streamed_dataset_trains_resumes_and_needs_a_number_of_steps(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # seconds after each epoch
    options = {"streaming": True, "shuffle_buffer": 4, "max_eval_samples": 1, "max_train_steps": 5}
    options |= {"lr_schedule": "constant", "checkpointing_steps": 3, "eval_steps": 3}
    results = finetune.main(flags(shapes, tmp_path / "a", **options))
    assert results["steps"] == 5 and len(rows_of(tmp_path / "a")) == 5
    for more in ({"max_train_steps": 3}, {"resume_from_checkpoint": "latest"}):
        AcceleratorState._reset_state(reset_partial_state=True)
        finetune.main(flags(shapes, tmp_path / "resumed", **{**options, **more}))
    assert losses_of(tmp_path / "resumed") == pytest.approx(losses_of(tmp_path / "a"), rel=1e-6)
    AcceleratorState._reset_state(reset_partial_state=True)
    argv = flags(shapes, tmp_path / "b", **options)
    place = argv.index("--max_train_steps")
    with pytest.raises(ValueError, match="streaming: the length of the dataset is unknown"):
        finetune.main(argv[:place] + argv[place + 2 :])


@pytest.mark.parametrize("task", ["instance"])
def test_instances_train_and_are_scored(shapes, tmp_path, task):
    results = finetune.main(flags(shapes, tmp_path / "a", task=task, max_train_steps=2, num_pictures=1))
    assert 0 <= results["best"]["ap"] <= 1 and set(results["best"]["per_class_ap"]) == {
        "disc",
        "square",
        "triangle",
        "star",
    }
    assert "| ap50 |" in (tmp_path / "a" / "README.md").read_text()
    assert len(list((tmp_path / "a" / "pictures").iterdir())) == 1


def test_two_processes_train_together(shapes, tmp_path):
    options = {"max_train_steps": 3, "eval_steps": 3, "checkpointing_steps": 3, "num_pictures": 0}
    argv = flags(shapes, tmp_path / "two", per_device_train_batch_size=1, **options)
    run_together(["mpformer_hf.training", *argv], processes=2)
    results = finetune.main(flags(shapes, tmp_path / "one", per_device_train_batch_size=2, **options))
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert two["best"]["images"] == results["best"]["images"] == 3
    assert len(rows_of(tmp_path / "two")) == 3 and (tmp_path / "two" / "checkpoint-3").is_dir()
    assert len(list((tmp_path / "two" / "checkpoint-3").glob("random_states_*.pkl"))) == 2


def sharding_environment(file):
    """What `accelerate launch` makes of the section `fsdp_config`."""
    fields = yaml.safe_load(file.read_text())["fsdp_config"]
    return {"ACCELERATE_USE_FSDP": "true", **{name.upper(): str(value) for name, value in fields.items()}}


def test_fsdp_trains_like_ddp_and_resumes(shapes, tmp_path):
    options = {"max_train_steps": 4, "eval_steps": 2, "checkpointing_steps": 3, "num_pictures": 0}
    options |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "ema_decay": 0.5}
    ddp, fsdp = (flags(shapes, tmp_path / name, **options) for name in ("ddp", "fsdp"))
    run_together(["mpformer_hf.training", *ddp], processes=2)
    environment = sharding_environment(ROOT / "training" / "accelerate" / "sharded.yaml")
    command = ["tests.sharded_run", *fsdp]
    told = run_together(command, processes=2, **environment)
    checkpoint = tmp_path / "fsdp" / "checkpoint-3"
    assert len(list(checkpoint.rglob("*.distcp"))) == 4, told[0]  # weights and optimizer of either process
    for resume in ([], ["--resume_from_checkpoint", "latest"]):
        if resume:
            state = json.loads((checkpoint / "state.json").read_text())  # as if it had been interrupted
            (tmp_path / "fsdp" / "all_results.json").write_text(json.dumps(state["results"]))
            run_together([*command, *resume], processes=2, **environment)
        assert losses_of(tmp_path / "fsdp") == pytest.approx(losses_of(tmp_path / "ddp"), rel=1e-5)
        for name in ("last/model.safetensors", "model.safetensors"):
            ours, theirs = (load_file(tmp_path / arm / name) for arm in ("fsdp", "ddp"))
            assert ours.keys() == theirs.keys()
            for key, tensor in theirs.items():
                torch.testing.assert_close(ours[key], tensor, atol=1e-5, rtol=1e-4, msg=key)
        ours, theirs = (rows_of(tmp_path / arm, "evaluations.jsonl") for arm in ("fsdp", "ddp"))
        assert [(row["step"], row["images"]) for row in ours] == [(2, 3), (4, 3)]
        assert [row["pixel_accuracy"] for row in ours] == pytest.approx([row["pixel_accuracy"] for row in theirs])


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"fsdp_version": 1}, "fsdp_version must be 2"),
        ({"fsdp_version": 2, "cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading must be false"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_unsupported_fsdp_settings_are_refused(setting, message):
    plugin = FullyShardedDataParallelPlugin(**setting)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), is_fsdp2=setting["fsdp_version"] == 2)
    with pytest.raises(ValueError, match=f"fsdp_config: {message}"):
        prepare_sharding(accelerator)
