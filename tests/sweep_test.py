"""Many runs at once are the runs, each on its own."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from asvrg import delays, estimators, sampling, schedules, training
from asvrg.drivers import simulate
from asvrg.errors import InputError
from asvrg.types import Shard, Trace
from tests import problems
from tests.simulate_test import DATA, DIM, PROBLEM, START, SVRG, M, observer

WINDOWS = Trace(np.arange(M) // 4 % 2, np.maximum(np.arange(M) // 4 - 1, 0) * 4, sees_own=True)

SHARDS = tuple(Shard(np.arange(3 * k, 3 * k + 3, dtype=np.int32), 1.0) for k in range(4))


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
            lambda _: delays.adaptive(delays.round_robin(M, 4), 2)._replace(shards=SHARDS),
        ),
    ]


@pytest.mark.parametrize(
    ("block_size", "segment", "alpha"),
    [(None, 7, None), (2, 7, None), (None, 4_096, None), (2, 4_096, lambda epoch: 1 / (1 + epoch))],
)
def test_every_run_is_what_it_is_alone(
    block_size: int | None, segment: int, alpha, monkeypatch: pytest.MonkeyPatch
) -> None:
    svrg = SVRG._replace(alpha=alpha)
    monkeypatch.setattr(sampling, "SEGMENT", segment)
    together = list(
        simulate.sweep(
            svrg, PROBLEM.data, runs(block_size), inner_steps=M, num_epochs=3, observe=observer
        )
    )
    for i, run in enumerate(runs(block_size)):
        driver = simulate.driver(svrg, DATA, run.sampler, inner_steps=M, trace=run.trace)
        results = training.run(driver, training.start(run.x0), schedule=run.schedule, num_epochs=3)
        for alone, swept in zip(results, together, strict=True):
            np.testing.assert_allclose(swept.x[i], alone.x, rtol=1e-12, atol=1e-14)
        x, epoch = together[1].x[i], 2
        trace = delays.none(M) if run.trace is None else run.trace(epoch)
        snapshot = svrg.prepare(x, DATA, map)
        lr = run.schedule(epoch)
        _, seen = simulate.replay(
            svrg, x, snapshot, DATA, run.sampler, trace, epoch=epoch, lr=lr, observe=observer
        )
        for name, expected in seen.items():
            found = together[epoch].observations[name][i]
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_a_sweep_goes_on_from_a_later_epoch() -> None:
    """With the draws, steps, delays and coefficients of that epoch."""
    svrg = SVRG._replace(alpha=lambda epoch: 1 / (1 + epoch))
    begin = runs(2)
    whole = list(simulate.sweep(svrg, DATA, begin, inner_steps=M, num_epochs=3))
    (first,) = simulate.sweep(svrg, DATA, begin, inner_steps=M, num_epochs=1)
    middle = [run._replace(x0=x) for run, x in zip(begin, first.x, strict=True)]
    rest = list(simulate.sweep(svrg, DATA, middle, inner_steps=M, num_epochs=3, first_epoch=1))
    assert [each.epoch for each in rest] == [2, 3]
    for expected, found in zip(whole[1:], rest, strict=True):
        np.testing.assert_allclose(found.x, expected.x, rtol=1e-12, atol=1e-14)
    again = simulate.sweep(svrg, DATA, middle, inner_steps=M, num_epochs=3, first_epoch=3)
    assert list(again) == []


@pytest.mark.parametrize("first_epoch", [-1, 3, 0.5])
def test_a_first_epoch_after_the_last_is_refused(first_epoch) -> None:
    sentence = f"first_epoch must be a whole number from 0 to 2, got {first_epoch}"
    with pytest.raises(InputError, match=sentence):
        list(
            simulate.sweep(
                SVRG, DATA, runs(2), inner_steps=M, num_epochs=2, first_epoch=first_epoch
            )
        )


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


def a_run(**changed) -> simulate.Run:
    return simulate.Run(START, sampler(0), schedules.constant(0.1))._replace(**changed)


@pytest.mark.parametrize(
    ("few", "sentence"),
    [
        ([], "the number of runs must be a whole number of at least 1"),
        ([a_run(), a_run(sampler=sampler(0, 3))], "samplers that differ in their seeds alone"),
        ([a_run(), a_run(x0=START.astype("float32"))], "x0 of one dtype, got float64 and float32"),
        ([a_run(schedule=lambda _: float("nan"))], "lr must be a finite number above 0"),
        ([a_run(trace=lambda _: delays.none(M - 1))], rf"and read_version \[{M}\], got shapes"),
        ([a_run(trace=lambda _: delays.uniform(M, 3, seed=0, num_groups=2))], "read_version"),
        ([a_run(trace=lambda _: delays.constant(M, 4))], "no delay above max_delay = 3, got 4"),
    ],
)
def test_runs_that_do_not_fit_are_refused(few: list, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        list(simulate.sweep(SVRG, PROBLEM.data, few, inner_steps=M, num_epochs=1, max_delay=3))
