"""Where the microseconds of an iteration go: in a thread's window, and in its compiled loop.

    python -m benchmarks.profiles --dataset=mnist --out_dir=FOLDER

One thread's window by hand, part by part, and jax's profiler on the compiled loop, whose operations
are named as jax named them, with the shape of what they make. The profiler itself takes time: look
at the shares of the operations, not at their microseconds. Writes profile.csv.
"""

from __future__ import annotations

import collections
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from jax.profiler import ProfileData

from asvrg import estimators, sampling, steps
from asvrg.drivers import threads
from asvrg.errors import INT32, check_count
from asvrg.types import Array, Data, Delta, Draws, Snapshot
from experiments import folders, iterations, launch, problem, provenance, recording, tables

RESULT = "profile.csv"
LR = 0.1  # small enough for every data set; the time does not depend on it


class Line(NamedTuple):
    """A part of an iteration.

    Attributes:
      level: window, for the parts of a thread's window; loop, for operations of its compiled loop.
      part: what is done.
      makes: dtype and shape of an operation's result.
      us: microseconds an iteration, the median; of operations the mean, profiler included.
      share: of its level, in [0, 1].
    """

    level: str
    part: str
    makes: str
    us: float
    share: float


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this benchmark."""
    problem.define_flags(values)
    flags.DEFINE_integer("read_period", 64, "r.", flag_values=values)
    flags.DEFINE_integer("batch_size", 10, "b.", flag_values=values)
    flags.DEFINE_integer("block_size", 1_000, "B.", flag_values=values)
    flags.DEFINE_bool("sees_own", True, "As in train_shared.", flag_values=values)
    flags.DEFINE_integer("repeats", 100, "Windows.", flag_values=values)
    folders.define_out_dir(values)


def main(values: flags.FlagValues) -> int:
    """Profiles, prints the table and writes it as profile.csv."""
    check_count("--repeats", values.repeats, limit=INT32)
    check_count("--read_period", values.read_period, limit=INT32)
    problem_ = problem.from_flags(values)
    window = _Window(values, problem_)
    folder = folders.claim_folder(values.out_dir, f"profile-{values.dataset}", holds=RESULT)
    for _ in range(3):
        window.run()
    rounds = [window.run() for _ in range(values.repeats)]
    phases = {(name, ""): statistics.median(each[name] for each in rounds) for name in rounds[0]}
    lines = [*_lines("window", phases), *_lines("loop", window.operations(values.repeats))]
    for line in lines:
        print(
            f"{line.level:<7} {line.part:<34} {line.makes:<16} {line.us:7.2f} us {line.share:.1%}"
        )
    tables.write_csv(folder / RESULT, lines)
    recording.write_config(folder, provenance.describe(values, {}))
    print(folder / RESULT)
    return 0


class _Window:
    """What a thread does from one read of x to the next, part by part."""

    def __init__(self, values: flags.FlagValues, problem_: problem.Problem) -> None:
        self._data: Data = problem_.train
        self._estimator = estimators.svrg(problem_.objective)
        self._snapshot: Snapshot = self._estimator.prepare(problem_.x0, self._data, map)
        sampler = iterations.make_sampler(values, problem_, block_size=values.block_size)
        self._stream = sampling.Stream(sampler, 0, 0)
        self._count, self._sees_own = values.read_period, values.sees_own
        self._buffer = threads.shared_buffer(problem_.x0)
        self._copy = threads.shared_buffer(problem_.x0)
        self._view = threads.live_view(self._copy)
        self._lr = np.asarray(LR, self._buffer.dtype)

    def run(self) -> dict[str, float]:
        """A window; microseconds of an iteration for each of its parts."""
        times = [time.perf_counter()]
        draws = self._stream.take(self._count)
        times.append(time.perf_counter())
        np.copyto(self._copy, self._buffer)
        times.append(time.perf_counter())
        delta = self._compute(self._view, draws)
        times.append(time.perf_counter())
        threads.add(self._buffer, delta)
        times.append(time.perf_counter())
        parts = ("draws", "copy of x", "compiled call", "addition to x")
        return {
            part: 1e6 * seconds / self._count
            for part, seconds in zip(parts, np.diff(times).tolist(), strict=True)
        }

    def operations(self, repeats: int) -> dict[tuple[str, str], float]:
        """Microseconds of an iteration for each operation of the compiled loop."""

        def window(x: Array, snapshot: Snapshot, data: Data, draws: Draws, lr: Array) -> Delta:
            return steps.window(
                self._estimator, x, snapshot, data, draws, lr, sees_own=self._sees_own
            )

        arguments = (
            self._view,
            self._snapshot,
            self._data,
            self._stream.take(self._count),
            self._lr,
        )
        compiled = jax.jit(window).lower(*arguments).compile()
        names = dict(_names(str(compiled.as_text())))
        jax.block_until_ready(compiled(*arguments))
        total: collections.Counter[tuple[str, str]] = collections.Counter()
        with tempfile.TemporaryDirectory(prefix="profile-") as folder:
            with jax.profiler.trace(folder):
                for _ in range(repeats):
                    jax.block_until_ready(compiled(*arguments))
            (path,) = Path(folder).rglob("*.xplane.pb")
            for plane in ProfileData.from_file(str(path)).planes:
                for line in plane.lines:
                    for event in line.events:
                        if event.name in names:
                            total[names[event.name]] += event.duration_ns
        return {what: ns / 1e3 / repeats / self._count for what, ns in total.most_common()}

    def _compute(self, x: Array, draws: Draws) -> Delta:
        return jax.block_until_ready(
            steps.window(
                self._estimator,
                x,
                self._snapshot,
                self._data,
                draws,
                self._lr,
                sees_own=self._sees_own,
            )
        )


def _names(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Instruction -> what jax calls it and what it makes; loops are the sums of what they hold."""
    pattern = re.compile(r"%([\w.\-]+) = (\w+\[[\d,]*\])\S* (\w+)\(.*?op_name=\"([^\"]+)\"")
    for line in text.splitlines():
        found = pattern.search(line)
        if found and found[3] not in ("while", "parameter", "get-tuple-element", "bitcast"):
            yield found[1], (found[4].rpartition("/")[2], found[2])


def _lines(level: str, parts: dict[tuple[str, str], float]) -> list[Line]:
    total = sum(parts.values())
    return [Line(level, part, makes, us, us / total) for (part, makes), us in parts.items()]


if __name__ == "__main__":
    launch.start(main, define_flags)
