"""Runs contestants, each in a process of its own that nothing outlives."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from benchmarks import measure
from benchmarks.contestants import Contestant
from benchmarks.contestants.c_floor import COMPILER
from benchmarks.measure import Result, Task

ROOT = Path(__file__).parent.parent
# One thread each: a contestant's own threads or processes are counted by its `workers`.
THREADS = {
    "NPROC": "1",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
LINES = 12  # of a failed contestant's output, that are shown


class Failure(NamedTuple):
    """A contestant that gave no result: why, and the end of what it wrote."""

    why: str
    output: str


def missing(contestant: Contestant) -> str | None:
    """What a contestant needs and this machine lacks; None if nothing."""
    if contestant.module == "torch_" and find_spec("torch") is None:
        return "PyTorch, the package torch"
    if contestant.method == "c" and shutil.which(COMPILER) is None:
        return f"a C compiler, {COMPILER}"
    return None


def run(
    contestant: Contestant, folder: Path, limit_seconds: float, timeout: float
) -> Result | Failure:
    """Runs a contestant.

    Args:
      contestant: of the table.
      folder: with the problem, see `measure.save`.
      limit_seconds: of optimisation on the way to the losses; 0 to count updates only.
      timeout: seconds, after which its processes are killed.

    Returns:
      Its Result, or a Failure.
    """
    task = Task(contestant.method, contestant.workers, contestant.lr, limit_seconds)
    module = f"benchmarks.contestants.{contestant.module}"
    return run_command(
        [sys.executable, "-m", module, json.dumps(task), str(folder.resolve())], timeout
    )


def run_command(command: Sequence[str], timeout: float) -> Result | Failure:
    """Runs a command that prints a Result; see `run`."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | THREADS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, to be killed as a whole
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        out, err = process.communicate()
        return Failure(f"took more than {timeout:.0f} seconds", _end(err or out))
    finally:
        _kill(process)
        process.wait()
    if process.returncode:
        return Failure(f"ended with exit code {process.returncode}", _end(err or out))
    try:
        return measure.read(out)
    except (IndexError, TypeError, ValueError):
        return Failure("printed no result", _end(err + out))


@contextlib.contextmanager
def ending_on_terminate() -> Iterator[None]:
    """SIGTERM ends this process by an exception inside of it, so that `run` kills what it began."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LINES:])
