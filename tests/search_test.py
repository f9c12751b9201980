"""The search for steps, of losses that are known functions of the step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest

from asvrg.errors import DivergedError
from experiments.methods import Step
from experiments.paper import search
from experiments.paper.search import Row

GRID = sorted(search.PAPER_LR)


def row(step: Step, seed: int, loss: float) -> Row:
    return Row("svrg", *step, seed, 7, loss, 0.1, loss + 1.0, seed / 10, loss**2)


def valley(lr: float) -> Callable[[Step, int], float]:
    """A loss that is smallest at a step, and nowhere else flat."""
    return lambda step, seed: 1.0 + abs(math.log10(step.lr / lr)) + step.decay + 0.01 * seed


class Trials:
    """Tries steps, and remembers them."""

    def __init__(self, loss: Callable[[Step, int], float], seeds: tuple[int, ...] = (0, 1)) -> None:
        self.steps: list[list[Step]] = []
        self._loss = loss
        self._seeds = seeds

    def __call__(self, steps: list[Step]) -> list[Row]:
        self.steps.append(steps)
        return [row(step, seed, self._loss(step, seed)) for step in steps for seed in self._seeds]

    def lr(self) -> list[list[float]]:
        """The alphas of every call."""
        return [[step.lr for step in steps] for steps in self.steps]


def test_the_grid_is_the_papers():
    assert GRID == [1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2]
    assert search.PAPER_LR_DECAY == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


@pytest.mark.parametrize(
    ("optimum", "further", "beside", "best"),
    [
        # Inside of the grid: it is not extended.
        (1e-3, [], [7e-4, 2e-3], 1e-3),
        (1.9e-3, [], [7e-4, 2e-3], 2e-3),
        # At its top, which says nothing of what is above.
        (5e-2, [0.1], [0.02, 0.07], 5e-2),
        # Above it; what rounds to a step that was tried is not tried again.
        (3.0, [0.1, 0.2, 0.5, 1.0, 2.0, 5.0], [3.0], 3.0),
        (0.75, [0.1, 0.2, 0.5, 1.0, 2.0], [0.7], 0.7),
        # At its bottom, where it looks above alone.
        (1e-7, [], [2e-5], 1e-5),
    ],
)
def test_the_grid_is_extended_until_the_best_lies_inside(optimum, further, beside, best):
    trials = Trials(valley(optimum))
    # In whichever order they are given.
    rows = search.search(trials, [*GRID[3:], *GRID[:3]], [0.0])
    assert trials.lr() == [GRID, *([lr] for lr in further), beside]
    assert search.best(rows).lr == best
    tried = [*GRID, *further, *beside]
    assert [(r.lr, r.seed) for r in rows] == list(itertools.product(sorted(tried), (0, 1)))


def test_what_diverges_is_an_end_too():
    def loss(step: Step, seed: int) -> float:
        if step.lr > 0.15:
            return math.nan if seed else math.inf
        return 1.0 - step.lr

    trials = Trials(loss)
    assert search.best(search.search(trials, GRID, [0.0])).lr == 0.1
    assert trials.lr()[1:] == [[0.1], [0.2], [0.07]]


def test_a_loss_that_falls_for_ever_ends_the_search():
    trials = Trials(lambda step, seed: 1 / step.lr)
    rows = search.search(trials, [1e3, 2e3], [0.0])
    assert trials.lr() == [[1e3, 2e3], [5e3], [1e4], [7e3]]
    assert search.best(rows).lr == search.LARGEST_LR
    # A grid that begins there already is not extended, but looked at.
    trials = Trials(lambda step, seed: 1 / step.lr)
    search.search(trials, [1e4, 1e5], [0.0])
    assert trials.lr() == [[1e4, 1e5], [3e4]]


def test_every_alpha_is_tried_with_every_beta():
    """The best beta of an alpha counts, not that of beta = 0."""

    def loss(step: Step, seed: int) -> float:
        return abs(math.log(step.lr / (1 + step.decay) ** 3)) + 0.1 * seed

    trials = Trials(loss)
    decays = [1.0, 0.0, 0.5]
    rows = search.search(trials, [0.5, 1.0], decays)
    tried = {step.lr for steps in trials.steps for step in steps}
    every = [*itertools.product(sorted(tried), sorted(decays), (0, 1))]
    assert [(r.lr, r.lr_decay, r.seed) for r in rows] == every
    found = search.best(rows)
    assert (found.lr, found.lr_decay) == (1.0, 0.0)
    # With both smaller betas left out, (1 + 1)^3 = 8 is what a step makes up for.
    found = search.best(search.search(Trials(loss), [0.5, 1.0], [1.0]))
    assert (found.lr, found.lr_decay) == (7.0, 1.0)


def test_the_best_step_is_best_on_average():
    ends = {
        Step(0.1, 0.0): (0.5, 0.6),
        Step(0.2, 0.5): (0.2, 0.7),
        Step(0.4, 0.0): (0.0, 1.0),  # the best of all with one seed
    }
    rows = [row(step, seed, loss) for step, of in ends.items() for seed, loss in enumerate(of)]
    found = search.best(rows, "some")
    assert (found.method, found.among) == ("svrg", "some")
    assert (found.lr, found.lr_decay, found.num_tried) == (0.2, 0.5, 3)
    assert (found.train_loss, found.smallest, found.largest) == pytest.approx((0.45, 0.2, 0.7))
    assert found.test_error == pytest.approx((0.0 + 0.1) / 2)
    assert found.grad_norm_sq == pytest.approx((0.2**2 + 0.7**2) / 2)


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_a_step_with_a_lost_seed_is_never_the_best(lost):
    safe = [row(Step(0.1, 0.0), seed, 5.0) for seed in (0, 1)]
    for losses in ((lost, 0.1), (0.1, lost)):
        unsafe = [row(Step(0.2, 0.0), seed, loss) for seed, loss in enumerate(losses)]
        for rows in (safe + unsafe, unsafe + safe):
            assert search.best(rows).lr == 0.1
            assert search.best(rows).num_tried == 2
        with pytest.raises(DivergedError, match=r"svrg left the finite numbers .* \(--lr\)\."):
            search.best(unsafe)


def test_a_search_that_begins_too_high_says_so():
    trials = Trials(lambda step, seed: math.nan)
    with pytest.raises(DivergedError, match="must begin with smaller ones"):
        search.search(trials, [1.0, 2.0], [0.0, 1.0])
    assert len(trials.steps) == 1


def test_steps_above_go_through_1_2_and_5_times_powers_of_ten():
    series = [float(f"{digit}e{power}") for power in range(-7, 5) for digit in (1, 2, 5)]
    assert [search.above(lr) for lr in series[:-1]] == series[1:]
    # From what lies between two of them, the next one; rounding makes no step of its own.
    for low, high in itertools.pairwise(series):
        assert search.above(math.sqrt(low * high)) == high
        assert search.above(high * (1 - 1e-12)) > high
        assert search.above(high * (1 - 1e-3)) == high


def test_steps_between_lie_between():
    series = [float(f"{digit}e{power}") for power in range(-7, 5) for digit in (1, 2, 5)]
    for low, high in itertools.pairwise(series):
        assert low <= search.between(low, high) < high
        assert float(f"{search.between(low, high):.0e}") == search.between(low, high)
    assert [search.between(1.0, 5.0), search.between(5e-3, 1e-2)] == [2.0, 7e-3]
