"""Runs the binaries inside of the test process, as a user would from a shell."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType

import pytest

from experiments import launch

# A problem of a second: 100 images, 10 hidden units, 730 coordinates.
SMALL = (
    "--num_train=100",
    "--num_test=50",
    "--hidden=10",
    "--num_epochs=3",
    "--inner_steps=50",
    "--block_size=64",
    "--lr=0.2",
)


def run(binary: ModuleType, *arguments: str) -> int:
    """The exit code of a binary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPROC", "1")  # also has it restored afterwards
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setattr(sys, "argv", ["binary", *arguments])
        return launch.run(binary.main, binary.define_flags)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """The lines of a run's metrics.csv."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_clock(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The lines without the column that differs from run to run."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
