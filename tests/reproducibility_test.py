"""The same numbers from run to run, and nearly the same on a processor with other instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import checkpoints, train_shared
from tests import binaries

ROOT = Path(__file__).parent.parent
FLAGS = (
    *binaries.SMALL,
    "--driver=simulate",
    "--num_threads=3",
    "--num_epochs=8",
    "--inner_steps=200",
)
# Of x^8, whose entries are of the order of 1, and relative of the losses, of which nine digits are
# written.
TOLERANCE = {"float32": (1e-3, 1e-4), "float64": (1e-11, 2e-9)}
CODE = "import sys; from experiments import launch, train_shared as t; " + (
    "sys.exit(launch.run(t.main, t.define_flags, sys.argv))"
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_another_processor_gives_the_same_losses_to_the_stated_tolerance(
    dtype: str, tmp_path: Path
) -> None:
    """XLA makes code for a processor of 2008: other products in another order."""
    flags = (*FLAGS, f"--dtype={dtype}")
    for name in ("here", "again"):
        assert binaries.run(train_shared, *flags, f"--out_dir={tmp_path / name}") == 0
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2", "JAX_ENABLE_X64": "1"}
    subprocess.run(
        [sys.executable, "-c", CODE, *flags, f"--out_dir={tmp_path / 'there'}"],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=100,
        capture_output=True,
    )
    names = ("here", "again", "there")
    kept = [checkpoints.load(tmp_path / name) for name in names]
    x, again, elsewhere = (each.state.x for each in kept if each is not None)
    assert x.tobytes() == again.tobytes() != elsewhere.tobytes()
    of_x, of_losses = TOLERANCE[dtype]
    np.testing.assert_allclose(x, elsewhere, rtol=0, atol=of_x)
    here, _, there = (binaries.read_metrics(tmp_path / name) for name in names)
    for name in ("train_loss", "test_loss"):
        one, two = (np.array([float(row[name]) for row in rows]) for rows in (here, there))
        np.testing.assert_allclose(one, two, rtol=of_losses)
        assert one[-1] < 0.5 * one[0]
