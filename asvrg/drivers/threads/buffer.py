"""The shared buffer: numpy writes it, XLA reads it in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from asvrg.errors import InputError
from asvrg.types import Array, Delta

_ALIGNMENT = 64  # bytes; XLA aliases a numpy buffer of this alignment, and copies any other


def shared_buffer(x: Array) -> np.ndarray:
    """A copy of x that numpy writes and XLA reads in place.

    Args:
      x: float [d].

    Returns:
      A writable numpy array [d] whose first byte lies at a multiple of 64, of the dtype that jax
      gives x: float64 becomes float32 unless jax_enable_x64 is set.

    >>> shared_buffer(np.arange(3.0)).ctypes.data % 64
    0
    """
    x = np.asarray(jnp.asarray(x))
    room = np.empty(x.nbytes + _ALIGNMENT, np.uint8)
    offset = -room.ctypes.data % _ALIGNMENT
    buffer = room[offset : offset + x.nbytes].view(x.dtype)
    np.copyto(buffer, x)
    return buffer


def live_view(buffer: np.ndarray) -> jax.Array:
    """The buffer as a jax array that always holds what the buffer holds now.

    Args:
      buffer: float [d], from `shared_buffer`.

    Returns:
      A jax array on the CPU, at the same address.

    Raises:
      InputError: XLA would copy the buffer: it is not aligned, or not on this device.

    >>> buffer = shared_buffer(np.zeros(2, np.float32))
    >>> view = live_view(buffer)
    >>> buffer[0] = 1
    >>> view
    Array([1., 0.], dtype=float32)
    """
    view = jnp.from_dlpack(buffer)
    if view.unsafe_buffer_pointer() != buffer.ctypes.data:
        raise InputError(
            "buffer must be aligned to 64 bytes on the CPU, as shared_buffer makes it, got one "
            "that XLA copies."
        )
    return view


def add(buffer: np.ndarray, delta: Delta) -> None:
    """Adds deltas [r, B] or [r, d] to the shared buffer in place, one after the other.

    Only the coordinates of the blocks are touched: a masked addition over all of x would undo what
    other threads write in the meantime, even to other coordinates.

    Args:
      buffer: float [d], changed.
      delta: of r iterations: block int [r, B] and values [r, B], or None and values [r, d].

    >>> buffer = np.zeros(3)
    >>> add(buffer, Delta(np.array([[0, 2], [1, 2]]), np.array([[1.0, 2.0], [3.0, 4.0]])))
    >>> buffer
    array([1., 3., 6.])
    """
    values = np.asarray(delta.values)
    if delta.block is None:
        for row in values:
            buffer += row
    else:
        # numpy converts other indices one by one, which takes longer than the additions.
        np.add.at(buffer, np.asarray(delta.block).astype(np.intp).ravel(), values.ravel())
