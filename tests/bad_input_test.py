"""Bad arguments of asvrg's public functions: each gives one sentence, early. Odd ones are fine.

What other tests of a module have already is not repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asvrg
from asvrg import (
    delays,
    durations,
    estimators,
    mlp,
    objectives,
    sampling,
    schedules,
    simulate,
    theory,
    threads,
    training,
    transforms,
    virtual_clock,
)
from asvrg.errors import InputError, check_function, check_kind, check_switch
from asvrg.types import Shard, Times, Trace

HUGE, BEYOND = 10**18, 10**400
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(20, 3)).astype(np.float32)
LABELS = RNG.integers(0, 2, 20)
TARGETS = ROWS @ np.array([1, -2, 0.5], np.float32)
W = np.zeros(3, np.float32)
NETWORK = mlp.mlp((3, 4, 2), l2=1e-3)
X0 = np.asarray(mlp.init(jax.random.key(0), (3, 4, 2)))
SPEC = sampling.sampler(20, NETWORK.dim, batch_size=2)


def loss(w: Any, sample: Any) -> Any:
    return 0.5 * (sample[0] @ w - sample[1]) ** 2


SQUARES = objectives.from_loss(loss, W)


def fit(**changed: Any) -> asvrg.FitResult:
    given: dict[str, Any] = {"loss": loss, "params": W, "data": (ROWS, TARGETS), "num_epochs": 1}
    return asvrg.fit(**given | {"lr": 0.1} | changed)


def labelled(place: int, label: int) -> tuple[np.ndarray, np.ndarray]:
    labels = LABELS.copy()
    labels[place] = label
    return ROWS, labels


def pair(**changed: Any) -> Trace:
    return Trace(np.zeros(2, int), np.zeros(2, int))._replace(**changed)


STAR = virtual_clock.Cluster(durations.constant(3.0), durations.constant(1.0))
SETTING = theory.Setting(0.01, 1.0, 2, 10)
CHOICE = theory.Choice(0.1, 1, 10, 0.5)


def clock(num_updates: Any = 8, num_workers: Any = 2, **changed: Any) -> Trace:
    cluster = STAR._replace(**changed)
    return virtual_clock.event_driven(num_updates, num_workers, cluster, seed=0)


def drawing(draw: Callable[[Any, int], Any]) -> durations.Duration:
    return durations.Duration(1.0, draw)


def updated(**changed: Any) -> Any:
    svrg = transforms.svrg(every=2)
    given = {"grad_fn": lambda x: x, "full_grad_fn": lambda x: x, "state": svrg.init(W)} | changed
    return svrg.update(W, given.pop("state"), W, **given)


def on_block(block: Any) -> Any:
    keep = transforms.random_block(2)
    return keep.update(W, keep.init(W), block=block)


BAD = [
    # The problem.
    (lambda: mlp.mlp(3), "layer_sizes must be a sequence of whole numbers, got int."),
    (lambda: mlp.mlp(None), "layer_sizes must be a sequence of whole numbers, got NoneType."),
    (lambda: mlp.mlp((3, HUGE)), "layer_sizes must make at most 2147483647 coordinates, as indic"),
    (lambda: mlp.mlp((3, 2), activation="rleu"), "got 'rleu'; did you mean relu?"),
    (lambda: mlp.mlp((3, 2), l2=BEYOND), "l2 must be a finite number of at least 0, got 10000000"),
    (lambda: mlp.init(3, (3, 2)), "key must be a single key of jax.random, got 3."),
    (
        lambda: mlp.init(jax.random.split(jax.random.key(0)), (3, 2)),
        "key must be a single key of jax.random, got Array((2,), dtype=key<fry>)",
    ),
    (lambda: mlp.init(jax.random.key(0), (3, 2), dtype="int32"), "float32 or float64, got 'int32'"),
    (lambda: mlp.init(jax.random.key(0), (3, 2), dtype="floaty"), "float64, got 'floaty'."),
    (lambda: NETWORK.loss(X0, labelled(3, 2)), "labels must be whole numbers from 0 to 1, got 2"),
    (lambda: NETWORK.grad(X0, labelled(5, -1), None), "from 0 to 1, got -1 at sample 5."),
    (lambda: fit(loss=NETWORK, params=X0, data=labelled(7, 9)), "0 to 1, got 9 at sample 7."),
    (lambda: fit(loss=NETWORK, params=X0, data=labelled(0, -1)), "0 to 1, got -1 at sample 0."),
    (
        lambda: fit(loss=NETWORK, params=X0, data=(ROWS, LABELS, LABELS)),
        "data must be a pair (inputs, labels), got tuple.",
    ),
    (lambda: NETWORK.loss(X0, (ROWS.tolist(), LABELS)), "inputs must be an array, got list."),
    (lambda: NETWORK.loss(None, (ROWS, LABELS)), "x must be an array, got NoneType."),
    (lambda: objectives.from_loss(None, W), "loss must be a function, got NoneType."),
    (lambda: objectives.from_loss(loss, W, error=3), "error must be a function, got int."),
    (lambda: objectives.from_loss(loss, "W"), "floating-point arrays of one dtype, got ['object']"),
    (lambda: objectives.evaluate(loss, W, ROWS), "objective must be an Objective, got function."),
    (
        lambda: objectives.evaluate(SQUARES, np.zeros(4, np.float32), (ROWS, TARGETS)),
        "x must be an array [3] of floating-point numbers, as the objective has it, got shape (4,)",
    ),
    (lambda: objectives.evaluate(SQUARES, [0.0] * 3, (ROWS, TARGETS)), "as the objective has it"),
    (lambda: objectives.evaluate(SQUARES, np.zeros(3, int), (ROWS, TARGETS)), "and dtype int64."),
    (lambda: objectives.evaluate(SQUARES, W.astype(">f4"), (ROWS, TARGETS)), "and dtype >f4."),
    (
        lambda: objectives.full_gradient(SQUARES, W, (ROWS, TARGETS), map_fn=None),
        "map_fn must be a function, got NoneType.",
    ),
    (lambda: objectives.num_samples(np.array(["a"])), "arrays of numbers, got dtype <U1."),
    (lambda: objectives.num_samples(ROWS.astype(">f4")), "in this machine's byte order, got dtype"),
    # The draws and the estimators.
    (lambda: sampling.sampler(HUGE, 5, batch_size=2), "num_samples must be a whole number from 1 "),
    (lambda: sampling.sampler(9, HUGE, batch_size=2), "dim must be a whole number from 1 to 21474"),
    (lambda: sampling.check_fits(None, 20), "sampler must be a Sampler, got NoneType."),
    (lambda: estimators.sgd(loss), "objective must be an Objective, got function."),
    (lambda: estimators.svrg(None), "objective must be an Objective, got NoneType."),
    (lambda: estimators.svrg(NETWORK, chunk_size=0), "chunk_size must be a whole number of at lea"),
    (lambda: estimators.svrg(NETWORK, alpha=BEYOND), "alpha must be a finite number, got 10000000"),
    (
        lambda: estimators.variances(SQUARES, W, W[:2], (ROWS, TARGETS), batch_size=2),
        "x_tilde must be an array [3] of floating-point numbers, as the objective has it, got",
    ),
    # The drivers.
    (lambda: simulate.driver(estimators.sgd(NETWORK), (ROWS, LABELS), None, inner_steps=5), "samp"),
    (
        lambda: simulate.driver(estimators.sgd(NETWORK), np.array(["a"] * 20), SPEC, inner_steps=5),
        "data must be a pytree of arrays of numbers, got dtype <U1.",
    ),
    # Delays and times.
    (lambda: delays.none(HUGE), "num_updates must be a whole number from 1 to 2147483647, got 100"),
    (lambda: delays.uniform(5, HUGE, seed=0), "max_delay must be a whole number from 0 to 2147483"),
    (lambda: delays.uniform(5, 2, seed=0, num_groups=HUGE), "num_groups must be a whole number fr"),
    (lambda: delays.contiguous_groups(HUGE, 2), "dim must be a whole number from 1 to 2147483647"),
    (lambda: delays.check(None), "trace must be a Trace, got NoneType."),
    (lambda: delays.check(pair(read_version=np.zeros((2, 0), int))), "and (2, 0)."),
    (lambda: delays.check(pair(times=3)), "trace.times must be a Times, got int."),
    (
        lambda: delays.check(pair(times=Times(*[np.array(["a", "b"])] * 3))),
        "trace.times.read must hold numbers, got dtype <U1.",
    ),
    (lambda: delays.check(pair(scale=np.array(["a", "b"]))), "trace.scale must hold numbers, got"),
    (lambda: delays.check(pair(shards=3)), "trace.shards must be a tuple, got int."),
    (lambda: delays.check(pair(shards=(3,))), "every entry of trace.shards must be a Shard, got i"),
    (lambda: delays.staleness("trace"), "trace must be a Trace, got str."),
    (lambda: delays.lag(None), "trace must be a Trace, got NoneType."),
    (lambda: delays.check_longest(pair(), 1.5), "max_delay must be a whole number of at least 0"),
    (lambda: delays.adaptive_scale("x", 2), "delay must be numbers, got dtype <U1."),
    (lambda: delays.adaptive_scale(np.ones(2), BEYOND), "concurrency must be a whole number from "),
    (lambda: durations.scaled(3.0, 2.0), "usual must be a Duration, got float."),
    (lambda: durations.stragglers(None, 0.5, 2.0), "usual must be a Duration, got NoneType."),
    (lambda: durations.measured("fast"), "every entry of seconds must be a finite number of at le"),
    (lambda: durations.measured([[1.0], [1.0, 2.0]]), "must be a number or an array of them, got "),
    (lambda: durations.log_normal(1.0, 1e308), "variation must be a finite number of at least 0 a"),
    (lambda: durations.slow_workers(HUGE, 0.5, 2.0), "num_workers must be a whole number from 1 t"),
    (lambda: clock(HUGE), "num_updates must be a whole number from 1 to 2147483647"),
    (lambda: clock(8, HUGE), "num_workers must be a whole number from 1 to 2147483647"),
    (lambda: clock(compute=3.0), "compute must be a Duration, got float."),
    (lambda: clock(network="200mbit"), "network must be a Network, got str."),
    (lambda: clock(network=virtual_clock.Network(shared=2)), "shared must be True or False, got 2"),
    (lambda: clock(network=virtual_clock.Network(bandwidth=np.ones(2))), "bandwidth must be a fin"),
    (lambda: clock(8, 4, cores=2, time_slice=1e-12), "time_slice must be at least 4e-06 s, a mill"),
    (lambda: clock(compute=drawing(lambda rng, count: np.zeros(0))), "as many numbers as it is as"),
    (lambda: clock(compute=drawing(lambda rng, count: ["a"] * count)), "asked for, got <U1 of sha"),
    (lambda: virtual_clock.cycle(None), "cluster must be a Cluster, got NoneType."),
    (lambda: virtual_clock.time_speedup(None, clock()), "serial must be a Trace, got NoneType."),
    (lambda: virtual_clock.updates_per_second(pair(times=3)), "trace.times must be a Times, got i"),
    # Theory.
    (lambda: theory.holds((0.1, 1)), "setting must be a Setting, got tuple."),
    (lambda: theory.tolerated_delay(None), "setting must be a Setting, got NoneType."),
    (lambda: theory.gamma(SETTING._replace(lr=[[1], [1, 2]])), "lr must be a number or an array o"),
    (lambda: theory.gamma(SETTING._replace(inner_steps=BEYOND)), "inner_steps must be a whole num"),
    (lambda: theory.bound(SETTING, BEYOND, 3), "gap must be a finite number of at least 0, got 1"),
    (lambda: theory.delay_limit(None), "choice must be a Choice, got NoneType."),
    (lambda: theory.step_size(CHOICE, "L"), "smoothness must be a finite number above 0, got 'L'."),
    (
        lambda: theory.estimate_smoothness(None, W, ROWS),
        "objective must be an Objective, got NoneType.",
    ),
    (lambda: theory.estimate_smoothness(SQUARES, None, ROWS), "as the objective has it, got NoneT"),
    # Transformations of optax.
    (lambda: transforms.svrg(every=HUGE), "every must be a whole number from 1 to 2147483647"),
    (lambda: transforms.svrg(seed=None), "seed must be a whole number of at least 0, got None."),
    (lambda: transforms.svrg(every=2).init("W"), "params must be a pytree of arrays of numbers, g"),
    (lambda: updated(state=None), "state must be a SvrgState, got NoneType."),
    (lambda: transforms.random_block(None), "block_size must be a whole number of at least 1, got"),
    (lambda: transforms.random_block(2).init({"w": "W"}), "got str in params['w']."),
    (lambda: on_block(np.array([0.5])), "block must be an array [B] of coordinates, whole numbers"),
    (lambda: on_block([0, 1]), "block must be an array [B] of coordinates, whole numbers, got lis"),
    (lambda: transforms.measure_variance(decay=None), "decay must be a finite number of at least "),
    (lambda: transforms.over_arrays(None, W, ROWS), "grad_fn must be a function, got NoneType."),
    (lambda: transforms.over_batches(loss, W, None), "batches must be an Iterable, got NoneType."),
    (lambda: transforms.over_batches(loss, W, [], weight=3), "weight must be a function, got int."),
    # The checks themselves.
    (lambda: check_kind("shard", 3, Shard), "shard must be a Shard, got int."),
    (lambda: check_function("loss", 3), "loss must be a function, got int."),
    (lambda: check_switch("sees_own", "no"), "sees_own must be True or False, got 'no'."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence[:50] for _, sentence in BAD])
def test_bad_arguments_get_a_sentence(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [-1, 2, 10**6])
def test_a_label_out_of_range_is_no_class_in_compiled_code(label: int) -> None:
    """Gathers would clip it, or take the last class for -1: a wrong answer, in silence."""
    found = objectives.evaluate(NETWORK, X0, labelled(3, label), with_grad=True)
    assert math.isnan(found.loss)
    assert math.isnan(found.grad_norm_sq)
    driver = simulate.driver(estimators.svrg(NETWORK), labelled(3, label), SPEC, inner_steps=40)
    with pytest.raises(asvrg.DivergedError):
        list(training.run(driver, training.start(X0), schedule=lambda s: 0.1, num_epochs=1))


def test_float64_is_not_cut_in_silence() -> None:
    with jax.enable_x64(False), pytest.raises(InputError, match="float32 unless jax_enable_x64"):
        sampling.check_dim(SPEC, X0.astype(np.float64))
    with jax.enable_x64(False), pytest.raises(InputError, match="float32 unless jax_enable_x64"):
        mlp.init(jax.random.key(0), (3, 2), dtype="float64")


def read_only(array: np.ndarray) -> np.ndarray:
    view = array.copy()
    view.flags.writeable = False
    return view


def spread(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=0)[::2]


ODD: dict[str, Callable[[np.ndarray], Any]] = {
    "not contiguous": spread,
    "backwards twice": lambda array: array[::-1].copy()[::-1],
    "column by column": np.asfortranarray,
    "read-only": read_only,
    "of jax": jnp.asarray,
    "a memory map": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("driver", ["fit", "simulate", "threads"])
def test_odd_arrays_give_the_same_as_plain_ones(driver: str, odd: Callable) -> None:
    def reached(of: Callable) -> np.ndarray:
        data = (of(ROWS), of(LABELS))
        if driver == "fit":
            found = fit(loss=NETWORK, params=of(X0), data=data, inner_steps=5)
            return np.asarray(found.params).ravel()
        make = simulate.driver if driver == "simulate" else threads.driver
        more: dict[str, Any] = {} if driver == "simulate" else {"num_threads": 1}
        made: Any = make(estimators.svrg(NETWORK), data, SPEC, inner_steps=5, **more)
        x = of(X0)
        *_, last = training.run(made, training.start(x), schedule=lambda s: 0.1, num_epochs=1)
        np.testing.assert_array_equal(x, X0)  # it is the caller's own
        return np.asarray(last.x)

    np.testing.assert_array_equal(reached(odd), reached(np.asarray))


def test_numbers_of_every_kind_are_the_same_numbers() -> None:
    plain = fit(batch_size=3, inner_steps=4, seed=5, lr=0.25)
    odd = fit(
        batch_size=np.int64(3), inner_steps=jnp.asarray(4), seed=np.array(5), lr=np.float32(0.25)
    )
    np.testing.assert_array_equal(odd.params, plain.params)
    assert sampling.sampler(np.int64(9), np.int32(5), batch_size=np.int8(2)) == sampling.sampler(
        9, 5, batch_size=2
    )
    assert delays.constant(5, BEYOND).read_version.tolist() == [0] * 5
    assert schedules.polynomial(1.0, BEYOND // 10**99)(3) == 0
