"""The search for steps: which are tried, and which is the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from asvrg.errors import DivergedError
from experiments.methods import Step

# The grid of the paper's section on experiments: alpha and beta of alpha / (1 + s)^beta.
PAPER_LR = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2)
PAPER_LR_DECAY = tuple(i / 10 for i in range(11))
LARGEST_LR = 1e4  # the search goes no further up


class Row(NamedTuple):
    """A line of steps.csv: a step of a method, and what it came to in the end with a seed.

    Losses contain the l2 term, errors lie in [0, 1]. Where x left the finite numbers, losses and
    grad_norm_sq are nan.
    """

    method: str
    lr: float
    lr_decay: float
    seed: int
    epoch: int
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    grad_norm_sq: float


class Best(NamedTuple):
    """A line of best.csv: the step of a method with the smallest training loss.

    `among` says of which steps: of all that were tried, or of those of the grid that the search
    began with. The loss is the mean over the seeds, with the smallest and the largest.
    """

    method: str
    among: str
    lr: float
    lr_decay: float
    train_loss: float
    smallest: float
    largest: float
    test_error: float
    grad_norm_sq: float
    num_tried: int


def best(rows: Sequence[Row], among: str = "all") -> Best:
    """The step with the smallest training loss, on average over the seeds.

    Args:
      rows: of one method, each step with the same seeds.
      among: what to call the steps.

    Returns:
      A Best.

    Raises:
      DivergedError: with each of them a run left the finite numbers.
    """
    by_step: dict[Step, list[Row]] = {}
    for row in rows:
        by_step.setdefault(Step(row.lr, row.lr_decay), []).append(row)
    finite = {
        step: of_step
        for step, of_step in by_step.items()
        if all(math.isfinite(row.train_loss) for row in of_step)
    }
    if not finite:
        raise DivergedError(
            f"{rows[0].method} left the finite numbers with every step that was tried; the search "
            "must begin with smaller ones (--lr)."
        )
    step, found = min(finite.items(), key=lambda item: _mean(r.train_loss for r in item[1]))
    losses = [row.train_loss for row in found]
    return Best(
        found[0].method,
        among,
        step.lr,
        step.decay,
        _mean(losses),
        min(losses),
        max(losses),
        _mean(row.test_error for row in found),
        _mean(row.grad_norm_sq for row in found),
        len(by_step),
    )


def search(
    try_steps: Callable[[list[Step]], list[Row]], lr: Sequence[float], lr_decay: Sequence[float]
) -> list[Row]:
    """Tries a grid of steps, extends it upwards until the best lies inside, and looks beside that.

    Args:
      try_steps: steps -> their rows, one for each seed.
      lr: the alphas to begin with.
      lr_decay: the betas, each of which is tried with every alpha.

    Returns:
      All rows, in the order of the steps.

    Raises:
      DivergedError: with every alpha to begin with a run left the finite numbers.
    """

    def grid(alphas: Sequence[float]) -> list[Row]:
        return try_steps([Step(*pair) for pair in itertools.product(alphas, sorted(lr_decay))])

    rows = grid(sorted(lr))
    top = max(lr)
    while best(rows).lr == top and top < LARGEST_LR:
        top = above(top)
        rows += grid([top])
    tried = sorted({row.lr for row in rows})
    at = tried.index(best(rows).lr)
    beside = {between(*pair) for pair in itertools.pairwise(tried[max(at - 1, 0) : at + 2])}
    if missing := sorted(beside - set(tried)):
        rows += grid(missing)
    return sorted(rows, key=lambda row: (row.lr, row.lr_decay, row.seed))


def above(lr: float) -> float:
    """The next larger number of 1, 2 and 5 times powers of ten.

    >>> above(0.05), above(0.1), above(0.3), above(5)
    (0.1, 0.2, 0.5, 10.0)
    """
    power = math.floor(math.log10(lr) + 1e-9)
    return next(
        number
        for number in (float(f"{digit}e{power}") for digit in (2, 5, 10))
        if number > lr * (1 + 1e-9)
    )


def between(low: float, high: float) -> float:
    """The geometric mean of two numbers, rounded to one digit.

    >>> between(0.5, 1.0), between(0.01, 0.05)
    (0.7, 0.02)
    """
    return float(f"{math.sqrt(low * high):.0e}")


def _mean(values: Iterable[float]) -> float:
    entries = list(values)
    return sum(entries) / len(entries)
