"""What the tests of the threads' driver share."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Iterator

import jax.numpy as jnp

from asvrg import objectives
from asvrg.drivers import threads
from asvrg.estimators import Estimator
from asvrg.types import Snapshot

MODES = [
    m for m in itertools.product(threads.READS, threads.WRITES) if m != ("consistent", "lock_free")
]
# Every direction is -1 in every coordinate: with a step of 1 the buffer counts its updates.
COUNTING = Estimator(
    prepare=lambda x, data, map_fn: Snapshot(),
    estimate=lambda x, snapshot, data, draw: -jnp.ones_like(objectives.on_block(x, draw.block)),
    grad_evals=lambda n, b, m: 0,
)


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("asvrg")]


@contextlib.contextmanager
def eager_switching() -> Iterator[None]:
    """Has the interpreter change threads after every few instructions."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
