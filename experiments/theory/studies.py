"""The studies behind the figures of `theorems`: the simulator's runs held against the theory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asvrg import estimators, schedules, theory
from asvrg.errors import InputError
from asvrg.estimators import Estimator
from asvrg.schedules import Schedule
from asvrg.theory import Choice, Setting
from experiments.theory import running_averages
from experiments.theory.smooth_problems import Smooth

CAUTIOUS = (0.05, 1, 2 / 3)  # u0, b and alpha with which (13) and (20) admit delays
BOLD = (0.4, 1, 1 / 3)  # a longer step, also that of the rates, and a shorter inner loop
RATE_STEPS = 20  # m of the rates, longer than Theorem 4's and within Theorem 3
SHARE = 8  # d / B where blocks are updated
SGD_FACTORS = (4.0, 16.0)  # of SGD's decaying step, the best of which is kept
LR_FACTORS = (1, 10, 30, 100)  # of the theory's step, in the study of delays
DELAYS = (0, 1, 3, 10, 20, 30, 50, 100, 200, 300, 1_000)
DELAY_EPOCHS = 3


class BoundRow(NamedTuple):
    """A point of the curve of one case of Theorem 2 or 4.

    `mean`, `smallest` and `largest` are over seeds, of the running average of ||grad f(x_t)||^2
    over all `updates` so far; `bound` is the right-hand side of (12) or (19). Delays are counted in
    updates.
    """

    problem: str
    theorem: int
    u0: float
    batch_size: int
    alpha: float
    blocks: float
    smoothness: float
    lr: float
    inner_steps: int
    delay: int
    admissible_delay: int
    tolerated_delay: int
    updates: int
    mean: float
    smallest: float
    largest: float
    bound: float


class RateRow(NamedTuple):
    """A point of the curve of one method; `mean` to `bound` as in BoundRow, no bound for SGD."""

    problem: str
    method: str
    lr: float
    lr_decay: float
    delay: int
    updates: int
    grad_evals: int
    mean: float
    smallest: float
    largest: float
    bound: float


class SlopeRow(NamedTuple):
    """Slopes of log(running average) over log(updates), of the mean over seeds."""

    problem: str
    method: str
    last_decade: float
    last_half: float


class DelayRow(NamedTuple):
    """What a delay does to the average of ||grad f||^2 over all updates of some epochs.

    `ratio` is to that without delay, inf where x left the finite numbers; `holds`: whether
    Theorem 3 does for this step, inner length and delay.
    """

    problem: str
    lr_factor: int
    lr: float
    inner_steps: int
    delay: int
    holds: bool
    updates: int
    mean: float
    ratio: float


def bounds(problem: Smooth, seeds: Sequence[int], num_updates: int) -> list[BoundRow]:
    """The left-hand sides of (12) and (19) and their bounds, for the theory's own eta, m, Delta.

    Args:
      problem: with its L.
      seeds: of the draws, one run each.
      num_updates: T, at least; whole epochs are run.

    Returns:
      Rows, those of a case together and in the order of their updates.

    Raises:
      InputError: there are too few samples for an inner loop of a single update.
    """
    n = _num_samples(problem)
    estimator = estimators.svrg(problem.objective)
    found = []
    for (u0, batch_size, alpha), share in itertools.product((CAUTIOUS, BOLD), (1, SHARE)):
        block_size = None if share == 1 else max(1, problem.objective.dim // share)
        blocks = problem.objective.dim / (block_size or problem.objective.dim)
        choice = Choice(u0, batch_size, n, alpha, blocks)
        setting = _setting(choice, problem)
        m = int(setting.inner_steps)
        admissible = int(theory.admissible_delay(choice))
        tolerated = int(theory.tolerated_delay(setting))
        # What the paper's own condition admits, else what is proven; but at most half of what fits:
        # with a delay of m - 1 every update reads the snapshot, and no sample matters.
        delay = min(admissible if admissible > 0 else tolerated, max(1, (m - 1) // 2))
        averages = running_averages.of_runs(
            estimator,
            problem,
            [schedules.constant(float(setting.lr))] * len(seeds),
            seeds,
            batch_size=batch_size,
            block_size=block_size,
            inner_steps=m,
            num_epochs=math.ceil(num_updates / m),
            late=[delay] * len(seeds),
        )
        used = setting._replace(max_delay=delay)
        found += [
            BoundRow(
                problem.name,
                4 if share == 1 else 2,
                u0,
                batch_size,
                alpha,
                blocks,
                problem.smoothness,
                float(setting.lr),
                m,
                delay,
                admissible,
                tolerated,
                updates,
                *running_averages.spread(values),
                float(theory.bound(used, problem.gap, updates)),
            )
            for updates, values in running_averages.points(averages)
        ]
    return found


def rates(
    problem: Smooth, seeds: Sequence[int], num_updates: int
) -> tuple[list[RateRow], list[SlopeRow]]:
    """How fast the running average of ||grad f||^2 falls, for SVRG and for SGD.

    SVRG has the eta of Theorem 4, and an m and a delay with which Theorem 3 holds. SGD runs without
    delay: with the same eta, constant, and, decaying like 1 / sqrt(1 + s), with the best of some
    multiples of it, which has the smallest average in the end.

    Args:
      problem: with its L.
      seeds: of the draws, one run each.
      num_updates: T, at least; whole epochs are run.

    Returns:
      Rows of the curves, and the slopes.

    Raises:
      InputError: there are too few samples for an inner loop of a single update.
    """
    n = _num_samples(problem)
    u0, batch_size, alpha = BOLD
    m = RATE_STEPS
    setting = _setting(Choice(u0, batch_size, n, alpha), problem)._replace(inner_steps=m)
    lr, late = float(setting.lr), min(m // 4, int(theory.tolerated_delay(setting)))
    if late < 0:
        raise InputError(
            f"--num_train must be so many samples that Theorem 3 holds for m = {m}, got {n}."
        )

    def curves(estimator: Estimator, steps: Sequence[Schedule], delay: int) -> list[np.ndarray]:
        """Running averages [R, T] over the seeds, for each of the steps."""
        pairs = list(itertools.product(steps, seeds))
        averages = running_averages.of_runs(
            estimator,
            problem,
            [step for step, _ in pairs],
            [seed for _, seed in pairs],
            batch_size=batch_size,
            block_size=None,
            inner_steps=m,
            num_epochs=math.ceil(num_updates / m),
            late=[delay] * len(pairs),
        )
        return np.split(averages, len(steps))

    svrg, sgd = estimators.svrg(problem.objective), estimators.sgd(problem.objective)
    decaying = [schedules.polynomial(factor * lr, 0.5) for factor in SGD_FACTORS]
    (of_svrg,) = curves(svrg, [schedules.constant(lr)], late)
    constant, *others = curves(sgd, [schedules.constant(lr), *decaying], 0)
    best = int(np.nanargmin([np.mean(each[:, -1]) for each in others]))
    rows, slopes = [], []
    for name, rate, decay, delay, averages in (
        ("svrg", lr, 0.0, late, of_svrg),
        ("sgd, constant step", lr, 0.0, 0, constant),
        ("sgd, decaying step", SGD_FACTORS[best] * lr, 0.5, 0, others[best]),
    ):
        estimator = svrg if name == "svrg" else sgd
        per_epoch = estimator.grad_evals(n, batch_size, m)
        for updates, values in running_averages.points(averages):
            evals = round(updates / m * per_epoch)
            limit = math.nan
            if estimator is svrg:
                used = setting._replace(max_delay=delay)
                limit = float(theory.bound(used, problem.gap, updates))
            rows.append(
                RateRow(
                    problem.name,
                    name,
                    rate,
                    decay,
                    delay,
                    updates,
                    evals,
                    *running_averages.spread(values),
                    limit,
                )
            )
        mean = averages.mean(axis=0)
        slopes.append(
            SlopeRow(
                problem.name,
                name,
                running_averages.slope(mean, 10),
                running_averages.slope(mean, 2),
            )
        )
    return rows, slopes


def delay_effects(problem: Smooth, seeds: Sequence[int]) -> list[DelayRow]:
    """What delays do to the average of ||grad f||^2, for the theory's step and for larger ones.

    All have the m of Theorem 4 for the theory's step. With it, every delay that fits into the inner
    loop is within Theorem 3 (with the longest, an epoch is a step m eta of gradient descent). With
    larger ones m is too long for Theorem 4, and `holds` says how far Theorem 3 goes.

    Args:
      problem: with its L.
      seeds: of the draws, one run each.

    Returns:
      Rows, those of a step together and in the order of their delays.

    Raises:
      InputError: there are too few samples for an inner loop of a single update.
    """
    u0, batch_size, alpha = CAUTIOUS
    setting = _setting(Choice(u0, batch_size, _num_samples(problem), alpha), problem)
    m = int(setting.inner_steps)
    tried = sorted({min(delay, m - 1) for delay in DELAYS})
    pairs = [(delay, seed) for delay in tried for seed in seeds]
    estimator = estimators.svrg(problem.objective)
    rows = []
    for factor in LR_FACTORS:
        averages = running_averages.of_runs(
            estimator,
            problem,
            [schedules.constant(factor * float(setting.lr))] * len(pairs),
            [seed for _, seed in pairs],
            batch_size=batch_size,
            block_size=None,
            inner_steps=m,
            num_epochs=DELAY_EPOCHS,
            late=[delay for delay, _ in pairs],
        )
        means = averages[:, -1].reshape(len(tried), len(seeds)).mean(axis=1)
        for delay, mean in zip(tried, means, strict=True):
            used = setting._replace(lr=factor * setting.lr, max_delay=delay)
            rows.append(
                DelayRow(
                    problem.name,
                    factor,
                    float(used.lr),
                    m,
                    delay,
                    bool(theory.holds(used)),
                    DELAY_EPOCHS * m,
                    float(mean),
                    float(mean / means[0]) if np.isfinite(mean) else math.inf,
                )
            )
    return rows


def _num_samples(problem: Smooth) -> int:
    return len(problem.data[1])


def _setting(choice: Choice, problem: Smooth) -> Setting:
    setting = theory.theorem_setting(choice, problem.smoothness)
    if setting.inner_steps < 1:
        raise InputError(
            "--num_train must be so many samples that m = n^alpha / (6 u0 b) is at least 1 with "
            f"u0 = {choice.u0}, b = {choice.batch_size} and alpha = {choice.alpha:.3f}, got "
            f"{choice.num_samples}."
        )
    return setting
