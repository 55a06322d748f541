"""The house: imports point down, from room to room; no cycles; the model's room travels alone."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [
    "model",
    "utils",
    "metrics",
    "data",
    "inference",
    "hub",
    "export",
    "evaluation",
    "prompts",
    "serving",
    "training",
    "cli",
]
LAYERS = [*(f"mpformer_hf.{room}" for room in ROOMS), "mpformer_hf", "training", "scripts"]
FILES = [file for folder in ("mpformer_hf", "training", "scripts") for file in (ROOT / folder).rglob("*.py")]
OPTIONAL = {"datasets", "evaluate", "pycocotools", "matplotlib", "psutil"}


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def package_of(module):
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


def layer_of(module):
    return max((layer for layer in LAYERS if f"{module}.".startswith(f"{layer}.")), key=len)


def imports_of(module):
    """Modules of the project and other packages that a module imports anywhere."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package_of(module).split(".")
            base = ".".join([*parent[: len(parent) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else node.module
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in MODULES else base


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_points_up(module):
    for imported in imports_of(module):
        if imported in MODULES:
            assert LAYERS.index(layer_of(imported)) <= LAYERS.index(layer_of(module)), f"{module} imports {imported}"


def test_there_are_no_cycles():
    graph = {module: {name for name in imports_of(module) if name in MODULES} - {module} for module in MODULES}
    assert set(graphlib.TopologicalSorter(graph).static_order()) >= set(MODULES)


def test_the_model_travels_alone():
    """What `push --with-code` uploads: flat siblings, which need nothing of the other rooms and no optional package."""
    for module in MODULES:
        if layer_of(module) == "mpformer_hf.model" and module != "mpformer_hf.model":
            assert not {name.split(".")[0] for name in imports_of(module)} & OPTIONAL, module
            own = {name for name in imports_of(module) if name.startswith("mpformer_hf")}
            assert {name.rpartition(".")[0] for name in own} <= {"mpformer_hf.model"}, module


def test_every_module_has_a_room():
    package = ROOT / "mpformer_hf"
    assert {file.name for file in package.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {file.name for file in package.iterdir() if file.is_dir() and file.name != "__pycache__"} == set(ROOMS)
