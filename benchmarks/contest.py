"""Contestants that run in turn, and the table of their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tqdm import tqdm


class Line(NamedTuple):
    """The times of a contestant over all rounds, in microseconds of one of its iterations.

    `speedup` is the median of the ratios to the first contestant, each within a round.
    """

    contestant: str
    median_us: float
    min_us: float
    max_us: float
    speedup: float


class Contestant(NamedTuple):
    """Something to time: a call without arguments, and how many iterations it makes."""

    run: Callable[[], object]
    iterations: int


def contest(contestants: Mapping[str, Contestant], repeats: int) -> list[Line]:
    """Runs all contestants `repeats` times, one after the other in every round.

    Args:
      contestants: by name; the first one is the measure for the others. What each must compile it
        should have compiled.
      repeats: rounds.

    Returns:
      A Line for each, which was printed as well.
    """
    rounds = [
        {name: _microseconds(each) for name, each in contestants.items()}
        for _ in tqdm(range(repeats), unit="round", mininterval=5.0)
    ]
    first = next(iter(contestants))
    lines = []
    for name in contestants:
        times = [each[name] for each in rounds]
        speedup = statistics.median(each[first] / each[name] for each in rounds)
        line = Line(name, statistics.median(times), min(times), max(times), speedup)
        print(f"{name:<46} {line.median_us:7.1f} us ", end="")
        print(f"({line.min_us:.1f} to {line.max_us:.1f}), x {speedup:.2f}")
        lines.append(line)
    return lines


def _microseconds(contestant: Contestant) -> float:
    begin = time.perf_counter()
    contestant.run()
    return (time.perf_counter() - begin) / contestant.iterations * 1e6
