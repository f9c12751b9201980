"""What the examples share: flags, draws, equal numbers of gradients for all methods, the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from absl import flags

from asvrg.errors import INT32, check_count
from asvrg.types import Array, Data, PyTree
from experiments import datasets
from experiments.datasets import Dataset

# More than any of the examples can make use of: what is larger is a slip of the finger.
THREADS, WIDTH, LAYERS = 1 << 14, 1 << 14, 1 << 8

FOOTNOTE = """
gradients: of single samples, those of full gradients included.
variance removed: by the correction, in the last 100 steps or so, as a share of the variance of
a mini-batch's gradient at the snapshot; below 0 it was added.
best alpha: the constant coefficient that would have removed most."""

# Parameters -> the training loss, and the score on the test samples.
Evaluate = Callable[[PyTree], tuple[Array, str]]


class Budget(NamedTuple):
    """What the methods may spend: the gradients of `num_epochs` inner loops of SVRG.

    Attributes:
      every: m, the steps of an inner loop.
      svrg_steps: num_epochs m.
      sgd_steps: as many as cost the same, at b gradients each, or up to b less.
      gradients: what SVRG computes, num_epochs (n + 2 b m).
    """

    every: int
    svrg_steps: int
    sgd_steps: int
    gradients: int


class Row(NamedTuple):
    """What a method made of the budget.

    Attributes:
      method: its name.
      gradients: component gradients that it computed.
      params: the parameters at the end.
      opt_state: of optax, with what svrg() measured if it was in the chain.
    """

    method: str
    gradients: int
    params: PyTree
    opt_state: optax.OptState = None


def define_flags(
    values: flags.FlagValues, *, num_epochs: int, batch_size: int, num_train: int | None = None
) -> None:
    """Adds the flags that all examples have, with these defaults."""
    flags.DEFINE_integer(
        "num_epochs",
        num_epochs,
        "Inner loops of SVRG; methods without it get as many gradients.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_size", batch_size, "b, samples of a mini-batch.", flag_values=values
    )
    flags.DEFINE_integer(
        "every", None, "m, steps from one snapshot to the next. Default: n / b.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_train", num_train, "n. Default: all there are, or as said.", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Of the parameters and of all draws.", flag_values=values)


def define_image_flags(values: flags.FlagValues) -> None:
    """Adds the flags of the data set, to examples on images."""
    flags.DEFINE_enum(
        "dataset", "digits", ("digits", "mnist", "fashion_mnist"), "Data set.", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", None, "Folder with its files. Default: $ASVRG_DATA_DIR.", flag_values=values
    )


def load_images(values: flags.FlagValues) -> Dataset:
    """The data set that the flags describe."""
    return datasets.load(values.dataset, values.data_dir, values.num_train, seed=values.seed)


def budget(values: flags.FlagValues, num_samples: int) -> Budget:
    """The budget that the flags describe.

    Args:
      values: parsed.
      num_samples: n.

    Returns:
      A Budget.

    Raises:
      InputError: a number among the flags is not accepted.
    """
    b = check_count("--batch_size", values.batch_size, most=num_samples)
    every = -(-num_samples // b)
    if values.every is not None:
        every = check_count("--every", values.every, limit=INT32)
    steps = check_count("--num_epochs", values.num_epochs, limit=INT32) * every
    check_count("--num_epochs times --every, the steps,", steps, limit=INT32)
    gradients = values.num_epochs * num_samples + 2 * b * steps
    return Budget(every, steps, gradients // b, gradients)


def batches(data: Data, batch_size: int, num_steps: int, seed: int) -> Iterator[Data]:
    """Mini-batches out of arrays; each sample is drawn uniformly, whatever was drawn before."""
    rng = np.random.default_rng(seed)
    n = len(jax.tree.leaves(data)[0])
    for _ in range(num_steps):
        rows = rng.integers(n, size=batch_size)
        yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], data)


def chunks(data: Data, size: int) -> Iterator[Data]:
    """Arrays as a loader would give them, `size` samples at once and at the end what is left."""
    for i in range(0, len(jax.tree.leaves(data)[0]), size):
        yield jax.tree.map(lambda leaf, i=i: leaf[i : i + size], data)


def print_table(
    title: str, evaluate: Evaluate, start: PyTree, rows: Sequence[Row], *, score: str
) -> None:
    """Prints what the methods came to, and what the telemetry says of the correction.

    Args:
      title: the line above.
      evaluate: parameters -> the training loss, and the score on the test samples.
      start: the parameters before the first step.
      rows: one for each method, first the one that the others are held against.
      score: what the scores are.
    """
    losses, scores = zip(*(evaluate(row.params) for row in rows), strict=True)
    cells = [
        ["", "gradients", "training loss", score, "variance removed", "best alpha"],
        ["start", "0", f"{evaluate(start)[0]:.4g}", "", "", ""],
        *(
            [row.method, f"{row.gradients:,}", f"{loss:.4g}", reached, *_measured(row.opt_state)]
            for row, loss, reached in zip(rows, losses, scores, strict=True)
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(title + "\n")
    for name, *others in cells:
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("   ".join([name.ljust(widths[0]), *right]).rstrip())
    print(FOOTNOTE)
    for row, loss in list(zip(rows, losses, strict=True))[1:]:
        word = "below" if loss < losses[0] else "above"
        print(
            f"The training loss of {row.method} ends {word} that of {rows[0].method}, with "
            f"{row.gradients / rows[0].gradients:.2f} times the gradients."
        )


def _measured(opt_state: optax.OptState) -> tuple[str, str]:
    telemetry = optax.tree.get(opt_state, "telemetry")
    if telemetry is None:
        return "", ""
    _, variance, covariance, reduction = map(float, telemetry)
    return f"{reduction / variance:.0%}", f"{covariance / variance:.2f}"
