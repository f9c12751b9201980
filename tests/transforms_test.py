"""asvrg.transforms against the simulator, and its state in checkpoints and on several devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from asvrg import delays, estimators, sampling, transforms
from asvrg.drivers import simulate
from tests import problems
from tests.optax_tasks import Task, rows, run

M, LR, EPOCHS = 9, 0.2, 2
N = problems.NUM_SAMPLES


def simulated(task: Task, block_size: int | None) -> tuple[np.ndarray, list[Any]]:
    """Every x of the simulator with zero delay, and the draws that led there."""
    objective = task.problem.objective
    spec = sampling.sampler(N, objective.dim, batch_size=3, block_size=block_size, seed=4)
    estimator = estimators.svrg(objective)
    x, xs, draws = jnp.asarray(task.problem.x0), [], []
    for epoch in range(EPOCHS):
        snapshot = estimator.prepare(x, task.data, map)
        trace = delays.none(M)
        x, seen = simulate.replay(
            estimator, x, snapshot, task.data, spec, trace,
            epoch=epoch, lr=LR, observe=lambda x, data: x,
        )  # fmt: skip
        xs.extend(np.asarray(seen)[1:])
        xs.append(np.asarray(x))
        rows = sampling.Stream(spec, epoch, 0).take(M)
        draws.extend(jax.tree.map(lambda leaf, t=t: leaf[t], rows) for t in range(M))
    return np.array(xs), draws


@pytest.mark.parametrize(
    ("name", "block_size"),
    [("least_squares", None), ("least_squares", 2), ("tanh_by_autodiff", None), ("tanh_deep", 7)],
)
def test_the_chain_is_the_simulator(name: str, block_size: int | None) -> None:
    """chain(svrg(), scale(-lr)) makes the simulator's x with zero delay, step by step."""
    task = Task(name)
    expected, draws = simulated(task, block_size)
    optimiser = optax.chain(
        transforms.svrg(every=M),
        optax.scale(-LR),
        *([] if block_size is None else [transforms.random_block(block_size)]),
    )

    @jax.jit
    def step(params: Any, state: Any, draw: Any, data: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[draw.batch], data)
        updates, state = optimiser.update(
            task.grad(params, batch), state, params,
            block=draw.block, **task.extra_args(batch, data),
        )  # fmt: skip
        return optax.apply_updates(params, updates), state

    params, state = task.params, optimiser.init(task.params)
    for draw, x in zip(draws, expected, strict=True):
        params, state = step(params, state, draw, task.data)
        np.testing.assert_allclose(ravel_pytree(params)[0], x, rtol=1e-12, atol=1e-12)
    assert int(state[0].num_snapshots) == EPOCHS


def test_by_hand_over_ragged_batches_is_the_simulator() -> None:
    task = Task("tanh_by_autodiff")
    expected, draws = simulated(task, None)
    optimiser = optax.chain(transforms.svrg(), optax.scale(-LR))
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 5], task.data) for i in (0, 5, 10)]

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        updates, state = optimiser.update(
            task.grad(params, batch), state, params,
            snapshot_grad=task.grad(state[0].snapshot, batch),
        )  # fmt: skip
        return optax.apply_updates(params, updates), state

    params, state = task.params, optimiser.init(task.params)
    for t, (draw, x) in enumerate(zip(draws, expected, strict=True)):
        if t % M == 0:
            mu = transforms.over_batches(task.grad, params, iter(batches))
            state = transforms.refresh(state, params, mu)
        batch = jax.tree.map(lambda leaf, draw=draw: leaf[draw.batch], task.data)
        params, state = step(params, state, batch)
        np.testing.assert_allclose(ravel_pytree(params)[0], x, rtol=1e-12, atol=1e-12)
    assert step._cache_size() == 1


def test_the_state_is_known_to_optax() -> None:
    task = Task("least_squares")
    optimiser = optax.chain(transforms.svrg(), transforms.measure_variance(), optax.adam(1.0))
    marked = optax.tree_map_params(
        optimiser, lambda leaf: "like params", optimiser.init(task.params),
        transform_non_params=lambda leaf: "other",
    )  # fmt: skip
    assert (
        marked[0].snapshot
        == marked[0].full_grad
        == {"weights": "like params", "bias": "like params"}
    )
    assert marked[0].step == marked[0].key == marked[0].telemetry.variance == "other"


def test_the_state_survives_orbax(tmp_path: Path) -> None:
    checkpoint = pytest.importorskip("orbax.checkpoint")
    task = Task("least_squares")
    optimiser = optax.chain(transforms.svrg(probability=0.5), transforms.random_block(2))
    _, state, _ = run(
        task,
        optimiser,
        lambda params, t, data: task.grad(params, rows(t, data)),
        lambda params, t, data: task.extra_args(rows(t, data), data),
        3,
    )
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", optimiser.init(task.params))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["Auto", "Explicit"])
def test_sharded_parameters_stay_sharded(mode: str) -> None:
    """On four devices, so in a process of its own."""
    script = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from asvrg import transforms
jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType[sys.argv[1]],))
jax.set_mesh(mesh)
sharded = jax.sharding.NamedSharding(mesh, jax.P(None, "x"))
whole = jax.sharding.NamedSharding(mesh, jax.P())
params = jax.device_put({"w": jnp.ones((3, 8))}, sharded)
data = jax.device_put(jnp.arange(15.0).reshape(5, 3) / 15, whole)
grad = jax.grad(lambda p, batch: jnp.mean(jnp.tanh(batch @ p["w"]) ** 2))
sizes = {}
for policy in ({"every": 2}, {}):
    optimiser = optax.chain(
        transforms.measure_variance(), transforms.svrg(**policy), optax.sgd(0.1),
        transforms.random_block(12),
    )

    @jax.jit
    def step(params, state, data):
        batch = data[:2]
        extra = {"grad_fn": lambda p: grad(p, batch)}
        if policy:
            extra["full_grad_fn"] = lambda p: transforms.over_arrays(grad, p, data, chunk_size=2)
        updates, state = optimiser.update(grad(params, batch), state, params, **extra)
        return optax.apply_updates(params, updates), state

    def check(p, state):
        for tree in (p, state[0].previous, state[1].snapshot, state[1].full_grad):
            assert tree["w"].sharding.is_equivalent_to(sharded, 2), tree["w"].sharding

    p, state = params, optimiser.init(params)
    check(p, state)
    compiled = sizes[str(policy)] = []
    for t in range(5):
        if not policy and t % 2 == 0:
            mu = transforms.over_batches(grad, p, [data[:3], data[3:]])
            state = transforms.refresh(state, p, jax.device_put(mu, whole))
        p, state = step(p, state, data)
        check(p, state)
        compiled.append(step._cache_size())
# The counters of every transformation of optax lie on all devices after the first step only.
assert all(c[1:] == [c[1]] * 4 and c[1] <= 2 for c in sizes.values()), sizes
print(sizes)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, mode],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
