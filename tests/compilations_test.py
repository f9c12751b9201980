"""Compiled code is there at the next start, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import logging, os, signal, sys
import jax, jax.numpy as jnp
from experiments import compilations
logging.basicConfig(stream=sys.stdout)
jax.config.update("jax_log_compiles", True)
with compilations.kept(os.environ):
    print(jax.jit(lambda a: jnp.sin(a) @ a)(jnp.ones((3, 3)))[0, 0])
    if "die" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    if "raise" in sys.argv:
        raise KeyboardInterrupt
print(jax.config.jax_compilation_cache_dir)
"""


def start(home: Path, *argv: str, **settings: str) -> tuple[int, bool]:
    """The exit code of a process, and whether it found its compiled code."""
    own = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"XDG_CACHE_HOME": str(home), **settings}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
    )
    if done.returncode == 0:
        assert done.stdout.endswith("None\n")
    return done.returncode, "Persistent compilation cache hit for 'jit__lambda'" in done.stdout


def entries(home: Path) -> list[Path]:
    return sorted(home.glob("asvrg/compiled/*/*"))


def test_the_next_start_does_not_compile_again(tmp_path: Path) -> None:
    assert start(tmp_path) == (0, False)
    held = entries(tmp_path)
    assert held
    assert all(path.name.endswith("-cache") for path in held)
    assert start(tmp_path) == (0, True)
    assert entries(tmp_path) == held


def test_what_is_killed_or_interrupted_adds_nothing(tmp_path: Path) -> None:
    assert start(tmp_path, "die")[0] == -signal.SIGKILL
    assert [path.name[:8] for path in entries(tmp_path)] == ["process-"]
    os.utime(entries(tmp_path)[0], (0, 0))  # long ago
    assert start(tmp_path, "raise")[0] != 0
    assert entries(tmp_path) == []


@pytest.mark.skipif(
    os.geteuid() == 0, reason="needs a user other than root, who may write everywhere"
)
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert start(tmp_path) == (0, False)


def test_a_file_in_its_place_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "asvrg").write_text("not a folder")
    assert start(tmp_path) == (0, False)


def test_a_setting_of_the_user_stays(tmp_path: Path) -> None:
    assert start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0") == (0, False)
    assert entries(tmp_path) == []
