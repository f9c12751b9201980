"""Many runs at once are the runs, each on its own."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from asvrg import delays, estimators, sampling, schedules, training
from asvrg.drivers import simulate
from asvrg.drivers.simulate import read_order
from asvrg.errors import InputError
from asvrg.types import Trace
from tests import problems
from tests.simulate_test import DATA, DIM, PROBLEM, START, SVRG, M, observer

WINDOWS = Trace(np.arange(M) // 4 % 2, np.maximum(np.arange(M) // 4 - 1, 0) * 4, sees_own=True)


def sampler(seed: int, block_size: int | None = 2) -> sampling.Sampler:
    n = problems.NUM_SAMPLES
    return sampling.sampler(n, DIM, batch_size=3, block_size=block_size, seed=seed)


def runs(block_size: int | None) -> list[simulate.Run]:
    """Other seeds, steps, starting points and delays; workers with copies, and scaled steps."""
    return [
        simulate.Run(START, sampler(0, block_size), schedules.constant(0.1)),
        simulate.Run(
            PROBLEM.x0,
            sampler(1, block_size),
            schedules.polynomial(0.2, 0.5),
            lambda epoch: delays.uniform(M, 5, seed=epoch),
        ),
        simulate.Run(START, sampler(2, block_size), schedules.constant(0.05), lambda _: WINDOWS),
        simulate.Run(
            START,
            sampler(0, block_size),
            schedules.constant(0.1),
            lambda _: delays.adaptive(delays.round_robin(M, 4), 2),
        ),
    ]


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("segment", [7, 4_096])
def test_every_run_is_what_it_is_alone(
    block_size: int | None, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_order, "SEGMENT", segment)
    together = list(
        simulate.sweep(
            SVRG, PROBLEM.data, runs(block_size), inner_steps=M, num_epochs=3, observe=observer
        )
    )
    for i, run in enumerate(runs(block_size)):
        driver = simulate.driver(SVRG, DATA, run.sampler, inner_steps=M, trace=run.trace)
        results = training.run(driver, training.start(run.x0), schedule=run.schedule, num_epochs=3)
        for alone, swept in zip(results, together, strict=True):
            np.testing.assert_allclose(swept.x[i], alone.x, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(together[0].observations["x"][i, 0], run.x0)
        np.testing.assert_array_equal(together[2].observations["x"][i, 0], together[1].x[i])


def test_later_epochs_and_other_sweeps_do_not_compile(caplog: pytest.LogCaptureFixture) -> None:
    estimator = estimators.sgd(PROBLEM.objective)
    options = {"inner_steps": M, "max_delay": 7}

    def delayed(delay: int) -> list[simulate.Run]:
        trace = delays.constant(M, delay)
        return [
            simulate.Run(START, sampler(seed), schedules.constant(0.1), lambda _: trace)
            for seed in range(3)
        ]

    with jax.log_compiles():
        list(simulate.sweep(estimator, DATA, delayed(2), num_epochs=1, **options))
        assert "Compiling" in caplog.text
        caplog.clear()
        list(simulate.sweep(estimator, DATA, delayed(7), num_epochs=2, **options))
    assert "Compiling" not in caplog.text


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ([], "the number of runs must be a whole number of at least 1"),
        ([(sampler(0), None), (sampler(0, 3), None)], "samplers that differ in their seeds alone"),
        ([(sampler(0), delays.none(M - 1))], rf"worker and read_version \[{M}\], got shapes"),
        ([(sampler(0), delays.uniform(M, 3, seed=0, num_groups=2))], "read_version"),
    ],
)
def test_runs_that_do_not_fit_are_refused(others: list, sentence: str) -> None:
    few = [
        simulate.Run(
            START, spec, schedules.constant(0.1), None if trace is None else lambda _, t=trace: t
        )
        for spec, trace in others
    ]
    with pytest.raises(InputError, match=sentence):
        list(simulate.sweep(SVRG, PROBLEM.data, few, inner_steps=M, num_epochs=1))
