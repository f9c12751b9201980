"""A small transformer of flax that predicts the next character of Python's own help texts.

    python -m experiments.examples.transformer

A sample is a window of text, and f_i the mean loss of its characters. LayerNorm takes its mean and
variance from one token at a time, so the other windows of a batch have no part in f_i. Dropout is
left out: it would make f_i random.

The threads of fit are left out as well. They take plain steps, with which a transformer learns
slowly: after as many gradients their training loss was 2.45 (step 0.3; 2.56 with 0.1, and 1 is too
large).
"""

from __future__ import annotations

import functools
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import linen

import asvrg
from asvrg import transforms
from asvrg.errors import InputError, check_count
from asvrg.types import Array, PyTree
from experiments import launch
from experiments.examples import comparison
from experiments.examples.comparison import Row

NUM_CODES = 128  # of ASCII
NUM_TEST = 256  # windows
# Of 0.001, 0.003, 0.01 and 0.03 the best with each of the three methods.
STEP = 0.01


class Block(linen.Module):
    """Causal self-attention and a layer of hidden units, each behind a LayerNorm and added to x."""

    num_heads: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Tokens [b, length, width] -> the same shape."""
        width, causal = x.shape[-1], linen.make_causal_mask(x[..., 0])
        attention = linen.MultiHeadDotProductAttention(self.num_heads)
        x = x + attention(linen.LayerNorm()(x), mask=causal)
        hidden = linen.gelu(linen.Dense(4 * width)(linen.LayerNorm()(x)))
        return x + linen.Dense(width)(hidden)


class Decoder(linen.Module):
    """Embeddings of characters and of their places, blocks, and a linear layer."""

    width: int
    num_layers: int
    num_heads: int = 4

    @linen.compact
    def __call__(self, codes: Array) -> Array:
        """Characters [b, length] -> logits [b, length, NUM_CODES] of the characters after them."""
        places = jnp.arange(codes.shape[-1])
        x = linen.Embed(NUM_CODES, self.width, name="characters")(codes)
        x = x + linen.Embed(len(places), self.width, name="places")(places)[None]
        for _ in range(self.num_layers):
            x = Block(self.num_heads)(x)
        return linen.Dense(NUM_CODES, name="logits")(linen.LayerNorm()(x))


def load_windows(length: int, num_train: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Python's help texts in windows: int32 [num_train, length + 1] and [NUM_TEST, length + 1].

    The last character of a window is only predicted.
    """
    text = "".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    most = len(text) // (length + 1) - NUM_TEST
    if most < 1:
        raise InputError(f"--length must leave some windows to train on, got {length}.")
    check_count("--num_train", num_train, most=most)
    codes = np.frombuffer(text, np.uint8).astype(np.int32)
    windows = codes[: (most + NUM_TEST) * (length + 1)].reshape(-1, length + 1)
    windows = np.random.default_rng(seed).permutation(windows)
    return windows[NUM_TEST:][:num_train], windows[:NUM_TEST]


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this example."""
    comparison.define_flags(values, num_epochs=6, batch_size=16, num_train=2048)
    flags.DEFINE_integer("length", 32, "Characters of a window.", flag_values=values)
    flags.DEFINE_integer("width", 32, "Of a token, a multiple of 4.", flag_values=values)
    flags.DEFINE_integer("num_layers", 2, "Blocks of the decoder.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Prints what Adam makes of the same number of gradients, without svrg() and with it."""
    check_count("--length", values.length)
    check_count("--num_layers", values.num_layers, most=comparison.LAYERS)
    check_count("--seed", values.seed, least=0, most=2**32 - 1)
    if check_count("--width", values.width, most=comparison.WIDTH) % Decoder.num_heads:
        raise InputError(f"--width must be a multiple of 4, got {values.width}.")
    train_windows, test_windows = load_windows(values.length, values.num_train, values.seed)
    n, b = len(train_windows), values.batch_size
    budget = comparison.budget(values, n)

    network = Decoder(values.width, values.num_layers)
    start = jax.jit(network.init)(jax.random.key(values.seed), train_windows[:1, :-1])

    @jax.jit
    def mean_loss(params: PyTree, windows: Array) -> Array:
        logits = network.apply(params, windows[:, :-1])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    grad = jax.jit(jax.grad(mean_loss))

    def train(
        optimiser: optax.GradientTransformationExtraArgs, num_steps: int, every: int | None = None
    ) -> tuple[PyTree, optax.OptState]:
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def move(
            params: PyTree, opt_state: optax.OptState, g: PyTree, g_s: PyTree | None
        ) -> tuple[PyTree, optax.OptState]:
            updates, opt_state = optimiser.update(g, opt_state, params, snapshot_grad=g_s)
            return optax.apply_updates(params, updates), opt_state

        params = jax.tree.map(jnp.copy, start)  # as the first step is given its buffers
        opt_state, g_s = optimiser.init(params), None
        for t, batch in enumerate(comparison.batches(train_windows, b, num_steps, values.seed)):
            if every is not None:
                if t % every == 0:
                    parts = comparison.chunks(train_windows, 128)
                    full_grad = transforms.over_batches(grad, params, parts)
                    opt_state = transforms.refresh(opt_state, params, full_grad)
                # Both gradients by one compiled function: a network is not compiled thrice.
                g_s = grad(optax.tree.get(opt_state, "snapshot"), batch)
            params, opt_state = move(params, opt_state, grad(params, batch), g_s)
        return params, opt_state

    def adam(num_steps: int) -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(STEP, num_steps)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    m, num_steps = budget.every, budget.svrg_steps
    svrg = optax.chain(asvrg.svrg(), adam(num_steps))
    decay = optax.linear_schedule(1.0, 0.0, num_steps)
    alpha = optax.chain(asvrg.svrg(alpha=decay), adam(num_steps))

    def evaluate(params: PyTree) -> tuple[Array, str]:
        return mean_loss(params, train_windows), f"{mean_loss(params, test_windows):.4g}"

    comparison.print_table(
        f"Help texts: n = {n} windows of {values.length} characters, b = {b}, m = {m}, "
        f"d = {optax.tree.size(start):,}.",
        evaluate,
        start,
        [
            Row("adam", b * budget.sgd_steps, *train(adam(budget.sgd_steps), budget.sgd_steps)),
            Row("svrg, adam", budget.gradients, *train(svrg, num_steps, m)),
            Row("alpha-svrg, adam", budget.gradients, *train(alpha, num_steps, m)),
        ],
        score="test loss",
    )
    return 0


if __name__ == "__main__":
    launch.start(main, define_flags)
