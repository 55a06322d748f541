"""The model card of a run."""

import json
from pathlib import Path

from huggingface_hub import EvalResult

from ..data.arguments import MEMORY
from ..evaluation.task_metrics import TASK_METRICS, format_score
from ..hub.model_card import escape, write_card

BODY = """MP-Former (mask-piloted Mask2Former, CVPR 2023) for {task} segmentation, fine-tuned on `{dataset}` with
`mpformer-hf`.

| metric | {split}, {images} images, original size |
|---|---|
{rows}

Scores of the best weights (by `{metric}`), after {step} of {steps} optimizer steps. Training took {minutes} minutes
without evaluation.

## Training

```json
{arguments}
```

Classes: {classes}.
"""


def write_run_card(folder: Path, results: dict, arguments: dict, classes: list[str]) -> None:
    """Write `README.md` with the scores of a run as table and metadata.

    Args:
        folder: the output folder.
        results: result of `FineTuner.train`.
        arguments: all flags of the run.
        classes: class names.
    """
    task, best = arguments["task"], results["best"]
    dataset = arguments["dataset_name"]
    dataset = Path(dataset).name if Path(dataset).exists() else dataset
    dataset = "data in memory" if dataset.startswith(MEMORY) else dataset
    metrics = [name for name in TASK_METRICS[task] if name in best]
    title = folder.resolve().name
    share = arguments["validation_share"]
    base_model = arguments["model_name_or_path"] or arguments["backbone"]
    body = BODY.format(
        task=task,
        dataset=escape(dataset),
        split=f"`{arguments['eval_split']}` split" + (f" ({share} of `{arguments['train_split']}`)" if share else ""),
        images=best["images"],
        rows="\n".join(f"| {name} | {format_score(best[name])} |" for name in metrics),
        metric=arguments["metric_for_best"] or metrics[0],
        step=best["step"],
        steps=results["steps"],
        minutes=round(results["train_seconds"] / 60, 1),
        arguments=json.dumps(arguments, indent=2),
        classes=", ".join(escape(name) for name in classes),
    )
    scores = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=arguments["eval_split"],
            metric_type=name,
            metric_value=round(best[name], 4),
        )
        for name in metrics
        if best[name] is not None
    ]
    write_card(
        folder,
        body,
        tags=["image-segmentation", f"{task}-segmentation"],
        base_model=None if base_model is None or Path(base_model).exists() else base_model,  # not a local folder
        model_name=title,
        eval_results=scores,
    )
