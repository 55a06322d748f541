"""Tests of `waiting`."""

import json
import time

import pytest

from mpformer_hf.training import finetune
from mpformer_hf.training.waiting import WINDOW, WaitingCheck
from tests.runs import flags


def test_the_log_says_how_long_steps_wait_for_images(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mpformer_hf.training.waiting.WINDOW", 2)
    make_pictures = finetune.TrainingDataset.__getitem__

    def slowly(self, draw):
        time.sleep(0.5)
        return make_pictures(self, draw)

    monkeypatch.setattr(finetune.TrainingDataset, "__getitem__", slowly)
    finetune.main(flags(shapes, tmp_path / "a", max_train_steps=5, eval_steps=5, max_eval_samples=1))
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert all(1 <= row["data_seconds"] <= row["seconds"] for row in rows)
    out = capsys.readouterr().out
    assert out.count("spent waiting for images (--dataloader_num_workers 0)") == 1 and "step 3: " in out


@pytest.mark.parametrize(("waited", "warned"), [(0.19, False), (0.21, True)])
def test_waiting_is_reported_from_a_fifth_of_the_time(waited, warned):
    check = WaitingCheck(4)
    texts = [check.update(10.0, 10.0)] + [check.update(waited, 1.0) for _ in range(3 * WINDOW)]
    assert sum(text is not None for text in texts) == warned, "the first step, when workers start, does not count"
