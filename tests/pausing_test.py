"""Epochs that pause, are kept, and go on: as if nothing had happened."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter

import jax
import numpy as np
import pytest

from asvrg import checkpoints, delays, estimators, sampling, schedules, training
from asvrg.drivers import simulate, threads
from asvrg.drivers.mpi.protocol import Tag
from asvrg.drivers.mpi.server import Server
from asvrg.errors import DivergedError, InputError
from asvrg.estimators import Estimator
from asvrg.types import Driver, EpochResult, Inside, Snapshot, Trace
from tests import inner_loop_test, problems
from tests.fake_star import Star

pytestmark = pytest.mark.timeout(60)

PROBLEM = problems.get("relu")
DIM, M, LR = PROBLEM.objective.dim, 60, 0.05
SVRG = estimators.svrg(PROBLEM.objective, alpha=lambda epoch: 1.0 - 0.1 * epoch)
GROUPS = delays.contiguous_groups(DIM, 3)
# Three threads that read x every 2 updates and see their own.
WINDOWS = Trace(
    np.tile(np.repeat(np.arange(3, dtype=np.int32), 2), M // 6),
    np.repeat(np.maximum(0, np.arange(M // 2, dtype=np.int32) - 2) * 2, 2),
    sees_own=True,
)
TRACES = {
    "serial": delays.none(M),
    "round robin": delays.round_robin(M, 4),
    "long": delays.constant(M, 17),
    "windows": WINDOWS,
    "scaled": delays.adaptive(delays.constant(M, 6), 2),
    "groups": delays.uniform(M, 5, seed=3, num_groups=3),
}


def sampler(block_size: int | None) -> sampling.Sampler:
    return sampling.sampler(problems.NUM_SAMPLES, DIM, batch_size=3, block_size=block_size, seed=4)


def simulated(trace: Trace, block_size: int | None = None) -> Driver:
    return simulate.driver(
        SVRG,
        PROBLEM.data,
        sampler(block_size),
        inner_steps=M,
        trace=lambda epoch: trace,
        groups=GROUPS,
    )


def restored(state: EpochResult) -> EpochResult:
    """What a checkpoint makes of a state."""
    return checkpoints.to_state(checkpoints.of_state(state))


def in_parts(make_driver, num_epochs: int, pause) -> tuple[EpochResult, int]:
    """A run that ends at every pause, is restored, and goes on with a new driver."""
    state, pauses = training.start(PROBLEM.x0), 0
    while state.epoch < num_epochs:
        run = training.run(
            make_driver(),
            state,
            schedule=schedules.constant(LR),
            num_epochs=num_epochs,
            pause=pause,
        )
        for state in run:
            if state.inside is not None:
                state, pauses = restored(state), pauses + 1
                break
    return state, pauses


def undisturbed(driver: Driver, num_epochs: int) -> EpochResult:
    start = training.start(PROBLEM.x0)
    *_, last = training.run(driver, start, schedule=schedules.constant(LR), num_epochs=num_epochs)
    return last


def untimed(trace: Trace) -> dict:
    return trace._replace(times=None)._asdict()


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("name", TRACES)
def test_a_simulation_that_pauses_everywhere_is_that_simulation(
    name: str, block_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: also with updates that are computed, and have not landed."""
    monkeypatch.setattr(simulate, "PART", 7)
    expected = undisturbed(simulated(TRACES[name], block_size), 2)
    found, pauses = in_parts(lambda: simulated(TRACES[name], block_size), 2, lambda: True)
    assert pauses == 2 * (-(-M // 7) - 1)
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_equal(found.trace._asdict(), expected.trace._asdict())
    assert (found.updates, found.grad_evals) == (expected.updates, expected.grad_evals)


@pytest.mark.parametrize(
    ("sees_own", "adaptive", "estimator"),
    [
        (True, False, SVRG),
        (False, False, SVRG),
        (True, True, SVRG),
        (False, True, SVRG),
        (True, False, estimators.sgd(PROBLEM.objective)),
    ],
)
def test_one_thread_that_pauses_everywhere_is_that_thread(
    sees_own: bool, adaptive: bool, estimator: Estimator
) -> None:
    def make() -> Driver:
        return threads.driver(
            estimator,
            PROBLEM.data,
            sampler(5),
            inner_steps=M,
            num_threads=1,
            read_period=7,
            sees_own=sees_own,
            delay_adaptive=adaptive,
        )

    expected = undisturbed(make(), 2)
    found, pauses = in_parts(make, 2, lambda: True)
    assert pauses == 2 * (-(-M // 7) - 1)
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_equal(untimed(found.trace), untimed(expected.trace))
    # The clock of the epoch goes on where it stopped.
    assert np.all(np.diff(found.trace.times.landed) >= 0)


@pytest.mark.parametrize("max_delay", [None, 5])
def test_threads_that_pause_are_replayed_to_the_bit(max_delay: int | None) -> None:
    rng = random.Random(1)
    options = {"inner_steps": M, "num_threads": 3, "read_period": 2, "max_delay": max_delay}
    driver = threads.driver(SVRG, PROBLEM.data, sampler(5), **options)
    found, pauses = in_parts(lambda: driver, 1, lambda: rng.random() < 0.2)
    assert pauses > 1
    assert len(found.trace.worker) == M
    if max_delay is not None:
        assert delays.staleness(found.trace).max() <= max_delay
    replayed = undisturbed(simulated(found.trace, 5), 1)
    np.testing.assert_array_equal(found.x, replayed.x)


def test_the_snapshot_that_was_kept_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient may round otherwise where the run goes on."""
    monkeypatch.setattr(simulate, "PART", 7)
    driver = simulated(TRACES["serial"])
    run = training.run(
        driver,
        training.start(PROBLEM.x0),
        schedule=schedules.constant(LR),
        num_epochs=1,
        pause=lambda: True,
    )
    paused = next(run)
    assert isinstance(paused.inside, Inside)
    assert (paused.epoch, paused.updates, paused.grad_evals) == (0, 0, 0)
    np.testing.assert_array_equal(paused.x, PROBLEM.x0)
    expected = undisturbed(driver, 1)

    def elsewhere(x) -> Snapshot:
        snapshot = driver.prepare(x)
        return snapshot._replace(full_grad=snapshot.full_grad + 1.0)

    again = training.run(
        driver._replace(prepare=elsewhere),
        paused,
        schedule=schedules.constant(LR),
        num_epochs=1,
    )
    np.testing.assert_array_equal(next(again).x, expected.x)


@pytest.mark.parametrize("name", ["serial", "windows", "groups"])
def test_the_update_that_is_not_finite_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that holds a nan is found by the first update that draws it."""
    monkeypatch.setattr(simulate, "PART", 7)
    inputs, target = (each.copy() for each in PROBLEM.data)
    trace, spec = TRACES[name], sampler(5)
    draws = sampling.in_order(sampling.streams(spec, 0, trace), trace.worker)
    # A sample that is first drawn neither at the very beginning nor in the last part.
    first = [int(np.argmax(np.any(draws.batch == i, axis=1))) for i in range(len(target))]
    bad = int(np.argmax(first))
    assert 7 < first[bad] < M - 7
    snapshot = SVRG.prepare(PROBLEM.x0, jax.tree.map(np.asarray, (inputs, target)), map)
    inputs[bad] = np.nan
    sgd = estimators.sgd(PROBLEM.objective)
    driver = simulate.driver(
        sgd, (inputs, target), spec, inner_steps=M, trace=lambda epoch: trace, groups=GROUPS
    )
    sentence = f"v is not a finite number in update {first[bad]} of epoch 1 with step 0.05"
    with pytest.raises(DivergedError, match=sentence):
        undisturbed(driver, 1)
    if name == "serial":
        one = threads.driver(sgd, (inputs, target), spec, inner_steps=M, num_threads=1)
        with pytest.raises(DivergedError, match=sentence):
            one.inner_loop(PROBLEM.x0, snapshot, 0, LR)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("max_delay", [None, 2])
def test_a_server_that_pauses_lands_every_update_once(overlap: bool, max_delay: int | None) -> None:
    """Whoever dies in between; and no worker draws twice, or leaves out, a draw of its stream."""
    paused_more_than_once = 0
    for num_workers, seed in itertools.product(range(1, 5), range(8)):
        rng = random.Random(f"{num_workers} {seed}")
        plan = inner_loop_test.plan_of(num_workers)
        m = rng.choice([7, 40, 200])
        dying = inner_loop_test.some_deaths(rng, num_workers, 18 * num_workers + 6 * m)
        star = Star(plan, seed, deaths=dying if seed % 2 else None)
        granted: Counter[tuple[int, int]] = Counter()
        star.send = listening(star.send, granted)  # type: ignore[method-assign]
        server = Server(star, plan)
        driver = inner_loop_test.begin(server, inner_steps=m, overlap=overlap, max_delay=max_delay)
        snapshot = driver.prepare(inner_loop_test.ZEROS)
        star.landed.clear()
        pause = functools.partial(happens, rng)
        reached, pauses = inner_loop_test.ZEROS, -1
        while pauses < 0 or len(reached.trace.worker) < m:
            reached = driver.advance(reached, snapshot, 0, 1.0, pause)
            pauses += 1
        paused_more_than_once += pauses > 1
        assert reached.x[0] == -m
        trace = reached.trace
        assert [*zip(trace.worker, trace.read_version, strict=True)] == star.landed
        if max_delay is not None:
            assert inner_loop_test.delays(trace).max() <= max_delay
        for stream in set(trace.worker.tolist()):
            assert len(trace.shards[stream].samples)
        assert server.stop()
    assert paused_more_than_once > 10


def test_workers_of_another_job_draw_from_streams_of_their_own() -> None:
    """One had died before the epoch began; where it goes on all are there, with other shards."""
    plan = inner_loop_test.plan_of(3)
    star = Star(plan, 1, deaths={25: 3})
    server = Server(star, plan)
    driver = inner_loop_test.begin(server, inner_steps=40)
    inner_loop_test.run_epoch(star, server, driver, 0, sums=True)
    assert len(server.books) == 2
    snapshot = driver.prepare(inner_loop_test.ZEROS)
    paused = driver.advance(inner_loop_test.ZEROS, snapshot, 1, 1.0, lambda: True)
    number = len(paused.trace.worker)
    assert 0 < number < 40
    start = training.start(inner_loop_test.ZEROS)._replace(epoch=1)
    kept = restored(start._replace(inside=Inside(paused, snapshot.full_grad, 0.0)))

    # In the second of them a worker dies while the snapshot is made anew.
    for deaths in (None, {21: 2}):
        star = Star(plan, 2, deaths=deaths)
        server = Server(star, plan)
        driver = inner_loop_test.begin(server, inner_steps=40)
        snapshot = driver.prepare(inner_loop_test.ZEROS)
        whole = driver.advance(kept.inside.halfway, snapshot, 1, 1.0, None)
        trace = whole.trace
        assert whole.x[0] == -40
        assert set(trace.worker[:number]).isdisjoint(trace.worker[number:])
        for stream in set(trace.worker[:number].tolist()):
            before = paused.trace.shards[stream]
            np.testing.assert_array_equal(trace.shards[stream].samples, before.samples)
            assert trace.shards[stream].weight == before.weight
        for worker in star.workers.values():
            for (epoch, stream), shard in worker.shards.items():
                if epoch == 1 and stream in trace.worker:
                    np.testing.assert_array_equal(trace.shards[stream].samples, shard.samples)
        # Whoever replays it finds samples for every stream.
        sampling.streams(plan.sampler, 1, trace)


def test_another_driver_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "PART", 7)
    driver = simulated(TRACES["long"])
    snapshot = driver.prepare(PROBLEM.x0)
    paused = driver.advance(PROBLEM.x0, snapshot, 0, LR, lambda: True)
    thread = threads.driver(SVRG, PROBLEM.data, sampler(None), inner_steps=M, num_threads=1)
    for other in (simulated(TRACES["serial"]), simulated(TRACES["groups"]), thread):
        with pytest.raises(InputError, match="must be gone on with by the driver that paused in"):
            other.advance(paused, snapshot, 0, LR, None)


def happens(rng: random.Random) -> bool:
    """Once in ten times."""
    return rng.random() < 0.1


def listening(send, granted: Counter[tuple[int, int]]):
    """`send` of a Star, with the draws that it grants counted and compared."""

    def sending(k: int, tag: Tag, header=(), payload=None) -> None:
        if tag is Tag.GRANT:
            _, count, stream, drawn = header
            assert drawn == granted[k, stream]
            granted[k, stream] += count
        send(k, tag, header, payload)

    return sending
