"""Run transformers' common tests of models and image processors with our classes and with Mask2Former's, and compare.

python -m scripts.transformers_tests            (needs pip's access to PyPI, and `pip install parameterized`)

The tests are those of the source distribution of the installed version, which pip downloads. It has the mixins, but
not the tests of Mask2Former itself; scripts/transformers_test_cases.py has the classes that use the mixins. The exit
code is 1 if a test fails with our classes that does not fail with theirs and is not in `KNOWN`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from mpformer_hf.cli.main import run_command

ROOT = Path(__file__).resolve().parents[1]
# Modules that the mixins import and that the source distribution does not have.
MISSING = {
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}
KNOWN = {  # beginning of the name of a test: why it fails with our classes
    "test_eager_matches_sdpa_inference": "it reads outputs.hidden_states, which Mask2Former's outputs do not have "
    "either; Mask2Former is not tested, since it has no SDPA"
}


def fetch_tests(folder: Path) -> None:
    """Download the source distribution of the installed transformers and unpack its tests.

    Raises:
        ValueError: pip fails.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "transformers", f"transformers=={version('transformers')}", "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pip download: {done.stderr.strip().splitlines()[-1]}")
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as content:
        for member in content.getmembers():
            parts = Path(member.name).parts[1:]
            if parts[:1] == ("tests",) and member.isfile():
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.extractfile(member).read())
    for name, text in MISSING.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    cases = folder / "tests" / "models" / "mpformer" / "test_cases.py"
    cases.parent.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "transformers_test_cases.py", cases)
    for package in {cases.parent, *(path.parent for path in folder.glob("tests/**/*.py"))} | {
        folder / "tests" / "models"
    }:
        (package / "__init__.py").touch()


def run_tests(folder: Path, classes: str) -> dict[str, str | None]:
    """Run the tests with `ours` or `theirs`; the first line of the failure of each test that ran, None if it passed."""
    report = folder / f"{classes}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    command += [f"--junitxml={report}", str(folder / "tests" / "models" / "mpformer" / "test_cases.py")]
    paths = os.pathsep.join((str(folder), str(ROOT)))
    environment = {**os.environ, "CLASSES": classes, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if not report.is_file():
        raise ValueError(f"pytest: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
    results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failed = [*case.findall("failure"), *case.findall("error")]
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        if case.find("skipped") is None:
            results[name] = failed[0].get("message", "").strip().splitlines()[0] if failed else None
    return results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        fetch_tests(Path(folder))
        ours, theirs = (run_tests(Path(folder), classes) for classes in ("ours", "theirs"))
    unexpected = 0
    for kind in ("ModelTest", "ImageProcessorTest"):
        counts = []
        for results in (ours, theirs):
            chosen = [reason for name, reason in results.items() if name.startswith(kind)]
            failed = sum(reason is not None for reason in chosen)
            counts.append(f"{len(chosen) - failed} passed, {failed} failed")
        print(f"{kind}: ours {counts[0]}; theirs {counts[1]}")
    for name, reason in ours.items():
        if reason is None or theirs.get(name) is not None:
            continue
        test = name.rpartition(".")[2]
        known = next((why for start, why in KNOWN.items() if test.startswith(start)), None)
        unexpected += known is None
        print(f"{name}: {known or f'NEW: {reason}'}")
    raise SystemExit(1 if unexpected else 0)


if __name__ == "__main__":
    run_command(main)
