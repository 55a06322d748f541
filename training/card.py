"""The model card of a run, from its numbers."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from mpformer_hf.publishing import card_metadata

from .evaluation import TASK_METRICS

TEXT = """---
{metadata}
---

# {title}

MP-Former (mask-piloted Mask2Former, CVPR 2023) for {task} segmentation, fine-tuned on `{dataset}` with `mpformer-hf`.

| metric | `{split}` split, {images} images, original size |
|---|---|
{rows}

Scores of the best weights (by `{metric}`), after {step} of {steps} optimizer steps; training took {minutes} minutes,
evaluation apart.

## Use

```python
import mpformer_hf
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="path/to/{title}")
segmenter("image.jpg")
```

## Training

```json
{arguments}
```

Classes: {classes}.
"""


def write_card(folder: Path, results: dict, arguments: dict, classes: list[str]) -> None:
    """Write `README.md` with the run's scores as metadata and table.

    Args:
        folder: the output folder.
        results: what `Trainer.train` returned.
        arguments: all flags of the run.
        classes: class names.
    """
    task, best = arguments["task"], results["best"]
    dataset = arguments["dataset_name"]
    dataset = Path(dataset).name if Path(dataset).exists() else dataset
    metrics = [name for name in TASK_METRICS[task] if name in best]
    title = folder.resolve().name
    origin = arguments["model_name_or_path"] or arguments["backbone"]
    metadata = card_metadata(
        tags=["image-segmentation", f"{task}-segmentation"],
        base_model=None if origin is None or Path(origin).exists() else origin,  # a folder is nobody else's model
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=arguments["eval_split"],
                metric_type=name,
                metric_value=round(best[name], 4),
            )
            for name in metrics
        ],
    )
    text = TEXT.format(
        metadata=metadata,
        title=title,
        task=task,
        dataset=dataset,
        split=arguments["eval_split"],
        images=best["images"],
        rows="\n".join(f"| {name} | {best[name]:.4f} |" for name in metrics),
        metric=arguments["metric_for_best"] or metrics[0],
        step=best["step"],
        steps=results["steps"],
        minutes=round(results["train_seconds"] / 60, 1),
        arguments=json.dumps(arguments, indent=2),
        classes=", ".join(classes),
    )
    ModelCard(text).save(folder / "README.md")
