"""Strict JAX for every test and doctest, set before the first import of jax.

What one test has compiled serves the others, of this run alone: many of them train the same small
network, and a third of their time would go to compiling it again. The processes that tests start
have a folder of their own, as one that is killed may leave half an entry behind.

One thread for each computation, and no thread of XLA's own between a caller and its result: the
tests then measure nothing but the code, and Python threads that call jitted functions still run
side by side. On the CPU, jax reads the size of its thread pools from NPROC.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

os.environ.setdefault("NPROC", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_cpu_enable_async_dispatch", False)
if "PYTEST_XDIST_WORKER" not in os.environ:  # these inherit the folders of the process above them
    _compiled = tempfile.TemporaryDirectory(prefix="asvrg-compiled-")
    os.environ["ASVRG_COMPILED"] = _compiled.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_compiled.name, "started")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["ASVRG_COMPILED"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _doctests_print_what_a_reader_gets(request: pytest.FixtureRequest) -> Iterator[None]:
    """Doctests run in jax's default precision and promotion, as a reader would type them."""
    is_doctest = isinstance(request.node, pytest.DoctestItem)
    jax.config.update("jax_enable_x64", not is_doctest)
    jax.config.update("jax_numpy_dtype_promotion", "standard" if is_doctest else "strict")
    yield
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
