"""The outer loop, and the paper's claim at a small scale."""

from __future__ import annotations

import itertools
import re

import chex
import numpy as np
import pytest

from asvrg import estimators, objectives, sampling, schedules, training
from asvrg.drivers import simulate, threads
from asvrg.errors import DivergedError, InputError
from asvrg.types import Driver, Snapshot
from tests import problems
from tests.problems import Problem

B, M = 2, 30


def driver_of(problem: Problem, make, *, driver=simulate.driver, inner_steps: int = M, **options):
    spec = sampling.sampler(problems.NUM_SAMPLES, problem.objective.dim, batch_size=B, seed=2)
    estimator = make(problem.objective)
    return driver(estimator, problem.data, spec, inner_steps=inner_steps, **options)


class FakeClock:
    """Time passes only where it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("num_epochs", [0, 1, 3])
def test_sums_and_seconds(num_epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch takes 1 s for the snapshot and 2 s for the loop; all else is not counted."""
    clock, steps = FakeClock(), []

    def taking(seconds: float, result):
        clock.now += seconds
        return result

    def inner_loop(x, snapshot, epoch, lr):
        steps.append((epoch, lr))
        return taking(2.0, (x + lr, f"trace of {epoch}"))

    driver = Driver(
        prepare=lambda x: taking(1.0, Snapshot()),
        inner_loop=inner_loop,
        warm_up=lambda x: taking(100.0, None),
        inner_steps=7,
        grad_evals=11,
    )
    monkeypatch.setattr(training.time, "perf_counter", clock)
    schedule = schedules.polynomial(1.0, 1.0)
    run = training.run(
        driver, training.start(np.zeros(2)), schedule=schedule, num_epochs=num_epochs
    )
    epoch = x = 0
    for epoch, state in enumerate(run, 1):
        clock.now += 1_000.0  # the caller's evaluation
        x += 1 / epoch
        assert state[0] == epoch
        assert state[2:] == (3.0 * epoch, 7 * epoch, 11 * epoch, f"trace of {epoch - 1}", None)
        np.testing.assert_array_equal(state.x, np.full(2, x))
    assert epoch == num_epochs
    assert steps == [(s, schedule(s)) for s in range(num_epochs)]
    assert clock.now == num_epochs * 1_003.0 + (100.0 if num_epochs else 0.0)


def test_going_on_from_a_state_changes_nothing() -> None:
    problem = problems.get("relu")
    driver = driver_of(problem, estimators.svrg)
    schedule = schedules.polynomial(0.1, 0.5)
    begin = training.start(problem.x0)
    whole = list(training.run(driver, begin, schedule=schedule, num_epochs=4))
    half = list(training.run(driver, begin, schedule=schedule, num_epochs=2))
    rest = list(training.run(driver, half[-1], schedule=schedule, num_epochs=4))
    for found, expected in zip([*half, *rest], whole, strict=True):
        chex.assert_trees_all_equal(found._replace(seconds=0.0), expected._replace(seconds=0.0))
    np.testing.assert_array_equal(begin.x, problem.x0)


def test_sgd_then_svrg_goes_on_with_epochs_and_counts() -> None:
    """SGD_SVRG of the paper; SVRG starts from the x, and in the epoch, where SGD stopped."""
    problem = problems.get("relu")
    sgd, svrg = (driver_of(problem, make) for make in (estimators.sgd, estimators.svrg))
    slow, fast = schedules.polynomial(0.1, 1.0), schedules.constant(0.05)
    *_, middle = training.run(sgd, training.start(problem.x0), schedule=slow, num_epochs=2)
    *_, last = training.run(svrg, middle, schedule=fast, num_epochs=5)
    assert last.epoch == 5
    assert last.updates == 5 * M
    assert last.grad_evals == 2 * B * M + 3 * (problems.NUM_SAMPLES + 2 * B * M)
    assert last.seconds > middle.seconds > 0
    x = problem.x0
    for epoch in range(5):
        driver, schedule = (sgd, slow) if epoch < 2 else (svrg, fast)
        x, _ = driver.inner_loop(x, driver.prepare(x), epoch, schedule(epoch))
    chex.assert_trees_all_equal(last.x, x)


@pytest.mark.parametrize("num_epochs", [1, -1, 2.5])
def test_epochs_that_are_done_already_are_refused(num_epochs) -> None:
    state = training.start(np.zeros(1))._replace(epoch=2)
    with pytest.raises(InputError, match="num_epochs must be a whole number of at least 2, got"):
        next(training.run(None, state, schedule=schedules.constant(1.0), num_epochs=num_epochs))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("driver", "options"), [(simulate.driver, {}), (threads.driver, {"num_threads": 2})]
)
def test_a_hopeless_step_is_reported(driver, options: dict) -> None:
    problem = problems.get("least_squares")
    diverging = driver_of(problem, estimators.svrg, driver=driver, **options)
    run = training.run(
        diverging, training.start(problem.x0), schedule=schedules.constant(1e30), num_epochs=3
    )
    # The first step leads to some 1e30, where gradients are finite; soon they are not.
    said = (
        r"v is not a finite number in update (\d+) of epoch 1 with step 1e\+30; the step \(--lr\)"
    )
    with pytest.raises(DivergedError, match=said) as error:
        next(run)
    assert 1 <= int(re.search(said, str(error.value))[1]) < 20


def test_constant_step_svrg_beats_sgd_with_its_best_decayed_step() -> None:
    """The paper's claim, by ||grad f||^2 after equal epochs; for a network, so not convex."""
    problem = problems.get("tanh_deep")

    sgd, svrg = (
        driver_of(problem, make, inner_steps=60) for make in (estimators.sgd, estimators.svrg)
    )

    def reached(driver: Driver, schedule: schedules.Schedule) -> float:
        state = training.start(problem.x0)
        *_, last = training.run(driver, state, schedule=schedule, num_epochs=20)
        found = objectives.evaluate(problem.objective, last.x, problem.data, with_grad=True)
        return found.grad_norm_sq

    steps = itertools.product((1.0, 0.3, 0.1), (0.0, 0.5, 1.0))
    of_sgd = [reached(sgd, schedules.polynomial(*step)) for step in steps]
    assert reached(svrg, schedules.constant(0.1)) < 0.01 * min(of_sgd)


@pytest.mark.parametrize("lr", [1e-50, 1e300])
def test_a_step_that_float32_cannot_hold_is_refused(lr: float) -> None:
    driver = Driver(lambda x: Snapshot(), lambda x, *_: (x, None), lambda x: None, 1, 1)
    run = training.run(
        driver,
        training.start(np.zeros(2, np.float32)),
        schedule=schedules.constant(lr),
        num_epochs=1,
    )
    with pytest.raises(InputError, match="lr must be a finite number above 0 in float32, got"):
        next(run)
