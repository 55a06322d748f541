"""Tests of `model_card`."""

from mpformer_hf.hub.model_card import escape
from mpformer_hf.training.card import write_run_card


def test_names_in_the_card_are_neither_html_nor_lines(tmp_path):
    assert escape("<script>a</script>\n# b `c`") == "&lt;script&gt;a&lt;/script&gt; # b 'c'"
    scores = dict.fromkeys(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ar"), 0.5) | {"ap_large": None}
    best = {**scores, "images": 1, "step": 1}
    arguments = {"task": "instance", "dataset_name": "a/<b>", "eval_split": "validation", "train_split": "train"}
    arguments |= dict.fromkeys(("model_name_or_path", "backbone", "metric_for_best", "validation_share"))
    results = {"best": best, "steps": 1, "train_seconds": 1.0}
    write_run_card(tmp_path, results, arguments, ["<script>alert(1)</script>", "two\n\n# lines"])
    text = (tmp_path / "README.md").read_text()
    assert "<script>" not in text and "two # lines" in text and "| ap_large | - |" in text
    assert "# lines" not in text.splitlines()
