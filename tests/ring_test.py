"""The ring of deltas against a transcription of Equation (6) in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from asvrg import sampling
from asvrg.drivers.simulate import ring
from tests.simulate_test import (
    CLOSE,
    DATA,
    DIM,
    GROUPS,
    LR,
    SNAPSHOT,
    START,
    SVRG,
    M,
    equation_6,
    sampler,
)


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("scale", [None, np.linspace(1, 2, M)])
def test_any_subset_of_earlier_updates_may_be_missing(block_size, scale) -> None:
    depth = 6
    missing = np.random.default_rng(0).random((M, depth, 3)) < 0.5
    draws = sampling.Stream(sampler(block_size), 0, 0).take(M)
    found, _, _ = ring.delayed_steps(
        SVRG,
        START,
        ring.empty_ring(block_size, DIM, depth, START.dtype),
        SNAPSHOT,
        DATA,
        draws,
        missing,
        GROUPS,
        scale,
        np.float64(LR),
    )
    lacks = np.zeros((M, M, DIM), bool)
    for t in range(M):
        for i in range(min(depth, t)):
            lacks[t, t - 1 - i] = missing[t, i, GROUPS]
    *_, expected = equation_6(draws, lacks, scale)
    np.testing.assert_allclose(found, expected, **CLOSE)
