"""The shared buffer: aliased by XLA, and written nowhere but where it is meant to be."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from asvrg.drivers import threads
from asvrg.errors import InputError
from asvrg.types import Delta


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dim", [1, 3, 16, 1_001])
def test_buffers_are_aligned_and_views_live(dim: int, dtype: str) -> None:
    x = np.arange(dim).astype(dtype)
    buffer = threads.shared_buffer(x)
    assert buffer.ctypes.data % 64 == 0
    assert buffer.dtype == dtype
    np.testing.assert_array_equal(buffer, x)
    view = threads.live_view(buffer)
    buffer += 1
    np.testing.assert_array_equal(view, x + 1)
    np.testing.assert_array_equal(jax.jit(lambda x: x + 1)(view), x + 2)
    np.testing.assert_array_equal(x, np.arange(dim))  # a copy


def test_views_that_would_not_live_are_refused() -> None:
    with pytest.raises(InputError, match="buffer must be aligned to 64 bytes"):
        threads.live_view(threads.shared_buffer(np.zeros(9))[1:])


@pytest.mark.parametrize("block", [None, [[0, 2], [2, 4]]])
def test_add_touches_its_blocks_and_nothing_else(block) -> None:
    buffer = np.array([-0.0, -0.0, 1.0, np.nan, 5.0])
    values = np.array([[1.0, 2, 3, 4, 5], [1, 1, 1, 1, 1]])
    expected = [2.0, 3.0, 5.0, np.nan, 11.0]
    if block is not None:
        values, expected = values[:, :2], [1.0, -0.0, 4.0, np.nan, 6.0]
        block = np.array(block)
    threads.add(buffer, Delta(block, values))
    np.testing.assert_array_equal(buffer, expected)
    np.testing.assert_array_equal(np.signbit(buffer), np.signbit(expected))
