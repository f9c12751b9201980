"""The simulated driver against a transcription of Equation (6) in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import delays, estimators, sampling, schedules, steps, training
from asvrg.drivers import simulate, threads
from asvrg.errors import InputError
from asvrg.types import Delta, Draws, Shard, Snapshot, Trace
from tests import problems

PROBLEM = problems.get("least_squares")
DIM, M, LR = PROBLEM.objective.dim, 24, 0.2
SVRG = estimators.svrg(PROBLEM.objective)
SGD = estimators.sgd(PROBLEM.objective)
DATA = jax.tree.map(jnp.asarray, PROBLEM.data)
SNAPSHOT = SVRG.prepare(PROBLEM.x0, DATA, map)
START = problems.other_point(PROBLEM)
GROUPS = np.array([2, 0, 1, 0, 2], np.int32)
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def sampler(block_size: int | None) -> sampling.Sampler:
    return sampling.sampler(problems.NUM_SAMPLES, DIM, batch_size=3, block_size=block_size, seed=4)


def equation_6(draws: Draws, lacks: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """x_0, ..., x_m of (4) to (6); lacks [m, m, d]: whether x_hat_t lacks update j there."""
    inputs, target = PROBLEM.data
    ones = np.concatenate([np.ones((len(inputs), 1)), inputs], axis=1)

    def grad(x: np.ndarray, i: np.ndarray) -> np.ndarray:
        return np.mean((ones[i] @ x - target[i])[:, None] * ones[i], axis=0)

    x, x_tilde, deltas, xs = START.copy(), PROBLEM.x0, [], []
    for t, batch in enumerate(draws.batch):
        x_hat = x - sum(np.where(lacks[t, j], deltas[j], 0) for j in range(t))
        xs.append(x)
        v = grad(x_hat, batch) - grad(x_tilde, batch) + grad(x_tilde, np.arange(len(inputs)))
        k = slice(None) if draws.block is None else draws.block[t]
        deltas.append(np.zeros(DIM))
        deltas[t][k] = -LR * v[k] * (1 if scale is None else scale[t])
        x = x + deltas[t]
    return np.array([*xs, x])


def lacks_of(trace: Trace) -> np.ndarray:
    """The J(t) of a trace for every coordinate, [m, m, d], by the definition of `Trace`."""
    version = trace.read_version.reshape(M, -1)
    version = version[:, GROUPS] if version.shape[1] > 1 else np.tile(version, DIM)
    lacks = np.arange(M)[None, :, None] >= version[:, None, :]
    own = trace.worker[:, None] == trace.worker[None, :]
    return lacks & ~own[:, :, None] if trace.sees_own else lacks


WORKERS = np.random.default_rng(1).integers(3, size=M).astype(np.int32)
TRACES = {
    "none": delays.none(M),
    "constant": delays.constant(M, 5),
    "uniform": delays.uniform(M, 7, seed=0),
    "round robin": delays.round_robin(M, 3),
    "inconsistent": delays.uniform(M, 7, seed=0, num_groups=3),
    "everything missing": Trace(WORKERS, np.zeros(M, np.int32)),
    "all but one's own missing": Trace(WORKERS, np.zeros(M, np.int32), sees_own=True),
    "inconsistent, sees its own": Trace(
        WORKERS, delays.uniform(M, 7, seed=1, num_groups=3).read_version, sees_own=True
    ),
}


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("name", TRACES)
def test_replay_is_equation_6(name: str, block_size) -> None:
    trace = TRACES[name]
    groups = GROUPS if trace.read_version.ndim == 2 else None
    spec = sampler(block_size)
    driver = simulate.driver(
        SVRG, PROBLEM.data, spec, inner_steps=M, trace=lambda epoch: trace, groups=groups
    )
    found, record = driver.inner_loop(START, SNAPSHOT, 3, LR)
    assert record is trace
    draws = drawn(spec, trace)
    *_, expected = equation_6(draws, lacks_of(trace))
    np.testing.assert_allclose(found, expected, **CLOSE)
    if name != "none":  # or else nothing was delayed
        assert not np.allclose(found, equation_6(draws, np.zeros((M, M, DIM), bool))[-1], rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["none", "uniform", "all but one's own missing", "inconsistent, sees its own"]
)
def test_segments_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws and missing updates carry over from one scan to the next, of 7, 7, 7 and 3 steps."""
    trace = TRACES[name]
    args = (SVRG, START, SNAPSHOT, DATA, sampler(2), trace)
    whole = simulate.replay(*args, epoch=0, lr=LR, groups=GROUPS)
    monkeypatch.setattr(sampling, "SEGMENT", 7)
    in_segments = simulate.replay(*args, epoch=0, lr=LR, groups=GROUPS)
    np.testing.assert_array_equal(in_segments, whole)


def drawn(spec: sampling.Sampler, trace: Trace) -> Draws:
    """The draws of a trace's updates, one by one."""
    streams = {k: sampling.Stream(spec, 3, k) for k in set(trace.worker.tolist())}
    taken = [streams[k].take(1) for k in trace.worker.tolist()]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *taken)


def observer(x: jax.Array, data: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
    return {"x": x, "loss": PROBLEM.objective.loss(x, data)}


@pytest.mark.parametrize("name", ["none", "uniform", "inconsistent"])
def test_an_observer_sees_every_x(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was computed in another segment than the one it lands in."""
    monkeypatch.setattr(sampling, "SEGMENT", 7)
    trace, spec = TRACES[name], sampler(2)
    x, seen = simulate.replay(
        SVRG,
        START,
        SNAPSHOT,
        DATA,
        spec,
        trace,
        epoch=3,
        lr=LR,
        groups=GROUPS,
        observe=observer,
    )
    expected = equation_6(drawn(spec, trace), lacks_of(trace))
    np.testing.assert_allclose(np.array([*seen["x"], x]), expected, **CLOSE)
    losses = [problems.full_loss(PROBLEM, each) for each in expected[:-1]]
    np.testing.assert_allclose(seen["loss"], losses, rtol=1e-10)


@pytest.mark.parametrize("name", ["constant", "uniform", "inconsistent"])
def test_the_scale_of_a_trace_multiplies_its_steps(name: str) -> None:
    trace, spec = delays.adaptive(TRACES[name], 2), sampler(2)
    assert len(set(trace.scale.tolist())) > 1
    args = (SVRG, START, SNAPSHOT, DATA, spec, trace)
    found = simulate.replay(*args, epoch=3, lr=LR, groups=GROUPS)
    *_, expected = equation_6(drawn(spec, trace), lacks_of(trace), trace.scale)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_worker_sees_its_own_steps_unscaled() -> None:
    """Two windows of two updates: x_hat_1 lacks nothing of the first, whatever its scale."""
    trace = Trace(
        np.array([0, 0, 1, 1]),
        np.array([0, 0, 0, 0]),
        sees_own=True,
        scale=np.array([0.5, 0.5, 0.25, 0.25]),
    )
    spec, rate = sampler(2), np.float64(LR)
    found = simulate.replay(SVRG, START, SNAPSHOT, DATA, spec, trace, epoch=3, lr=LR)
    expected = START.copy()
    for worker, scale in ((0, 0.5), (1, 0.25)):
        draws = sampling.Stream(spec, 3, worker).take(2)
        delta = steps.window(SVRG, START, SNAPSHOT, DATA, draws, rate)
        threads.add(expected, Delta(draws.block, scale * np.asarray(delta.values)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["uniform", "inconsistent"])
def test_a_prefix_of_nothing_leaves_x_alone(name: str) -> None:
    trace = delays.prefix(TRACES[name], 0)
    args = (SVRG, START, SNAPSHOT, DATA, sampler(2), trace)
    x, seen = simulate.replay(*args, epoch=0, lr=LR, groups=GROUPS, observe=observer)
    np.testing.assert_array_equal(x, START)
    assert seen["x"].shape == (0, DIM)


def test_workers_with_shards_draw_from_them_with_their_weights() -> None:
    """Two workers in turn, each on its own samples."""
    shards = (
        Shard(np.arange(3, dtype=np.int32), 0.5),
        Shard(np.arange(3, 12, dtype=np.int32), 1.5),
    )
    trace, spec = delays.round_robin(M, 2)._replace(shards=shards), sampler(2)
    found = simulate.replay(SGD, START, Snapshot(), DATA, spec, trace, epoch=3, lr=LR)
    streams = [sampling.Stream(spec, 3, k, shard) for k, shard in enumerate(shards)]
    inputs, target = PROBLEM.data
    ones = np.concatenate([np.ones((len(inputs), 1)), inputs], axis=1)
    xs = [START]
    for t in range(M):
        draw, x_hat = streams[t % 2].take(1), xs[max(t - 1, 0)]
        assert set(draw.batch.ravel()) <= set(shards[t % 2].samples)
        i, k = draw.batch[0], draw.block[0]
        v = shards[t % 2].weight * np.mean((ones[i] @ x_hat - target[i])[:, None] * ones[i], axis=0)
        xs.append(xs[-1].copy())
        xs[-1][k] -= LR * v[k]
    np.testing.assert_allclose(found, xs[-1], **CLOSE)


def test_epochs_have_their_own_traces_and_draws() -> None:
    traces = [delays.none(M), delays.constant(M, 5)]
    spec = sampler(2)
    driver = simulate.driver(SVRG, PROBLEM.data, spec, inner_steps=M, trace=traces.__getitem__)
    (first, trace), (second, _) = (
        driver.inner_loop(START, SNAPSHOT, epoch, LR) for epoch in range(2)
    )
    assert trace is traces[0]
    for epoch, found in enumerate([first, second]):
        draws = sampling.Stream(spec, epoch, 0).take(M)
        np.testing.assert_allclose(found, equation_6(draws, lacks_of(traces[epoch]))[-1], **CLOSE)


@pytest.mark.parametrize("trace", [None, lambda epoch: delays.uniform(M, 4, seed=epoch)])
def test_epochs_do_not_recompile(trace, caplog: pytest.LogCaptureFixture) -> None:
    """The first one does not compile either: that is what `warm_up` is for."""
    estimator = estimators.svrg(PROBLEM.objective)  # compiled by nobody yet
    driver = simulate.driver(estimator, PROBLEM.data, sampler(2), inner_steps=M, trace=trace)
    schedule = schedules.polynomial(LR, 0.5)  # another step in every epoch
    with jax.log_compiles():
        driver.warm_up(START)
        assert "Compiling" in caplog.text
        caplog.clear()
        *_, last = training.run(driver, training.start(START), schedule=schedule, num_epochs=4)
    assert last.epoch == 4
    assert "Compiling" not in caplog.text


@pytest.mark.parametrize(
    ("trace", "groups", "sentence"),
    [
        (delays.none(M - 1), None, f"inner_steps = {M} updates an epoch, got {M - 1} in epoch 2"),
        (Trace(np.zeros(M, int), np.full(M, M)), None, "trace.read_version must lie between"),
        (
            TRACES["inconsistent, sees its own"]._replace(scale=np.ones(M)),
            GROUPS,
            "one group of coordinates where workers see their own updates and steps are scaled",
        ),
        (
            delays.none(M)._replace(shards=(Shard(np.array([0, problems.NUM_SAMPLES]), 1.0),)),
            None,
            f"samples from 0 to {problems.NUM_SAMPLES - 1}, .*others for worker 0",
        ),
        (TRACES["inconsistent"], None, "one of the trace's 3 groups, got None"),
        (TRACES["inconsistent"], np.full(DIM, 3), "one of the trace's 3 groups, got"),
        (TRACES["inconsistent"], np.full(DIM, -1), "groups must be an array"),
        (TRACES["inconsistent"], np.zeros(DIM - 1, int), "groups must be an array"),
    ],
)
def test_traces_that_do_not_fit_are_refused(trace: Trace, groups, sentence: str) -> None:
    driver = simulate.driver(
        SVRG, PROBLEM.data, sampler(None), inner_steps=M, trace=lambda epoch: trace, groups=groups
    )
    with pytest.raises(InputError, match=sentence):
        driver.inner_loop(START, SNAPSHOT, 2, LR)


@pytest.mark.parametrize("inner_steps", [0, 1.5])
def test_bad_lengths_are_refused(inner_steps) -> None:
    with pytest.raises(InputError, match="inner_steps must be a whole number of at least 1"):
        simulate.driver(SVRG, PROBLEM.data, sampler(None), inner_steps=inner_steps)


def test_one_compilation_serves_all_delays_up_to_max_delay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"inner_steps": M, "trace": lambda epoch: delays.constant(M, 2 * epoch)}
    spec = sampler(2)
    driver = simulate.driver(SVRG, PROBLEM.data, spec, max_delay=6, **options)
    driver.warm_up(START)
    with jax.log_compiles():
        found = [driver.inner_loop(START, SNAPSHOT, epoch, LR)[0] for epoch in range(4)]
    assert not [record.message for record in caplog.records if "Compiling" in record.message]
    plain = simulate.driver(SVRG, PROBLEM.data, spec, **options)
    for epoch, x in enumerate(found):
        np.testing.assert_allclose(x, plain.inner_loop(START, SNAPSHOT, epoch, LR)[0], **CLOSE)
    with pytest.raises(InputError, match="no delay above max_delay = 6, got 8"):
        driver.inner_loop(START, SNAPSHOT, 4, LR)


@pytest.mark.parametrize("block_size", [None, 2])
def test_memory_bound_on_segments_changes_nothing(monkeypatch, block_size) -> None:
    driver = simulate.driver(SVRG, PROBLEM.data, sampler(block_size), inner_steps=M)
    whole, _ = driver.inner_loop(START, SNAPSHOT, 0, LR)
    monkeypatch.setattr(sampling, "SEGMENT_ENTRIES", 5 * DIM)
    np.testing.assert_array_equal(driver.inner_loop(START, SNAPSHOT, 0, LR)[0], whole)
