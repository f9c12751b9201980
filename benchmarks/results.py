"""Tables out of what the contestants measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.contestants import C_FLOOR, TORCH_SVRG, Contestant
from benchmarks.measure import TARGETS, Point, Result

Round = Mapping[str, Result]  # by the contestant's name
Three = tuple[float | None, float | None, float | None]  # for the three targets


class Line(NamedTuple):
    """A contestant's medians over the rounds; None where there is nothing to say.

    Attributes:
      contestant: its name.
      workers: threads or processes.
      lr: eta.
      us_per_update: microseconds.
      us_min: of all rounds.
      us_max: of all rounds.
      updates_per_s: updates that land in a second.
      times_c: time of an update over that of the C code.
      times_as_fast_as_torch_svrg: time of PyTorch's SVRG with one process over the contestant's.
      seconds_to_0_5: of optimisation until the loss was 0.5 or less at an evaluation; and so on.
        None unless most rounds came there.
      updates_to_0_5: and so on.
      grad_evals_to_0_5: component gradients, and so on.
      peak_mb: most resident memory; of several processes the sum.
      imports_mb: resident memory before the data are loaded.
      state_mb: data, parameters and caches.
      gb_per_s: of the large copy.
      rounds: that have results.
    """

    contestant: str
    workers: int
    lr: float | None
    us_per_update: float | None
    us_min: float | None
    us_max: float | None
    updates_per_s: float | None
    times_c: float | None
    times_as_fast_as_torch_svrg: float | None
    seconds_to_0_5: float | None
    seconds_to_0_3: float | None
    seconds_to_0_2: float | None
    updates_to_0_5: float | None
    updates_to_0_3: float | None
    updates_to_0_2: float | None
    grad_evals_to_0_5: float | None
    grad_evals_to_0_3: float | None
    grad_evals_to_0_2: float | None
    peak_mb: float
    imports_mb: float
    state_mb: float
    gb_per_s: float | None
    rounds: int


class RoundLine(NamedTuple):
    """What a contestant measured in one round; the load is the machine's average of a minute."""

    round: int
    contestant: str
    us_per_update: float | None
    seconds_to_0_5: float | None
    seconds_to_0_3: float | None
    seconds_to_0_2: float | None
    final_loss: float | None
    peak_mb: float
    gb_per_s: float | None
    load: float


class CurveLine(NamedTuple):
    """A point of a contestant's way down, in one round."""

    round: int
    contestant: str
    seconds: float
    updates: int
    grad_evals: int
    loss: float


def reached(points: Sequence[Point], target: float) -> Point | None:
    """The first point of a curve whose loss is at most the target; None without one.

    >>> reached([Point(0, 0, 0, 2.3), Point(1, 5, 9, 0.4), Point(2, 10, 18, 0.45)], 0.5).seconds
    1
    """
    return next((point for point in points if point.loss <= target), None)


def seconds_to(line: Line) -> Three:
    """Seconds to each of the targets, in their order."""
    return line.seconds_to_0_5, line.seconds_to_0_3, line.seconds_to_0_2


def check_start(result: Result, loss: float) -> str | None:
    """What is wrong with a curve that does not start at f(x^0); None if it does."""
    if result.curve and not math.isclose(result.curve[0].loss, loss, rel_tol=1e-4):
        return (
            f"minimised another function: its loss at x^0 is {result.curve[0].loss:.6g}, not "
            f"{loss:.6g}"
        )
    return None


def summarise(contestants: Sequence[Contestant], rounds: Sequence[Round]) -> list[Line]:
    """A Line for every contestant that has results."""
    return [
        _line(contestant, rounds)
        for contestant in contestants
        if any(contestant.name in each for each in rounds)
    ]


def round_lines(number: int, results: Round, load: Mapping[str, float]) -> list[RoundLine]:
    """A round's lines, in the order of the results."""
    return [
        RoundLine(
            number,
            name,
            result.us_per_update,
            *_to_targets(result.curve, lambda point: point.seconds),
            result.curve[-1].loss if result.curve else None,
            result.peak_mb,
            result.gb_per_s,
            load[name],
        )
        for name, result in results.items()
    ]


def curve_lines(number: int, results: Round) -> list[CurveLine]:
    """All points of a round."""
    return [
        CurveLine(number, name, *point)
        for name, result in results.items()
        for point in result.curve
    ]


def _line(contestant: Contestant, rounds: Sequence[Round]) -> Line:
    name = contestant.name
    own = [each[name] for each in rounds if name in each]
    us = [result.us_per_update for result in own if result.us_per_update is not None]
    us_per_update = statistics.median(us) if us else None
    curves = [result.curve for result in own if result.curve]
    gb_per_s = [result.gb_per_s for result in own if result.gb_per_s is not None]
    return Line(
        name,
        contestant.workers,
        contestant.lr or None,
        us_per_update,
        min(us, default=None),
        max(us, default=None),
        1e6 / us_per_update if us_per_update else None,
        _ratio(rounds, name, C_FLOOR),
        _ratio(rounds, TORCH_SVRG, name),
        *_medians(curves, lambda point: point.seconds),
        *_medians(curves, lambda point: point.updates),
        *_medians(curves, lambda point: point.grad_evals),
        max(result.peak_mb for result in own),
        statistics.median(result.imports_mb for result in own),
        own[0].state_mb,
        statistics.median(gb_per_s) if gb_per_s else None,
        len(own),
    )


def _ratio(rounds: Sequence[Round], one: str, other: str) -> float | None:
    """Median of the ratios of their times within a round."""
    pairs = [
        (each[one].us_per_update, each[other].us_per_update)
        for each in rounds
        if one in each and other in each
    ]
    ratios = [a / b for a, b in pairs if a is not None and b is not None]
    return statistics.median(ratios) if ratios else None


def _to_targets(points: Sequence[Point], what: Callable[[Point], float]) -> Three:
    """Something of the points where a curve reaches the targets."""
    one, two, three = (reached(points, target) for target in TARGETS)
    return one and what(one), two and what(two), three and what(three)


def _medians(curves: Sequence[Sequence[Point]], what: Callable[[Point], float]) -> Three:
    """The medians over the rounds, where what was not reached takes for ever and is no median."""
    if not curves:
        return None, None, None
    of_rounds = [_to_targets(points, what) for points in curves]
    one, two, three = (_median(values) for values in zip(*of_rounds, strict=True))
    return one, two, three


def _median(values: Sequence[float | None]) -> float | None:
    median = statistics.median_high(math.inf if value is None else value for value in values)
    return median if math.isfinite(median) else None
