"""The installation: pins against ranges, what an import needs and does, MPI, install.sh itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import mpi_jobs

ROOT = pathlib.Path(__file__).parent.parent
PINS = ROOT / "third_party" / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What each file of pins promises to hold; [bench] stays out, as torch brings gigabytes.
PROMISED = {
    "run.txt": [*PROJECT["dependencies"], *EXTRAS["experiments"]],
    "test.txt": [*PROJECT["dependencies"], *EXTRAS["experiments"], *EXTRAS["mpi"], *EXTRAS["test"]],
}


def read_pins(name: str) -> dict[str, str]:
    """Returns the versions that a file of pins gives, by canonical name."""
    lines = re.findall(r"^([\w.-]+)==(\S+)", (PINS / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in lines}


def run_python(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in an interpreter of its own, as a user of the library would start it."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_every_dependency_is_pinned_within_its_range(name):
    pins = read_pins(name)
    for line in PROMISED[name]:
        requirement = Requirement(line)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{name} lacks {requirement.name}"
        assert requirement.specifier.contains(pin), f"{name} has {pin} for {line}"


def test_tests_run_with_the_versions_that_users_run():
    run, test = read_pins("run.txt"), read_pins("test.txt")
    assert run.items() <= test.items()
    assert not [package for package in test if package.startswith(("nvidia", "cuda", "torch"))]


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_every_pin_has_hashes_and_no_address(name):
    text = (PINS / name).read_text()
    for entry in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]:
        assert re.match(r"[\w.-]+==[\w.]+", entry), f"not pinned: {entry.splitlines()[0]}"
        assert "--hash=sha256:" in entry, f"no hash: {entry.splitlines()[0]}"
    # Neither addresses, nor options that name an index, nor folders of the machine that made it.
    assert not re.search(r"://|--(extra-)?index-url|--find-links| @ |(^|[\s=])/\w", text)


def test_no_file_records_where_packages_were_downloaded():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    address = re.compile(rb"://[^\s\"'<>]+(/simple/|/packages/|\.whl\b)")
    files = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    assert [str(path) for path in files if address.search(path.read_bytes())] == []


def import_names(*, outside_core: bool) -> list[str]:
    """Returns the top-level modules of installed packages that the core needs, or does not need."""
    core, queue = {canonicalize_name(PROJECT["name"])}, list(PROJECT["dependencies"])
    while queue:
        requirement = Requirement(queue.pop())
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in core:
            core.add(name)
            queue += importlib.metadata.requires(name) or []
    return [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if outside_core == core.isdisjoint(map(canonicalize_name, owners))
    ]


# asvrg and all its modules, but for the two that are there to import MPI.
# Without what is imported when it is needed: it starts MPI, or imports orbax.
IMPORT_ALL = """
import importlib, pkgutil
import asvrg
LATER = "drivers.mpi.transport", "drivers.mpi.exchange", "checkpoints.orbax_files"
for module in pkgutil.walk_packages(asvrg.__path__, "asvrg."):
    if module.name.removeprefix("asvrg.") not in LATER:
        importlib.import_module(module.name)
"""


def test_core_imports_need_only_the_core_dependencies():
    blocked = import_names(outside_core=True)
    assert {"matplotlib", "pytest", "sklearn", "tqdm"} <= set(blocked)
    assert {"absl", "jax", "numpy", "scipy"}.isdisjoint(blocked)
    result = run_python(
        f"""
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {blocked!r}:
                    raise ModuleNotFoundError(f"{{name}} is not a core dependency", name=name)

        sys.meta_path.insert(0, Blocker())
        """
        + textwrap.indent(IMPORT_ALL, " " * 8)
    )
    assert result.returncode == 0, result.stderr


def test_importing_asvrg_changes_nothing():
    result = run_python(
        """
        import json, os, sys
        import absl.flags, absl.app, absl.logging, chex, jax, jax.scipy, numpy, optax

        def state():
            return {
                "environment": dict(os.environ),
                "threads": len(os.listdir("/proc/self/task")),
                "flags": sorted(absl.flags.FLAGS),
                "jax": {name: str(value) for name, value in jax.config.values.items()},
            }

        before = state()
        """
        + textwrap.indent(IMPORT_ALL, " " * 8)
        + """
        after = state()
        # Fails where a backend is up already: jax then no longer looks at the setting.
        jax.config.update("jax_platforms", "nowhere")
        try:
            backend_started = bool(jax.devices())
        except RuntimeError:
            backend_started = False
        print(json.dumps([before, after, backend_started, "mpi4py" in sys.modules]))
        """
    )
    assert result.returncode == 0, result.stderr
    before, after, backend_started, mpi_imported = json.loads(result.stdout)
    assert before == after
    assert not backend_started
    assert not mpi_imported


MPI_PROGRAM = """
import pathlib
import jax
import jax.numpy as jnp
import numpy as np
from mpi4py import MPI
import mpi4jax

world = MPI.COMM_WORLD
rank, size = world.Get_rank(), world.Get_size()
assert size == 2, f"{size} ranks, wanted 2"
jax_comm, numpy_comm = world.Clone(), world.Clone()


@jax.jit
def sum_and_swap(x):
    total = mpi4jax.allreduce(x, op=MPI.SUM, comm=jax_comm)
    if rank == 0:
        mpi4jax.send(x, dest=1, comm=jax_comm)
        return total, mpi4jax.recv(x, source=1, comm=jax_comm)
    received = mpi4jax.recv(x, source=0, comm=jax_comm)
    mpi4jax.send(x, dest=0, comm=jax_comm)
    return total, received


ramp = np.arange(5, dtype=np.float32)
total, received = sum_and_swap(jnp.asarray(ramp + 10 * rank))
np.testing.assert_array_equal(total, 2 * ramp + 10)
np.testing.assert_array_equal(received, ramp + 10 * (1 - rank))

buffer = ramp + 1 if rank == 0 else np.zeros_like(ramp)
if rank == 0:
    numpy_comm.Send(buffer, dest=1, tag=7)
else:
    numpy_comm.Recv(buffer, source=0, tag=7)
np.testing.assert_array_equal(buffer, ramp + 1)
pathlib.Path(__file__).with_name(f"rank {rank} is right").touch()
"""


@mpi_jobs.needs_mpi4jax
def test_two_mpi_ranks_exchange_arrays_inside_and_outside_jit(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(MPI_PROGRAM)
    result = mpi_jobs.mpiexec(["-W", "error", str(program)], 2, timeout=120)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.glob("rank *")) == [
        "rank 0 is right",
        "rank 1 is right",
    ]


# Stands for python3: makes a "virtual environment" of itself, and writes down the calls of pip.
FAKE_PYTHON = """#!/bin/sh
if [ "$1" = -m ] && [ "$2" = venv ]; then
  echo venv >>"$CALLS"
  mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
elif [ "$1" = -m ] && [ "$2" = pip ] && [ "$3" = install ]; then
  for last; do true; done
  echo "pip ${last##*/}" >>"$CALLS"
  case $last in
    */mpi4jax.txt) ls "$CUDA_PATH" "$CMPLR_ROOT" >/dev/null && [ ! -e "$CUDA_PATH/include" ] ;;
  esac || exit 1
  if [ -n "$PIP_DIES" ]; then kill -9 "$PPID"; fi
  exit "${PIP_STATUS:-0}"
else
  exit "${PROBE_STATUS:-0}"
fi
"""
WHEELS, EDITABLE = "pip wheels.txt", "pip ."
MPICH, MPI4JAX = "pip mpich.txt", "pip mpi4jax.txt"


class FakeMachine:
    """A copy of what install.sh reads, on a machine whose only Python is FAKE_PYTHON."""

    def __init__(self, folder: pathlib.Path):
        self.root = folder / "checkout"
        self.calls = folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        shutil.copytree(ROOT / "third_party", self.root / "third_party")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        tools = "awk bash cat cp dirname flock grep ls mkdir mktemp rm sh sha256sum tail true"
        for tool in tools.split():
            found = shutil.which(tool)
            assert found, f"this machine has no {tool}"
            (self.bin / tool).symlink_to(found)
        (self.bin / "c++").symlink_to(self.bin / "true")
        (self.bin / "python3").write_text(FAKE_PYTHON)
        (self.bin / "python3").chmod(0o755)

    def install(self, *args: str, **env: str) -> tuple[int, list[str], str]:
        """Returns the exit status of install.sh, the calls that it made, and what it printed."""
        self.calls.write_text("")
        result = subprocess.run(
            [self.root / "third_party" / "install.sh", *args],
            env={"PATH": str(self.bin), "CALLS": str(self.calls), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return result.returncode, self.calls.read_text().splitlines(), result.stdout


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def test_install_does_nothing_twice(machine):
    assert machine.install("run")[:2] == (0, ["venv", WHEELS, EDITABLE])
    assert machine.install("run")[:2] == (0, [])
    assert machine.install("test")[:2] == (0, [WHEELS, EDITABLE, MPICH, MPI4JAX])
    assert machine.install("test")[:2] == (0, [])
    assert machine.install("run")[:2] == (0, []), "what the tests need holds all that a run needs"


def test_install_follows_changed_pins(machine):
    machine.install("run")
    with (machine.root / "third_party" / "requirements" / "run.txt").open("a") as file:
        file.write("# changed\n")
    assert machine.install("run")[:2] == (0, [WHEELS, EDITABLE])


def test_install_completes_a_failed_call(machine):
    status, calls, output = machine.install("run", PIP_STATUS="1")
    assert (status, calls) == (1, ["venv", WHEELS])
    assert "pip failed" in output
    assert machine.install("run")[:2] == (0, [WHEELS, EDITABLE])


def test_install_starts_anew_after_a_call_that_was_cut_off(machine):
    status, calls, _ = machine.install("run", PIP_DIES="1")
    assert status != 0
    assert calls == ["venv", WHEELS]
    assert machine.install("run")[:2] == (0, ["venv", WHEELS, EDITABLE])


def test_install_starts_anew_where_two_packages_would_own_mpiexec(machine):
    machine.install("run")
    (machine.root / ".venv/lib/python3.11/site-packages/mpich-5.0.2.dist-info").mkdir(parents=True)
    assert machine.install("test")[1][:1] == ["venv"]


def test_install_leaves_out_only_mpi4jax_without_compiler(machine):
    (machine.bin / "c++").unlink()
    for first in (["venv"], []):
        status, calls, output = machine.install("test")
        assert (status, calls) == (0, [*first, WHEELS, EDITABLE, MPICH])
        assert "left out mpi4jax, which needs a C++ compiler" in output


@pytest.mark.parametrize(
    ("probe_status", "message"),
    [("5", "found no Python 3.11 to 3.14 on PATH"), ("4", "lacks the modules venv and ensurepip")],
)
def test_install_says_what_is_wrong_with_python(machine, probe_status, message):
    status, calls, output = machine.install("run", PROBE_STATUS=probe_status)
    assert (status, calls) == (1, [])
    assert message in output


@pytest.mark.parametrize("args", [[], ["all"], ["run", "test"]])
def test_install_names_the_accepted_arguments(machine, args):
    status, calls, output = machine.install(*args)
    assert (status, calls) == (1, [])
    assert "expected one argument, 'run' or 'test'" in output
