"""The log of a run: means over some steps, and over processes."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator


class StepLog:
    """Collects the figures of steps, and writes a line for every few of them.

    Args:
        file: JSON lines file, to which lines are appended.
        every: steps of a line.
        accelerator: of this process; the main process writes.
    """

    def __init__(self, file: Path, every: int, accelerator: Accelerator):
        self.every, self.accelerator = every, accelerator
        self.file = file.open("a", encoding="utf-8") if accelerator.is_main_process else None
        self.rows: list[dict[str, float]] = []
        self.figures: dict[str, float | None] = {}

    def add(self, step: int, losses: dict[str, float], figures: dict[str, float | None], last: bool) -> dict | None:
        """Add a step; called by all processes.

        Args:
            step: its number.
            losses: whose means over processes are logged.
            figures: of this process, which are logged as means over steps.
            last: whether no step follows, so that a line is due.

        Returns:
            the line, if one was due.
        """
        self.rows.append(losses)
        self.figures = figures if len(self.rows) == 1 else {k: _sum(self.figures[k], v) for k, v in figures.items()}
        if step % self.every and not last:
            return None
        count = len(self.rows)
        sums = torch.tensor([sum(row[name] for row in self.rows) / count for name in losses], dtype=torch.float64)
        sums = sums.float() if self.accelerator.device.type == "mps" else sums  # which has no float64
        means = self.accelerator.reduce(sums.to(self.accelerator.device), "mean").tolist()
        line = {"step": step, **{name: round(value, 6) for name, value in zip(losses, means, strict=True)}}
        line |= {name: None if value is None else round(value / count, 4) for name, value in self.figures.items()}
        self.rows.clear()
        if self.file is not None:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        return line

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


def _sum(one: float | None, other: float | None) -> float | None:
    """Sum, or None if one is not known."""
    return None if one is None or other is None else one + other
