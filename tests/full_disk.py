"""A run on a disk that fills up: a small tmpfs in a mount namespace of its own.

    unshare --mount --map-root-user python -m tests.full_disk FOLDER KIND

KIND is what finds no room: metrics, trace or checkpoint. Prints, as JSON, what happened.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asvrg import checkpoints as kept
from experiments import checkpoints, files, traces, train_shared
from experiments.traces import spill
from tests import binaries

FLAGS = {
    # Lines alone are written once the first checkpoint is there; 4 KB of them fill a page.
    "metrics": ["--num_epochs=50", "--inner_steps=2", "--checkpoint_seconds=1e9"],
    "trace": ["--num_epochs=6", "--record", "--checkpoint_seconds=1e9"],
    "checkpoint": ["--num_epochs=6", "--checkpoint_seconds=0"],
}
OWNER = {
    "metrics": (files.Lines, "add"),
    "trace": (spill, "write_epoch"),
    "checkpoint": (kept, "save"),
}


def fill(folder: Path) -> None:
    """Leaves no room on the disk."""
    with contextlib.suppress(OSError), open(folder / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def filling(before: Callable[..., Any], folder: Path, number: int) -> Callable[..., Any]:
    """A function that finds the disk full in its call of this number."""
    calls: list[None] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            fill(folder)
        return before(*args, **kwargs)

    return call


def run(folder: Path, kind: str) -> tuple[int, str]:
    """The exit code of a run, and what it printed on the standard error."""
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        code = binaries.run(
            train_shared,
            *binaries.SMALL,
            "--num_threads=1",
            *FLAGS[kind],
            f"--out_dir={folder}",
        )
    return code, printed.getvalue()


def main(disk: Path, kind: str) -> dict[str, Any]:
    """Fills the disk in the midst of a run; then makes room, and goes on."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], check=True)
    folder, (owner, name) = disk / "run", OWNER[kind]
    before = getattr(owner, name)
    setattr(owner, name, filling(before, disk, 3))
    code, printed = run(folder, kind)
    setattr(owner, name, before)
    rows = binaries.read_metrics(folder)
    text = (folder / "metrics.csv").read_text()
    reached = checkpoints.load(folder)
    assert reached is not None
    if kind == "trace":
        traces.load(folder)
    (disk / "ballast").unlink()
    again, _ = run(folder, kind)
    whole, _ = run(disk / "whole", kind)
    return {
        "code": code,
        "printed": printed,
        "epochs": [int(row["epoch"]) for row in rows],
        "whole lines": text.endswith("\n"),
        "kept": reached.state.epoch,
        "again": again,
        "whole": whole,
        "equal": binaries.without_clock(binaries.read_metrics(folder))
        == binaries.without_clock(binaries.read_metrics(disk / "whole")),
        "left": sorted(path.name for path in folder.iterdir()),
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = main(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps(found))
