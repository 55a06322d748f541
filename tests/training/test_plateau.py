"""The warning of a learning rate at which nothing is learned."""

import json

import pytest

from mpformer_hf.training import finetune, plateau
from tests.runs import flags


def messages(losses):
    check = plateau.PlateauCheck()
    return [(step, text) for step, loss in enumerate(losses, start=1) if (text := check.update(loss))]


def dice(first, last, name="loss_dice"):
    return {f"{name}_0": first, name: last, "loss_mask": 1.0}


def test_a_flat_loss_of_equal_layers_is_warned_about_once():
    warned = messages([dice(4.2, 4.2)] * 500)
    assert [step for step, _ in warned] == [200]
    assert "has not fallen for 100 steps (4.20, 4.20)" in warned[0][1] and "--learning_rate 5e-4" in warned[0][1]


@pytest.mark.parametrize(
    "losses",
    [
        [dice(4.0 - 0.002 * step, 4.0 - 0.002 * step) for step in range(500)],  # falls
        [dice(1.3, 1.0)] * 500,  # the layers improve the masks: it has converged
        [dice(4.2, 4.2)] * 150,  # too early
    ],
)
def test_learning_and_converged_runs_are_not_warned_about(losses):
    assert not messages(losses)


def test_the_pilot_decides_where_there_is_one():
    flat = {**dice(2.0, 1.0), **dice(4.2, 4.2, "loss_dice_pilot")}
    falling = {**dice(4.2, 4.2), **dice(2.0, 1.0, "loss_dice_pilot")}
    assert messages([flat] * 200) and not messages([falling] * 500)


def test_a_run_prints_the_warning(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plateau, "WINDOW", 2)
    monkeypatch.setattr(plateau, "SMALLEST_GAIN", 1.0)  # whatever the loss does
    monkeypatch.setattr(plateau, "SMALLEST_DIFFERENCE", 1.0)
    finetune.main(flags(shapes, tmp_path / "a", learning_rate=1e-9, max_train_steps=4, max_eval_samples=1))
    assert "step 4: The dice loss has not fallen" in capsys.readouterr().out
    assert len((tmp_path / "a" / "log.jsonl").read_text().splitlines()) == 4
    assert json.loads((tmp_path / "a" / "all_results.json").read_text())["steps"] == 4
