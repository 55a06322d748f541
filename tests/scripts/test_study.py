"""`scripts/study`: arms that differ in the pilot alone, and their comparison."""

import json
import subprocess

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy import stats

from scripts.study import __main__ as command_line
from scripts.study import report
from scripts.study import runs as script
from tests import datasets_on_disk as make
from tests.runs import flags


def line(arm, seed, scores, **more):
    evaluations = [
        {"step": 100 * (i + 1), "mean_iou": s, "mask_consistency": [0.5, 0.7], "query_utilisation": [0.1, 0.6, 1.0]}
        for i, s in enumerate(scores)
    ]
    return {"arm": arm, "seed": seed, "flags": [], "evaluations": evaluations, "median_step_seconds": 2.0, **more}


LINES = [
    line("off", 0, [0.1, 0.2, 0.3], peak_memory_mib=800),
    line("off", 1, [0.1, 0.2, 0.4]),
    line("recipe", 0, [0.2, 0.35, 0.5], median_step_seconds=2.5, peak_memory_mib=900),
    line("recipe", 1, [0.2, 0.35, 0.7], median_step_seconds=2.5),
]


def test_the_comparison_is_paired_by_seed():
    mean, half, seeds = report.paired_difference(LINES, "recipe")
    differences = np.array([0.2, 0.3])
    assert (mean, seeds) == (pytest.approx(0.25), 2)
    assert half == pytest.approx(12.7062 * differences.std(ddof=1) / 2**0.5, rel=1e-4)
    assert report.paired_difference([*LINES, line("recipe", 7, [0, 0, 9])], "recipe")[0] == pytest.approx(0.25)


def test_steps_to_reach_a_score():
    assert report.steps_to_reach(0.35, [100, 200], np.array([0.2, 0.5])) == pytest.approx(150)
    assert report.steps_to_reach(0.1, [100, 200], np.array([0.2, 0.5])) == pytest.approx(50)
    assert report.steps_to_reach(0.6, [100, 200], np.array([0.2, 0.5])) is None


def test_the_report_has_a_table_and_a_figure(tmp_path, capsys):
    file = tmp_path / "study.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in LINES))
    command_line.main(["report", str(file)])
    table = (tmp_path / "study.md").read_text()
    assert "| recipe | 2 | 0.6000 (0.5000 to 0.7000) | +0.2500" in table
    shares = [(100 + 100 * 0.1 / 0.15) / 300, (200 + 100 * 0.05 / 0.35) / 300]  # of the steps, by seed
    half = 12.7062 * np.std(shares, ddof=1) / 2**0.5
    for factor in (1, 1.25):
        assert f"| x{factor * np.mean(shares):.2f} ± {factor * half:.2f} |" in table
    assert "| x1.25 | x1.12 |" in table and table.strip() in capsys.readouterr().out
    assert (tmp_path / "study.png").stat().st_size > 10_000
    file.write_text(json.dumps(LINES[0]) + "\n" + json.dumps(line("off", 1, [0.1])) + "\n")
    with pytest.raises(ValueError, match="evaluated at different steps"):
        command_line.main(["report", str(file)])


def test_score_over_budget(tmp_path, capsys):
    """The score of 400 steps without is reached after 200, and half-way in the logarithm between 200 and 400 steps."""
    scores = {"off": {200: (0.1, 0.2), 400: (0.3, 0.4)}, "on": {200: (0.3, 0.3), 400: (0.5, 0.5)}}
    lines = [
        {**line(f"{arm}_{steps}", seed, []), "evaluations": [{"step": steps, "mean_iou": score}]}
        for arm, by_steps in scores.items()
        for steps, found in by_steps.items()
        for seed, score in enumerate(found)
    ]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    command_line.main(["budgets", str(tmp_path / "b.jsonl"), "--figure", str(tmp_path / "b.png")])
    table = capsys.readouterr().out
    assert "| off | 0.150 (0.100, 0.200) | 0.350 (0.300, 0.400) |  |" in table
    shares = [0.5, 2**0.5 / 2]
    half = 12.7062 * np.std(shares, ddof=1) / 2**0.5
    assert f"| on | 0.300 (0.300, 0.300) | 0.500 (0.500, 0.500) | x{np.mean(shares):.2f} ± {half:.2f} |" in table
    assert (tmp_path / "b.png").stat().st_size > 5_000


def test_p_values_are_those_of_the_paired_test_and_corrected():
    lines = [line("off", i, [x]) for i, x in enumerate((0.3, 0.35, 0.31, 0.4))]
    lines += [line("on", i, [x]) for i, x in enumerate((0.33, 0.36, 0.35, 0.42))]
    expected = stats.ttest_rel([0.33, 0.36, 0.35, 0.42], [0.3, 0.35, 0.31, 0.4]).pvalue
    assert report.p_value(lines, "on", "off") == pytest.approx(expected)
    corrected = report.correct({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert corrected == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5})


def test_changed_files_are_refused(tmp_path, monkeypatch):
    clone = tmp_path / "clone"

    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *command], cwd=clone, check=True, capture_output=True)

    clone.mkdir()
    monkeypatch.setattr(script, "ROOT", clone)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(ValueError, match="need a git clone"):
        script.find_commit()
    git("init")
    (clone / "file.py").write_text("1")
    git("add", "file.py")
    git("commit", "-m", "first")
    assert len(script.find_commit()) == 40
    (clone / "outputs").mkdir()
    (clone / "outputs" / "other").touch()
    assert script.find_commit(), "files that git does not know do not matter"
    (clone / "file.py").write_text("2")
    with pytest.raises(ValueError, match=r"Commit first: .* files were changed: file.py"):
        script.find_commit()


def test_arms_share_weights_and_images_and_finished_runs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "find_commit", lambda: "a" * 40)
    data = make.shapes(tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    fields = json.loads(flags(data, "unused")[1])
    given = {"task": "panoptic", "augmentation": "crop", "crop_size": [64, 64], "shortest_edges": [64]}
    given |= {"eval_shortest_edge": 64, "eval_longest_edge": 64, "per_device_train_batch_size": 2, "eval_steps": 1}
    given |= {"model_fields": fields, "max_train_steps": 2, "max_eval_samples": 1, "num_pictures": 0}
    given |= {"dataloader_num_workers": 0, "diagnostics": True}
    recipe.write_text(json.dumps(given))  # JSON is yaml
    results = tmp_path / "results.jsonl"
    command = ["run", "--config", str(recipe), "--dataset_name", str(data), "--output_dir", str(tmp_path / "runs")]
    command += ["--results", str(results), "--seeds", "3"]
    command_line.main([*command, "--jobs", "2"])
    rows = {row["arm"]: row for row in report.read_lines(results)}
    assert set(rows) == {"off", "recipe"} and all(len(row["evaluations"]) == 2 for row in rows.values())
    assert {"commit", "versions", "hardware", "flags"} <= set(rows["off"])
    assert 100 < rows["off"]["peak_memory_mib"] < 8192
    assert "query_utilisation" in rows["off"]["evaluations"][0]
    logs = {
        arm: [json.loads(text) for text in (tmp_path / "runs" / f"{arm}-3" / "log.jsonl").read_text().splitlines()]
        for arm in rows
    }
    assert "loss_mask_pilot" in logs["recipe"][0] and "loss_mask_pilot" not in logs["off"][0]
    weights = load_file(tmp_path / "runs" / "initial-3" / "model.safetensors")
    assert any("pilot_class_embedder" in key for key in weights)
    before = results.read_text()
    command_line.main(command)
    assert results.read_text() == before, "a finished run was repeated"
    with pytest.raises(ValueError, match="has runs of other flags"):
        command_line.main([*command, "--", "--max_train_steps", "1"])
    monkeypatch.setattr(script, "find_commit", lambda: "b" * 40)
    with pytest.raises(ValueError, match=f"has runs of commit {'a' * 40}, this is {'b' * 40}; choose another file"):
        command_line.main(command)


def test_a_flag_may_be_the_seed_of_the_run(tmp_path, monkeypatch):
    commands = []

    def fail(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ValueError: as asked")

    monkeypatch.setattr(script.subprocess, "run", fail)
    own = {"train_samples_seed": "{seed}", "max_train_samples": 99}
    with pytest.raises(ValueError, match=r"on, seed 7: .*as asked"):
        script.train_arm("on", own, 7, tmp_path / "initial", [], tmp_path / "runs", 1)
    (command,) = commands
    given = dict(zip(command[3::2], command[4::2], strict=True))
    assert (given["--train_samples_seed"], given["--max_train_samples"], given["--seed"]) == ("7", "99", "7")
