"""What dropout and batch normalisation do to the correction of SVRG, measured.

    python -m experiments.examples.randomness

A perceptron with two hidden layers, on the digits. The seed of a sample's dropout mask stands
beside its pixels and its label, so that it is plain who draws it and when.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import asvrg
from asvrg import transforms
from asvrg.errors import INT32, check_count
from asvrg.types import Array
from experiments import datasets, launch

N, B, M = 1408, 32, 44  # an epoch is one pass, so that the batches of a pass are all samples
WIDTH, STEP, DROPPED = 64, 0.2, 0.5

FOOTNOTE = """
variance removed: by the correction, in the last 100 steps or so, as a share of the variance of
a mini-batch's gradient at the snapshot; below 0 it was added.
mu off by: ||mean of g_s - mu|| / ||mu|| at the last snapshot. The mean is over 20 passes over all
samples in batches, so if the f_i are fixed there is nothing but rounding."""

Params = list[tuple[Array, Array]]  # weights and biases of the layers
Batch = tuple[Array, Array, Array]  # pixels [b, 64], labels [b], seeds of the masks [b]
Stats = list[tuple[Array, Array]]  # means and variances [width] of the hidden layers


class Case(NamedTuple):
    """A kind of network, and who draws its randomness.

    Attributes:
      name: of the line in the table.
      norm: "" for none, "layer", "batch" (its own statistics), "frozen" (those of the snapshot).
      dropout: "" for none, "fresh" (seeds drawn for every gradient), "shared" (for every step, one
        for g and g_s alike), "fixed" (once, with the data).
    """

    name: str
    norm: str = ""
    dropout: str = ""


CASES = (
    Case("plain"),
    Case("layer normalisation", norm="layer"),
    Case("batch normalisation", norm="batch"),
    Case("  statistics frozen", norm="frozen"),
    Case("dropout, fresh seeds", dropout="fresh"),
    Case("  g and g_s share them", dropout="shared"),
    Case("  one for each sample", dropout="fixed"),
)


def forward(case: Case, params: Params, batch: Batch, frozen: Stats | None) -> tuple[Array, Stats]:
    """The logits, and the statistics of this batch."""
    x, _, seeds = batch
    stats = []
    for i, (weights, biases) in enumerate(params[:-1]):
        x = x @ weights + biases[None]
        stats.append((jnp.mean(x, axis=0), jnp.var(x, axis=0)))
        if case.norm == "layer":
            x = jax.nn.standardize(x, epsilon=1e-5)
        elif case.norm:
            mean, variance = stats[i] if frozen is None else frozen[i]
            x = (x - mean[None]) * jax.lax.rsqrt(variance + 1e-5)[None]
        x = jnp.tanh(x)
        if case.dropout:
            keys = jax.vmap(lambda seed, i=i: jax.random.fold_in(jax.random.key(seed), i))(seeds)
            draw = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - DROPPED, (WIDTH,)))
            x = jnp.where(draw(keys), x / (1 - DROPPED), 0)
    weights, biases = params[-1]
    return x @ weights + biases[None], stats


def mean_loss(case: Case, params: Params, batch: Batch, frozen: Stats | None) -> Array:
    """The mean of f_i over the batch, if there are any f_i."""
    logits, _ = forward(case, params, batch, frozen)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def measure(
    case: Case, inputs: np.ndarray, labels: np.ndarray, *, num_epochs: int, seed: int
) -> tuple[float, float]:
    """Trains with SVRG.

    Returns:
      The share of the variance that was removed, and by how much mu was off, as under the table.
    """
    rng = np.random.default_rng(seed)
    sizes = (inputs.shape[1], WIDTH, WIDTH, 10)
    params: Params = [
        (jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32), jnp.zeros(s[1], jnp.float32))
        for s in itertools.pairwise(sizes)
    ]
    data_seeds = rng.integers(2**32, size=N, dtype=np.uint32)

    def batch_of(rows: np.ndarray) -> Batch:
        fixed = case.dropout == "fixed"
        seeds = data_seeds[rows] if fixed else rng.integers(2**32, size=len(rows), dtype=np.uint32)
        return inputs[rows], labels[rows], seeds

    grad = jax.jit(jax.grad(functools.partial(mean_loss, case)))
    statistics = jax.jit(functools.partial(forward, case))
    optimiser = optax.chain(asvrg.svrg(), optax.scale(-STEP))

    @jax.jit
    def step(
        params: Params, state: optax.OptState, batch: Batch, again: Batch, stats: Stats | None
    ) -> tuple[Params, optax.OptState]:
        updates, state = optimiser.update(
            grad(params, batch, stats), state, params, grad_fn=lambda p: grad(p, again, stats)
        )
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for _ in range(num_epochs):
        data = batch_of(np.arange(N))
        stats = statistics(params, data, None)[1] if case.norm == "frozen" else None
        state = transforms.refresh(state, params, grad(params, data, stats))
        for _ in range(M):
            rows = rng.integers(N, size=B)
            batch = batch_of(rows)
            again = batch_of(rows) if case.dropout == "fresh" else batch
            params, state = step(params, state, batch, again, stats)

    telemetry, mu = state[0].telemetry, state[0].full_grad
    passes = np.concatenate([rng.permutation(N).reshape(M, B) for _ in range(20)])
    grads = [grad(state[0].snapshot, batch_of(rows), stats) for rows in passes]
    off = jax.tree.map(lambda full, *parts: np.mean(parts, axis=0) - full, mu, *grads)
    return (
        float(telemetry.reduction / telemetry.variance),
        float(optax.tree.norm(off) / optax.tree.norm(mu)),
    )


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this example."""
    flags.DEFINE_integer("num_epochs", 20, "Inner loops, of one pass each.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the parameters and of all draws.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Prints a line for each case."""
    num_epochs = check_count("--num_epochs", values.num_epochs, limit=INT32)
    digits = datasets.load("digits", num_train=N, seed=values.seed)
    print(f"{'':24}variance removed   mu off by")
    for case in CASES:
        removed, off = measure(
            case, digits.train_inputs, digits.train_labels, num_epochs=num_epochs, seed=values.seed
        )
        print(f"{case.name:24}{removed:16.0%}{off:12.1e}", flush=True)
    print(FOOTNOTE)
    return 0


if __name__ == "__main__":
    launch.start(main, define_flags)
