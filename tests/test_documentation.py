"""The pages: their code runs, their links lead somewhere, their pictures are shown."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

from mpformer_hf import MPFormerImageProcessor
from tests.datasets_on_disk import photo
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs"
TEXT = (PAGES / "transformers.md").read_text()
LINKED = [ROOT / "README.md", ROOT / "model_card.md", ROOT / "CONTRIBUTING.md", *PAGES.glob("*.md")]
LINKED += [ROOT / "training" / "README.md", ROOT / "training" / "results" / "README.md"]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def checkpoint(tmp_path):
    """A plain Mask2Former with its processor, as on the Hub."""
    folder = tmp_path / "checkpoint"
    tiny_model("swin").to_mask2former().save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 96}, image_mean=[0.4] * 3).save_pretrained(folder)
    return str(folder)


def use(names, checkpoint):
    """What users of Mask2Former do, with the classes in `names`."""
    model = names["Mask2FormerForUniversalSegmentation"].from_pretrained(checkpoint).eval()
    processor = names["Mask2FormerImageProcessor"].from_pretrained(checkpoint)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    inputs = processor(images=image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    sizes = {"target_sizes": [(50, 70)]}
    return (
        inputs["pixel_values"],
        outputs.class_queries_logits,
        outputs.masks_queries_logits,
        processor.post_process_semantic_segmentation(outputs, **sizes)[0].shape,
        set(processor.post_process_instance_segmentation(outputs, threshold=0.0, **sizes)[0]),
        set(processor.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=set(), **sizes)[0]),
    )


def test_the_migration_is_two_lines(checkpoint):
    diff = re.search(r"```diff\n(.*?)```", TEXT, re.DOTALL).group(1).splitlines()
    names: dict = {}
    exec("\n".join(line[1:] for line in diff if line.startswith("+")), names)
    assert names["Mask2FormerImageProcessor"] is not Mask2FormerImageProcessor
    theirs = use(
        {
            "Mask2FormerForUniversalSegmentation": Mask2FormerForUniversalSegmentation,
            "Mask2FormerImageProcessor": Mask2FormerImageProcessor,
        },
        checkpoint,
    )
    for a, b in zip(use(names, checkpoint), theirs, strict=True):
        if torch.is_tensor(a):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        else:
            assert a == b


def test_the_examples_of_trainer_lora_and_int8(checkpoint, shapes, tmp_path):
    trainer, lora, int8 = python_blocks(TEXT)
    for old, new in (
        ("facebook/mask2former-swin-tiny-coco-panoptic", checkpoint),
        ("your_dataset", str(shapes)),
        ('"val"', '"validation"'),
        ("outputs/yours", str(tmp_path / "out")),
        ('{"shortest_edge": 512, "longest_edge": 1024}', '{"height": 64, "width": 64}'),
        ("max_steps=1000", "max_steps=2, use_cpu=True, report_to='none'"),
        ("_steps=250", "_steps=1"),
    ):
        assert old in trainer
        trainer = trainer.replace(old, new)
    names: dict = {}
    exec(trainer, names)
    log = names["trainer"].state.log_history
    assert [row["step"] for row in log if "eval_ap" in row] == [1, 2]
    exec(lora, names)
    assert any("cross_attn.lora_A" in name for name, _ in names["model"].named_parameters())
    names["model"] = names["model"].merge_and_unload()
    exec(int8, names)
    with torch.no_grad():
        assert torch.isfinite(names["model"].eval()(torch.rand(1, 3, 64, 64)).masks_queries_logits).all()


def test_the_example_of_prompts(tmp_path):
    (example,) = python_blocks((PAGES / "prompts.md").read_text())
    tiny_model().save_pretrained(tmp_path)
    MPFormerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(tmp_path)
    assert "outputs/yours" in example and "photo.jpg" in example
    photo(200, 220).save(tmp_path / "photo.jpg")
    names = {}
    exec(example.replace("outputs/yours", str(tmp_path)).replace("photo.jpg", str(tmp_path / "photo.jpg")), names)
    assert names["result"]["segmentation"].shape == (1, 200, 220)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http", "mailto")):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_and_recipes_that_pages_name_exist(page):
    text = page.read_text()
    for module in re.findall(r"python -m (scripts[\w.]*|tests[\w.]*|training[\w.]*)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), f"{page.name}: {module}"
    for file in re.findall(
        r"(?<![\w/])((?:scripts|training|mpformer_hf|tests|docs)/[\w/.]+\.(?:py|yaml|sh|jsonl?|md))\b", text
    ):
        assert (ROOT / file).exists(), f"{page.name}: {file}"
