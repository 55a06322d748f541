"""Publishing a saved MP-Former on the Hub, with or without the code that runs it.

A push is one commit: a failed push leaves the repository unchanged.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from transformers.dynamic_module_utils import get_relative_import_files

from ..inference.loading import load_model
from ..model.configuration_mpformer import MPFormerConfig
from ..utils.files import read_json, write_json, write_text
from .model_card import USE, USE_WITH_CODE, replace_use_section, write_card

PACKAGE = Path(__file__).parents[1] / "model"
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
# A lost connection raises the error class of the httpx that the installed huggingface_hub uses.
HTTP_ERRORS: tuple[Any, ...] = tuple(cls for cls in HfHubHTTPError.__mro__ if cls.__name__ == "HTTPError")
NOT_OF_THE_HUB = (json.JSONDecodeError, KeyError, TypeError)  # what a login page instead of an answer leads to
REQUIRED = ("config.json", "preprocessor_config.json")


def files_to_publish(folder: Path) -> list[Path]:
    """Files to publish: the configurations, the model card, and the weights: one file, or those of an index.

    Raises:
        ValueError: the folder is not that of a saved MP-Former, or a file is a link to somewhere else.
    """
    index = folder / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} has adapters, which are not published: merge them (merge_and_unload) and save.")
    if index.is_file() and not (folder / weights[0]).is_file():  # which is the one that is loaded
        content = read_json(index)
        if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
            raise ValueError(f"{index} has no weight_map.")
        weights = [index.name, *sorted({str(name) for name in content["weight_map"].values()})]
    names = [*REQUIRED, *weights]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is not the folder of a saved MP-Former: it has no {', '.join(missing)}.")
    files = [folder / name for name in (*names, "README.md") if (folder / name).is_file()]
    for file in files:
        check_not_elsewhere(file, folder)
    config = read_json(folder / "config.json")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != "mpformer":
        raise ValueError(f"{folder}/config.json has model_type {model_type!r}, expected 'mpformer'.")
    return files


def check_not_elsewhere(file: Path, folder: Path) -> None:
    """Check that a file is in a folder, or in the blobs of a snapshot of the Hub's cache.

    Raises:
        ValueError: it is a link to another place.
    """
    real, root = file.resolve(), folder.resolve()
    blobs = root.parent.parent / "blobs"
    in_cache = root.parent.name == "snapshots" and real.is_relative_to(blobs)
    if not real.is_relative_to(root) and not in_cache:
        raise ValueError(f"{file} is a link to {real}, which is not in {folder}; nothing was published.")


def code_files() -> list[Path]:
    """Modules that the Auto classes and the pipeline need."""
    entries = [PACKAGE / f"{reference.split('.')[0]}.py" for reference in (MODEL, *PROCESSORS.values())]
    entries += [PACKAGE / "configuration_mpformer.py", PACKAGE / "pipeline_mpformer.py"]
    files = {Path(file).resolve() for entry in entries for file in (entry, *get_relative_import_files(entry))}
    return sorted(files)


def prepare_upload(folder: Path, repo: str, with_code: bool, target: Path) -> None:
    """Collect the files to upload.

    Args:
        folder: the saved model.
        repo: its name on the Hub, for the card.
        with_code: add the code, and `auto_map` and `custom_pipelines` to the configurations.
        target: an empty folder.
    """
    for file in files_to_publish(folder):
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    config, processor = (read_json(folder / name) for name in REQUIRED)
    for content in (config, processor):  # a model that was loaded from the Hub may have them
        content.pop("auto_map", None)
        content.pop("custom_pipelines", None)
    if with_code:
        for file in code_files():
            shutil.copy(file, target / file.name)
        config |= {"auto_map": AUTO_MAP, "custom_pipelines": PIPELINE}
        processor["auto_map"] = {"AutoImageProcessor": PROCESSORS}
    for name, content in zip(REQUIRED, (config, processor), strict=True):
        write_json(content, target / name)
    if not (target / "README.md").exists():
        classes = MPFormerConfig.from_pretrained(folder).num_labels
        body = f"MP-Former (mask-piloted Mask2Former, CVPR 2023) with {classes} classes."
        write_card(target, body, title=repo.split("/")[-1])
    card = target / "README.md"
    use = (USE_WITH_CODE if with_code else USE).format(model=repo)
    write_text(replace_use_section(card.read_text(encoding="utf-8"), use), card)


def why_not_pushed(error: Exception) -> str:
    """Why the Hub's client failed, in one line."""
    if isinstance(error, NOT_OF_THE_HUB):
        return f"what answered is not a Hub; is there a proxy that asks for a login? ({type(error).__name__}: {error})"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_login() -> None:
    """Check that the Hub can be reached and the user is logged in, before a long run that ends with a push.

    Raises:
        ValueError: it cannot, or is not.
    """
    try:
        HfApi().whoami()
    except (LocalTokenNotFoundError, *HTTP_ERRORS, OSError, RuntimeError, *NOT_OF_THE_HUB) as error:
        raise ValueError(f"push_to_hub: {why_not_pushed(error)}") from error


def push(folder: Path, repo: str, with_code: bool = False, private: bool = False, revision: str | None = None) -> str:
    """Create the repository if it does not exist and upload a folder in one commit; returns the URL of the commit.

    Raises:
        ValueError: the folder or the name is invalid, the user is not logged in, or the upload failed.
    """
    files_to_publish(folder)
    load_model(str(folder), quantized=True)  # nothing incomplete is published
    api = HfApi()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            prepare_upload(folder, repo, with_code, Path(temporary))
            api.create_repo(repo, private=private, exist_ok=True)
            if revision:
                api.create_branch(repo, branch=revision, exist_ok=True)
            message = f"MP-Former{' with its code' if with_code else ''}"
            commit = api.upload_folder(repo_id=repo, folder_path=temporary, commit_message=message, revision=revision)
            return commit.commit_url
    except (HFValidationError, LocalTokenNotFoundError, *HTTP_ERRORS, OSError, RuntimeError, *NOT_OF_THE_HUB) as error:
        raise ValueError(f"{folder} was not pushed to {repo}: {why_not_pushed(error)}") from error
