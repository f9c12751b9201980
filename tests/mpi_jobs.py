"""Real MPI jobs for the tests: started by mpiexec, with a time limit, and nobody stays behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MPIEXEC = {
    "openmpi": Path(sys.prefix, "bin", "mpiexec"),
    "mpich": Path(sys.prefix, "mpich", "bin", "mpiexec"),
}
OPTIONS = {"openmpi": ["--oversubscribe", "--bind-to", "none"], "mpich": []}
ENV = {
    "openmpi": {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
    "mpich": {"MPI4PY_LIBMPI": str(Path(sys.prefix, "mpich", "lib", "libmpi.so.12"))},
}
MARK = "ASVRG_TEST_JOB"  # in the environment of a job's processes, to tell them from others
GRACE = 10.0  # seconds from mpiexec's end until nothing of the job may be left

needs_mpi4jax = pytest.mark.skipif(
    importlib.util.find_spec("mpi4jax") is None,
    reason="mpi4jax is not installed; 'third_party/install.sh test' says what it lacks",
)


def mpiexec(
    script_or_args: str | Sequence[str],
    ranks: int,
    *,
    fault_tolerant: bool = False,
    mpi: str = "openmpi",
    timeout: float = 60,
    env: dict[str, str] | None = None,
    on_start: Callable[[subprocess.Popen], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs Python on several ranks; skips the test where this MPI is not installed.

    Args:
      script_or_args: the text of a program, or the interpreter's arguments.
      ranks: how many, the server among them.
      fault_tolerant: whether the job goes on when a rank dies; Open MPI only.
      mpi: openmpi or mpich.
      timeout: seconds, after which the job is killed and the test fails.
      env: variables besides those of this process.
      on_start: is given mpiexec's process before anything is waited for.

    Returns:
      mpiexec's exit code and what the ranks printed.

    Raises:
      AssertionError: the time was up, or a process of the job was left when mpiexec had ended.
    """
    if importlib.util.find_spec("mpi4py") is None or not MPIEXEC[mpi].is_file():
        pytest.skip(f"mpi4py or {mpi} is not installed ('third_party/install.sh test' does it)")
    args = script_or_args
    if isinstance(args, str):
        # By mpi4py an exception on one rank ends them all, but not where jobs outlive their ranks:
        # there MPI_Abort leaves all of them spinning (Open MPI 5.0.11).
        run = [] if fault_tolerant else ["-m", "mpi4py"]
        args = ["-W", "error", *run, "-c", textwrap.dedent(args)]
    options = [*OPTIONS[mpi], *(["--with-ft", "ulfm"] if fault_tolerant else [])]
    command = [str(MPIEXEC[mpi]), *options, "-n", str(ranks), sys.executable, *args]
    mark = f"{os.getpid()}.{time.monotonic_ns()}"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    job = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **ENV[mpi], **(env or {}), MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    in_time, left = True, []
    try:
        if on_start:
            on_start(job)
        out, err = job.communicate(timeout=timeout)
        until = time.monotonic() + GRACE
        while (left := processes(mark)) and time.monotonic() < until:
            time.sleep(0.05)
    except subprocess.TimeoutExpired:
        in_time = False
    finally:
        for pid in processes(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if not in_time:
        out, err = job.communicate(timeout=GRACE)
    shown = f"\n{out[-4_000:]}\n{err[-8_000:]}"
    assert in_time, f"The job took more than {timeout} s.{shown}"
    assert not left, f"The job left processes behind: {left}.{shown}"
    return subprocess.CompletedProcess(command, job.returncode, out, err)


def right(done: subprocess.CompletedProcess[str]) -> list[int]:
    """The ranks that printed "rank K is right"; launchers may mix up the ends of lines."""
    return sorted(int(rank) for rank in re.findall(r"rank (\d+) is right", done.stdout))


def processes(mark: str) -> list[int]:
    """The live processes of a job, mpiexec among them; a launcher may put them into new groups."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it ended, or is somebody else's
            continue
    return found
