"""Epochs against workers that are played here: whoever dies when, m updates land."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from asvrg import sampling
from asvrg.delays import adaptive_scale
from asvrg.drivers import mpi
from asvrg.drivers.mpi.protocol import Plan, RankError, make_plan
from asvrg.drivers.mpi.server import Server
from asvrg.estimators import Estimator
from asvrg.types import Driver, Snapshot, Trace
from tests.fake_star import Star, gradient

pytestmark = pytest.mark.timeout(60)

ZEROS = np.zeros(3)


def plan_of(num_workers: int, **options) -> Plan:
    """Some 15 units of different sizes."""
    spec = sampling.sampler(29, 3, batch_size=2, **options)
    return make_plan(spec, np.dtype("float64"), num_workers, shard_sizes=None, chunk_size=2)


def estimator(*, sums: bool) -> Estimator:
    """Never called here; the server asks whether it has a full gradient."""
    return Estimator(
        prepare=lambda x, data, map_fn: Snapshot(),
        estimate=lambda x_hat, snapshot, data, draw: x_hat,
        grad_evals=lambda n, b, m: 0,
        grad_and_cache=(lambda x, samples: (x, ())) if sums else None,
    )


def begin(server: Server, *, sums: bool = True, **options) -> Driver:
    """The driver of a server whose workers have compiled."""
    server.greet()
    seconds = dict.fromkeys(("receive", "update", "send"), 0.0)
    serving = mpi.Serving(mpi.Job(0, server.plan.num_workers, True, None), server, None, seconds)
    driver = mpi.driver(serving, estimator(sums=sums), **options)
    driver.warm_up(ZEROS)
    return driver


def run_epoch(star: Star, server: Server, driver: Driver, epoch: int, *, sums: bool) -> Trace:
    """An epoch, with what must hold after every one."""
    plan, m = server.plan, driver.inner_steps
    snapshot = driver.prepare(ZEROS)
    if sums:
        expected = gradient(range(len(plan.units))) / plan.sampler.num_samples
        np.testing.assert_array_equal(snapshot.full_grad, expected)
    star.landed.clear()
    x, trace = driver.inner_loop(ZEROS, snapshot, epoch, 1.0)

    assert x[0] == -m
    # The trace tells of every update what the worker knew of it.
    assert [*zip(trace.worker, trace.read_version, strict=True)] == star.landed
    assert np.all(trace.read_version <= np.arange(m))
    live = {k: star.workers[k] for k in server.books if not star.workers[k].dead}
    for k, worker in live.items():
        assert (worker.left, len(worker.vectors)) == (0, 0), f"rank {k} waits for a WORK"
        assert worker.units == server.books[k].units
        if sums:
            np.testing.assert_array_equal(worker.full_grad, snapshot.full_grad)
    owned = [unit for books in server.books.values() for unit in books.units]
    assert sorted(owned) == list(range(len(plan.units)))
    used = set(trace.worker.tolist())
    for worker in star.workers.values():
        for (of_epoch, stream), shard in worker.shards.items():
            if of_epoch == epoch and stream in used:
                np.testing.assert_array_equal(trace.shards[stream].samples, shard.samples)
                assert trace.shards[stream].weight == shard.weight
                used.remove(stream)
    assert not used, "streams that nobody, or more than one, has drawn from"
    return trace


def run_job(star: Star, server: Server, **options) -> Trace:
    """All of a job of one epoch."""
    return run_epoch(star, server, begin(server, **options), 0, sums=True)


def delays(trace: Trace) -> np.ndarray:
    return np.arange(len(trace.worker)) - trace.read_version


def some_deaths(rng: random.Random, num_workers: int, horizon: int) -> dict[int, int]:
    """Some of the workers by the moment when they die; one survives. Often in quick succession."""
    moment, deaths = 0, {}
    ranks = rng.sample(range(1, 1 + num_workers), rng.randrange(num_workers))
    for rank in ranks:
        soon = moment and rng.random() < 0.5
        moment = moment + rng.randint(1, 12) if soon else 1 + int(horizon * rng.random() ** 2)
        deaths[moment] = rank
    return deaths


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("max_delay", [None, 0, 1, 3])
@pytest.mark.parametrize("overlap", [False, True])
def test_whoever_dies_when_every_epoch_is_whole(overlap, max_delay, sums) -> None:
    for num_workers, seed in itertools.product(range(1, 6), range(12)):
        rng = random.Random(f"{num_workers} {seed}")
        plan = plan_of(num_workers)
        m = rng.choice([1, 7, 40, 90])
        star = Star(
            plan,
            seed,
            sums=sums,
            deaths=some_deaths(rng, num_workers, 18 * num_workers + 6 * m),
        )
        options = {"inner_steps": m, "overlap": overlap, "max_delay": max_delay}
        server = Server(star, plan)
        driver = begin(server, sums=sums, **options)
        for epoch in range(2):
            trace = run_epoch(star, server, driver, epoch, sums=sums)
            assert star.most_out <= 1 + overlap
            if max_delay is not None:
                assert delays(trace).max() <= max_delay
        assert server.stop()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_worker_that_waits_at_the_gate_goes_on_when_the_others_die(overlap) -> None:
    """Its v has arrived, and was kept back for the x_hat that died: now it may land."""
    for seed, moment in itertools.product(range(3), range(12, 60)):
        plan = plan_of(2)
        star = Star(plan, seed, deaths={moment: 1})
        options = {"inner_steps": 20, "overlap": overlap, "max_delay": 1}
        server = Server(star, plan)
        driver = begin(server, **options)
        trace = run_epoch(star, server, driver, 0, sums=True)
        assert delays(trace).max() <= 1


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_overlap_costs_delay_and_nothing_else(num_workers) -> None:
    means = []
    for overlap in (False, True):
        plan = plan_of(num_workers)
        star = Star(plan, 1)
        server = Server(star, plan)
        trace = run_job(star, server, inner_steps=300, overlap=overlap)
        means.append(delays(trace).mean())
        assert np.bincount(trace.worker, minlength=num_workers).min() > 300 / num_workers / 2
        # Without deaths the streams are the workers', and their shards divide the samples.
        assert set(trace.worker.tolist()) == set(range(num_workers))
        samples = np.concatenate([shard.samples for shard in trace.shards])
        np.testing.assert_array_equal(samples, np.arange(plan.sampler.num_samples))
        assert sum(shard.weight for shard in trace.shards) == pytest.approx(num_workers)
    # One or two x_hat are under way for each worker, but for the one that lands.
    assert means[0] == pytest.approx(num_workers - 1, abs=0.1)
    assert means[1] == pytest.approx(2 * num_workers - 1, abs=0.2)


def test_a_takeover_begins_new_streams_over_the_shards_as_they_are_then() -> None:
    plan = plan_of(3)
    star = Star(plan, 5, deaths={200: 2})
    server = Server(star, plan)
    driver = begin(server, inner_steps=300)
    trace = run_epoch(star, server, driver, 0, sums=True)
    after = sorted({int(k) for k in trace.worker if k >= 3})
    assert after == [3, 5], "rank 2 is gone; ranks 1 and 3 draw from new streams"
    assert len(trace.shards) == 6
    for generation in ([0, 1, 2], after):
        shards = [trace.shards[k] for k in generation]
        samples = np.concatenate([shard.samples for shard in shards])
        assert sorted(samples) == list(range(plan.sampler.num_samples))
        assert sum(shard.weight for shard in shards) == pytest.approx(len(generation))
    # The old streams end where the grants of before end; nobody goes back to them.
    for k in (1, 3):
        mine = trace.worker[np.isin(trace.worker, (k - 1, k + 2))]
        assert np.all(np.diff(mine) >= 0)
    assert set(run_epoch(star, server, driver, 1, sums=True).worker.tolist()) == {0, 2}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("num_failing", [1, 2, 3])
def test_who_raises_is_named_and_everybody_is_released(num_failing, overlap) -> None:
    """Whenever it happens, also when others raise or die at the same time."""
    for seed in range(20):
        rng = random.Random(seed)
        plan = plan_of(4)
        first = rng.randint(8, 250)
        failing = rng.sample(range(1, 5), num_failing)
        failures = {first + i * rng.randint(1, 6): rank for i, rank in enumerate(failing)}
        deaths = {m: k for m, k in some_deaths(rng, 4, 250).items() if k not in failing}
        star = Star(plan, seed, deaths=deaths, failures=failures)
        server = Server(star, plan)
        with pytest.raises(RankError, match="ValueError: broken at rank [1-4]$") as caught:
            run_job(star, server, inner_steps=400, overlap=overlap)
        assert caught.value.rank in failing
        assert str(caught.value).startswith(f"Rank {caught.value.rank} failed with ")
        assert server.stop(), "a worker waits for a WORK that was promised"


@pytest.mark.parametrize("overlap", [False, True])
def test_an_interrupted_epoch_releases_everybody(overlap) -> None:
    for seed, moment in enumerate(range(10, 300, 9)):
        plan = plan_of(3)
        deaths = some_deaths(random.Random(seed), 3, 300)
        star = Star(plan, seed, deaths=deaths, interrupt=moment)
        server = Server(star, plan)
        with pytest.raises(KeyboardInterrupt):
            run_job(star, server, inner_steps=400, overlap=overlap)
        assert server.stop(), "a worker waits for a WORK that was promised"


@pytest.mark.parametrize("overlap", [False, True])
def test_delay_adaptive_steps_and_times_are_in_the_trace(overlap: bool) -> None:
    """The first entry of x sums up the steps that were made."""
    plan = plan_of(3)
    driver = begin(
        Server(Star(plan, 1), plan), inner_steps=90, overlap=overlap, delay_adaptive=True
    )
    x, trace = driver.inner_loop(ZEROS, driver.prepare(ZEROS), 0, 1.0)
    scale = adaptive_scale(delays(trace), 6 if overlap else 3)
    np.testing.assert_array_equal(trace.scale, scale)
    assert scale.min() < 1
    assert x[0] == pytest.approx(-np.sum(scale), rel=1e-12)
    sent, arrived, landed = trace.times
    assert np.all((sent < arrived) & (arrived < landed))
    assert np.all(np.diff(landed) >= 0)
