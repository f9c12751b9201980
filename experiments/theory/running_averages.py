"""Running averages of ||grad f||^2 over the updates of simulated runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from asvrg import delays, sampling
from asvrg.drivers import simulate
from asvrg.estimators import Estimator
from asvrg.schedules import Schedule
from asvrg.types import Trace
from experiments.theory.smooth_problems import Smooth

POINTS = 60  # of a curve


def of_runs(
    estimator: Estimator,
    problem: Smooth,
    steps: Sequence[Schedule],
    seeds: Sequence[int],
    *,
    batch_size: int,
    block_size: int | None,
    inner_steps: int,
    num_epochs: int,
    late: Sequence[int],
) -> np.ndarray:
    """(1 / t) sum ||grad f||^2 over the first t of T updates, of R runs side by side.

    Args:
      estimator: gives v_t.
      problem: what is minimised.
      steps: epoch s -> eta, of each run.
      seeds: of the draws of each run.
      batch_size: b.
      block_size: B; None if every update is of all of x.
      inner_steps: m.
      num_epochs: S, so that T = S m.
      late: the delay of every update of each run.

    Returns:
      float64 [R, T]; not finite where x left the finite numbers.
    """
    runs = [
        simulate.Run(
            problem.x0,
            sampling.sampler(
                len(problem.data[1]),
                problem.objective.dim,
                batch_size=batch_size,
                block_size=block_size,
                seed=seed,
            ),
            step,
            _every_update_late(inner_steps, delay),
        )
        for step, seed, delay in zip(steps, seeds, late, strict=True)
    ]
    results = simulate.sweep(
        estimator,
        problem.data,
        runs,
        inner_steps=inner_steps,
        num_epochs=num_epochs,
        max_delay=max(late),
        observe=problem.observe,
    )
    norms = np.concatenate([np.asarray(each.observations, np.float64) for each in results], axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.cumsum(norms, axis=1) / np.arange(1, norms.shape[1] + 1)


def _every_update_late(inner_steps: int, delay: int) -> Callable[[int], Trace]:
    trace = delays.constant(inner_steps, delay)
    return lambda epoch: trace


def points(averages: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The points of a curve.

    Args:
      averages: of R runs, [R, T].

    Returns:
      (t, averages [R] after t updates), with t even on a logarithmic axis, from 1 to T.

    >>> [t for t, _ in points(np.ones((2, 5)))]
    [1, 2, 3, 4, 5]
    """
    last = averages.shape[1]
    chosen = np.unique(np.geomspace(1, last, POINTS).round().astype(int))
    return [(int(t), averages[:, t - 1]) for t in chosen]


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, smallest and largest of some values.

    >>> spread(np.array([1.0, 2.0, 6.0]))
    (3.0, 1.0, 6.0)
    """
    return float(values.mean()), float(values.min()), float(values.max())


def slope(averages: np.ndarray, part: int) -> float:
    """The slope of log(average) over log(updates), by least squares.

    Args:
      averages: running ones, float [T].
      part: over which part of the updates: the last ones from T / part on.

    Returns:
      The slope; -1 for a rate of 1 / T.

    >>> round(slope(3 / np.arange(1, 1_001), 10), 6)
    -1.0
    """
    updates = np.arange(1, len(averages) + 1)[len(averages) // part :]
    return float(np.polyfit(np.log(updates), np.log(averages[len(averages) // part :]), 1)[0])
