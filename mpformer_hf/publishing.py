"""Publish a saved MP-Former on the Hub, plain or with the code that runs it.

Everything goes up in one commit: a push that breaks off leaves the repository as it was.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from transformers.dynamic_module_utils import get_relative_import_files

from .configuration_mpformer import MPFormerConfig

PACKAGE = Path(__file__).parent
MODEL = "modeling_mpformer.MPFormerForUniversalSegmentation"
PROCESSORS = {
    "torchvision": "image_processing_mpformer.MPFormerImageProcessor",
    "pil": "image_processing_mpformer.MPFormerImageProcessorPil",
}
AUTO_MAP = {
    "AutoConfig": "configuration_mpformer.MPFormerConfig",
    "AutoModel": "modeling_mpformer.MPFormerModel",
    "AutoModelForUniversalSegmentation": MODEL,
    "AutoModelForImageSegmentation": MODEL,
    "AutoImageProcessor": PROCESSORS,
}
PIPELINE = {
    "image-segmentation": {
        "impl": "pipeline_mpformer.MPFormerImageSegmentationPipeline",
        "pt": ["AutoModelForImageSegmentation"],
        "default": None,
        "type": "multimodal",
    }
}
# A broken connection raises the error of whichever httpx the installed huggingface_hub is made with.
HTTP_ERRORS = tuple(cls for cls in HfHubHTTPError.__mro__ if cls.__name__ == "HTTPError")
NEEDED = ("config.json", "preprocessor_config.json")
CARD = """---
{metadata}
---

# {title}

MP-Former (mask-piloted Mask2Former, CVPR 2023) with {classes} classes.
"""
USE = """
## Use

```python
{first}from transformers import pipeline

segmenter = pipeline("image-segmentation", model="{repo}"{trust})
segmenter("image.jpg")
```
"""


def card_metadata(tags: Sequence[str] = (), **fields) -> str:
    """The head of a model card, yaml without its `---`: library, task and tags of every MP-Former, and more fields of
    `huggingface_hub.ModelCardData`."""
    tags = ["mp-former", "mask2former", *tags]
    return ModelCardData(library_name="transformers", pipeline_tag="image-segmentation", tags=tags, **fields).to_yaml()


def check_folder(folder: Path) -> list[Path]:
    """Files to publish.

    Raises:
        ValueError: the folder holds no saved MP-Former.
    """
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")])
    if missing or not weights:
        lacks = missing or ["model.safetensors"]
        raise ValueError(f"{folder} is no folder of a saved MP-Former: it has no {', '.join(lacks)}.")
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "mpformer":
        raise ValueError(f"{folder}/config.json is of a {kind}, not of an mpformer.")
    return [*(folder / name for name in NEEDED), *weights, *folder.glob("README.md")]


def code_files() -> list[Path]:
    """The modules that the Auto classes and the pipeline need, flat."""
    entries = [PACKAGE / f"{reference.split('.')[0]}.py" for reference in (MODEL, *PROCESSORS.values())]
    entries += [PACKAGE / "configuration_mpformer.py", PACKAGE / "pipeline_mpformer.py"]
    found = {Path(file).resolve() for entry in entries for file in (entry, *get_relative_import_files(entry))}
    return sorted(found)


def stage(folder: Path, repo: str, with_code: bool, target: Path) -> None:
    """Put everything that goes up into an empty folder.

    Args:
        folder: the saved model.
        repo: its name on the Hub, for the card.
        with_code: add the code and say in the configurations where the classes are.
        target: an empty folder.
    """
    for file in check_folder(folder):
        shutil.copy(file, target / file.name)
    config = json.loads((folder / "config.json").read_text())
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    for content in (config, processor):  # a folder that was loaded from the Hub may say so already
        content.pop("auto_map", None)
        content.pop("custom_pipelines", None)
    if with_code:
        for file in code_files():
            shutil.copy(file, target / file.name)
        config |= {"auto_map": AUTO_MAP, "custom_pipelines": PIPELINE}
        processor["auto_map"] = {"AutoImageProcessor": PROCESSORS}
    for name, content in zip(NEEDED, (config, processor), strict=True):
        (target / name).write_text(json.dumps(content, indent=2) + "\n")
    card = target / "README.md"
    if card.exists():
        text = card.read_text()
    else:
        classes = MPFormerConfig.from_pretrained(folder).num_labels
        text = CARD.format(metadata=card_metadata(), title=repo.split("/")[-1], classes=classes)
    first, trust = ("", ", trust_remote_code=True") if with_code else ("import mpformer_hf\n", "")
    card.write_text(text.split("\n## Use\n")[0].rstrip() + "\n" + USE.format(first=first, repo=repo, trust=trust))


def push(folder: Path, repo: str, with_code: bool = False, private: bool = False, revision: str | None = None) -> str:
    """Create the repository if it is not there and upload a folder in one commit; returns the commit's address.

    Raises:
        ValueError: the folder or the name cannot be used, nobody is logged in, or the Hub refused or broke off.
    """
    check_folder(folder)
    api = HfApi()
    try:
        with tempfile.TemporaryDirectory() as aside:
            stage(folder, repo, with_code, Path(aside))
            api.create_repo(repo, private=private, exist_ok=True)
            if revision:
                api.create_branch(repo, branch=revision, exist_ok=True)
            message = f"MP-Former{' with its code' if with_code else ''}"
            done = api.upload_folder(repo_id=repo, folder_path=aside, commit_message=message, revision=revision)
            return done.commit_url
    except (HFValidationError, LocalTokenNotFoundError, *HTTP_ERRORS, OSError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{folder} was not pushed to {repo}: {reason}") from error
