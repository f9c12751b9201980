"""What a contestant's process measures and prints; free of jax, whose memory is for some alone."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

TARGETS = (0.5, 0.3, 0.2)  # losses, to which the time is taken
_PROBLEM, _SETTING = "problem.npz", "setting.json"


class Setting(NamedTuple):
    """What all contestants have in common.

    Attributes:
      layer_sizes: inputs, hidden units, classes.
      l2: C.
      batch_size: b.
      block_size: B, of the SVRG methods.
      inner_steps: m, the updates from one snapshot to the next.
      read_period: r of asvrg's threads.
      eval_every: updates from one evaluation to the next, of methods without snapshots.
      rate_seconds: for which updates are counted, at least.
      seed: of all draws.
    """

    layer_sizes: tuple[int, int, int]
    l2: float
    batch_size: int
    block_size: int
    inner_steps: int
    read_period: int
    eval_every: int
    rate_seconds: float
    seed: int


class Problem(NamedTuple):
    """A network's training problem, as arrays.

    Attributes:
      setting: its numbers.
      x0: float32 [d], laid out as in asvrg.mlp.
      inputs: float32 [n, p].
      labels: int32 [n].
    """

    setting: Setting
    x0: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray


class Task(NamedTuple):
    """A contestant's arguments.

    Attributes:
      method: of its module.
      workers: threads or processes.
      lr: eta.
      limit_seconds: of optimisation on the way to the losses; 0 to count updates only.
    """

    method: str
    workers: int
    lr: float
    limit_seconds: float


class Method(Protocol):
    """An optimiser with its own x, that is called step by step.

    Attributes:
      num_updates: of one `advance`.
      grad_evals: component gradients of a `snapshot` and an `advance` together.
      nbytes: of data, parameters and whatever is kept of samples or of earlier updates.
    """

    num_updates: int
    grad_evals: int
    nbytes: int

    def reset(self) -> None:
        """Goes back to x^0; a snapshot that was taken stays."""

    def snapshot(self) -> None:
        """What the method computes of x before its updates, a full gradient or nothing."""

    def advance(self) -> None:
        """Does `num_updates` updates; returns when they have landed."""

    def loss(self) -> float:
        """f(x) over all training samples, the l2 term included."""

    def close(self) -> float:
        """Ends other processes; returns the sum of their peaks of memory, in MB."""


class Point(NamedTuple):
    """A point on the way down: sums since x^0, and the loss there; seconds of optimisation."""

    seconds: float
    updates: int
    grad_evals: int
    loss: float


class Result(NamedTuple):
    """What a contestant's process found.

    Attributes:
      us_per_update: microseconds; None for what has none.
      curve: from x^0 on; empty without one.
      peak_mb: the largest resident memory of the process, with those of its processes added.
      imports_mb: resident memory after the imports, before the data were loaded.
      state_mb: data, parameters and caches.
      gb_per_s: read and written, of the large copy alone.
    """

    us_per_update: float | None
    curve: list[Point]
    peak_mb: float
    imports_mb: float
    state_mb: float
    gb_per_s: float | None = None


def save(problem: Problem, folder: Path) -> None:
    """Writes a problem where `load` finds it."""
    np.savez(folder / _PROBLEM, x0=problem.x0, inputs=problem.inputs, labels=problem.labels)
    (folder / _SETTING).write_text(json.dumps(problem.setting._asdict()), encoding="utf-8")


def load(folder: Path) -> Problem:
    """Reads what `save` wrote."""
    setting = Setting(**json.loads((folder / _SETTING).read_text(encoding="utf-8")))
    with np.load(folder / _PROBLEM) as arrays:
        return Problem(setting, arrays["x0"], arrays["inputs"], arrays["labels"])


def main(build: Callable[[Problem, Task], Method]) -> None:
    """Measures what `build` makes of the command line, `TASK FOLDER`, and prints the Result."""
    task, folder = Task(*json.loads(sys.argv[1])), Path(sys.argv[2])
    imports_mb = resident_mb("VmRSS")
    problem = load(folder)
    rate_seconds = problem.setting.rate_seconds
    method = build(problem, task)
    del problem  # whoever copied the data need not have them twice
    us = rate(method, rate_seconds)
    points = curve(method, task.limit_seconds) if task.limit_seconds else []
    state_mb = method.nbytes / 1e6
    others = method.close()
    report(Result(us, points, resident_mb("VmHWM") + others, imports_mb, state_mb))


def report(result: Result) -> None:
    """Prints a Result as a line of JSON, for `read`."""
    print(json.dumps(result))


def read(text: str) -> Result:
    """The Result that a process printed last."""
    us, points, *rest = json.loads(text.strip().splitlines()[-1])
    return Result(us, [Point(*point) for point in points], *rest)


def rate(method: Method, seconds: float) -> float:
    """Microseconds an update, compilation and snapshot outside of the clock.

    Args:
      method: compiled; every `advance` starts from x^0.
      seconds: that are measured, at least.

    Returns:
      The mean over all updates.
    """
    method.reset()
    method.snapshot()
    taken, updates = 0.0, 0
    while taken < seconds:
        method.reset()
        begin = time.perf_counter()
        method.advance()
        taken += time.perf_counter() - begin
        updates += method.num_updates
    return taken / updates * 1e6


def curve(method: Method, limit_seconds: float) -> list[Point]:
    """The way from x^0 to the lowest of the targets; evaluations are outside of the clock.

    Args:
      method: compiled.
      limit_seconds: of optimisation, after which to stop.

    Returns:
      A point before the first update, and one after every `advance`.
    """
    method.reset()
    points = [Point(0.0, 0, 0, method.loss())]
    while TARGETS[-1] < points[-1].loss < math.inf and points[-1].seconds < limit_seconds:
        begin = time.perf_counter()
        method.snapshot()
        method.advance()
        seconds = time.perf_counter() - begin
        last = points[-1]
        points.append(
            Point(
                last.seconds + seconds,
                last.updates + method.num_updates,
                last.grad_evals + method.grad_evals,
                method.loss(),
            )
        )
    return points if math.isfinite(points[-1].loss) else points[:-1]


def resident_mb(name: str) -> float:
    """Resident memory of this process in MB: VmRSS, what it is now, or VmHWM, the most it was.

    Not ru_maxrss: Linux has a new program inherit it from the process that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found: Any = re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6
