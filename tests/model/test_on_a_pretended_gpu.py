"""A training step on a device that claims to be a GPU: same results, few waits and kernels."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_steps_on_a_pretended_gpu():
    """At most 6 waits and 1,200 kernels of matching and losses in each case, and no more for 8 images than for 2. All
    options: `python -m tests.pretended_gpu`."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.pretended_gpu", "--sites", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    pattern = r"^ok +(.*?) +waits +(\d+) .* losses +(\d+) "
    counts = {title: (int(w), int(k)) for title, w, k in re.findall(pattern, done.stdout, re.MULTILINE)}
    assert len(counts) == 7
    assert counts["optimize, 2 images"] == counts["optimize, 8 images"]
    assert counts["optimize, 8 images"][0] == 2, "for matching and for the log"
