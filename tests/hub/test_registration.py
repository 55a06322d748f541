"""Importing the package is light, and what it registers is there whatever is imported first."""

import subprocess
import sys

import pytest

import mpformer_hf
from mpformer_hf.cli.main import COMMANDS

CHECK = "from transformers import AutoModel, AutoConfig; from transformers.pipelines import PIPELINE_REGISTRY as P; "
CHECK += "from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING as M; "
CHECK += "c = AutoConfig.for_model('mpformer', num_queries=1, encoder_layers=1, decoder_layers=2); "
CHECK += "print(type(c).__module__, c in AutoModel._model_mapping, type(c) in M, "
CHECK += "P.supported_tasks['image-segmentation']['impl'].__module__)"
FIRST = (
    "import mpformer_hf",
    "from transformers import AutoModelForUniversalSegmentation; import mpformer_hf",
    "import mpformer_hf.model.criterion",
    "from mpformer_hf import MPFormerModel",
)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("first", FIRST)
def test_registered_whatever_is_imported_first(first):
    check = CHECK.replace("c in AutoModel._model_mapping", "type(c) in AutoModel._model_mapping")
    told = run(f"{first}; {check}").split()
    assert told == ["mpformer_hf.model.configuration_mpformer", "True", "True", "mpformer_hf.hub.registration"]


def test_import_and_help_load_no_heavy_library():
    code = "import sys; from mpformer_hf.cli.main import main\n"
    code += f"for name in {sorted(COMMANDS)!r}:\n try: main([name, '--help'])\n except SystemExit: pass\n"
    code += (
        "main(['--help']); heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy'} & set(sys.modules)\n"
    )
    code += "print('loaded:', sorted(heavy))"
    assert run(code).endswith("loaded: []\n")


def test_public_names_exist():
    assert set(mpformer_hf.__all__) <= set(dir(mpformer_hf))
    assert all(getattr(mpformer_hf, name) is not None for name in mpformer_hf.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        mpformer_hf.nothing  # noqa: B018
