"""Reading detectron2 checkpoints without executing code in them."""

import codecs
import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

# All that a pickle of numpy arrays needs, under the module names of numpy 1 and 2. None of it can run other code.
NUMPY = {
    **{f"{module}.multiarray._reconstruct": multiarray._reconstruct for module in ("numpy.core", "numpy._core")},
    **{f"{module}.multiarray.scalar": multiarray.scalar for module in ("numpy.core", "numpy._core")},
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": codecs.encode,
    "collections.OrderedDict": collections.OrderedDict,
}
DTYPES = [type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")]


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and refuses everything else."""

    def find_class(self, module: str, name: str):
        try:
            return NUMPY[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"refused {module}.{name}") from None


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read the `model` entry of a checkpoint: `.pth` (torch) or `.pkl` (a pickle of numpy arrays).

    Raises:
        ValueError: it does not exist, is truncated, is not a detectron2 checkpoint, or contains code.
    """
    if not path.is_file():
        raise ValueError(f"File {path} does not exist.")
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                content = ArrayUnpickler(file, encoding="latin1").load()
        else:
            allowed: list[Any] = [value for value in NUMPY.values() if value is not codecs.encode]
            with torch.serialization.safe_globals([*allowed, *DTYPES]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if "GLOBAL" in line or "refused" in line), None)
        if reason is None:
            raise ValueError(f"{path} is not a checkpoint or is truncated: {lines[0]}") from error
        raise ValueError(f"{path} was not loaded, since it could execute code: {reason}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a checkpoint or is truncated: {str(error).splitlines()[0]}") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ValueError(f"{path} is not a detectron2 checkpoint: it has no entry 'model'.")
    other = next(
        (key for key, value in model.items() if not isinstance(value, (np.ndarray, np.generic, torch.Tensor))), None
    )
    if other is not None:  # as a tensor, a few nested lists may have no end
        raise ValueError(f"{path}: {other} of its entry 'model' is no array.")
    return {key: torch.as_tensor(value) for key, value in model.items()}
