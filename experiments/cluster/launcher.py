"""Runs mpiexec on the server of a cluster, as on a real one, apart from ssh."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from experiments import launch
from experiments.cluster.namespaces import Cluster, ClusterError, children

OPEN_MPI = "Open MPI"
MPICH = "MPICH"

# Variables that Open MPI shall hand to the workers; ssh gives them none. MPICH hands on all.
_FORWARDED = ("ASVRG_", "JAX_", "MPLBACKEND", "NPROC", "PYTHON", "XLA_")
# As sshd has it for those who do not set their own.
_LOGIN_PATH = "/usr/local/bin:/usr/bin:/bin"
# A folder of each host's own, that ends with it: processes of two hosts may have the same number.
_TMPDIR = "/dev/shm"

# What the job needs beyond `launch.configure_mpi`.
_NEEDED = {
    OPEN_MPI: {
        # The hosts of one machine share its cores; else all ranks are bound to one of them.
        "PRTE_MCA_hwloc_default_binding_policy": "none",
    },
    # The default, UCX, hangs over TCP in a Recv from any of several workers (MPICH 5.0.2).
    MPICH: {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp;ofi_rxm"},
}

_SECONDS_TO_END = 10.0


class Mpi(NamedTuple):
    """An MPI's launcher: the path of mpiexec, and OPEN_MPI or MPICH."""

    mpiexec: Path
    name: str


class Job(NamedTuple):
    """A running mpiexec: the words that a real cluster's user would type, and the process."""

    command: list[str]
    process: subprocess.Popen[str]

    def send_signal(self, number: int) -> None:
        """Sends a signal to mpiexec, the only child of `process`."""
        with contextlib.suppress(OSError):  # it has ended
            for pid in children(self.process.pid):
                os.kill(pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Asks mpiexec to end by a signal, and waits for it a while."""
        self.send_signal(number)
        try:
            self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()  # the cluster ends all others
            self.process.wait()


def find_mpi(mpiexec: str | None = None) -> Mpi:
    """Finds mpiexec: beside the running Python, or on the PATH.

    Args:
      mpiexec: its path, if known.

    Returns:
      Its path and whose it is.

    Raises:
      ClusterError: there is none, or it is neither Open MPI's nor MPICH's.
    """
    found = _find(mpiexec or "mpiexec")
    done = subprocess.run(
        [found, "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS_TO_END,
        check=False,
    )
    for name, sign in ((OPEN_MPI, "Open MPI"), (MPICH, "HYDRA")):
        if sign in done.stdout:
            return Mpi(Path(found), name)
    raise ClusterError(f"{found} is neither Open MPI's nor MPICH's.")


def make_environment(name: str, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of mpiexec on a cluster; a setting of the user's own stays.

    Args:
      name: OPEN_MPI or MPICH.
      given: the environment of this process.

    Returns:
      It, and what the MPI needs.

    >>> make_environment(MPICH, {"FI_PROVIDER": "verbs"})["FI_PROVIDER"]
    'verbs'
    """
    own = _NEEDED[name] | dict(given) | {"TMPDIR": _TMPDIR}
    launch.configure_mpi(own)
    if name == OPEN_MPI:  # on the hosts every user is root
        own |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return own


def start(
    cluster: Cluster, mpi: Mpi, command: Sequence[str], *, output: IO[str] | int | None = None
) -> Job:
    """Starts a command on all hosts, with one rank on each; the server has rank 0.

    Args:
      cluster: entered.
      mpi: whose mpiexec.
      command: a program and its arguments.
      output: where standard output and standard error go; None for this process's own.

    Returns:
      The running job.

    Raises:
      ClusterError: there is no such program.
    """
    # The other hosts look for programs on a login's PATH alone.
    command = [_find(command[0]), *command[1:]]
    environment = make_environment(mpi.name, os.environ)
    ssh = _write_ssh(cluster)
    ranks = ["-n", str(len(cluster.hosts))]
    hostfile = cluster.folder / "hostfile"
    if mpi.name == OPEN_MPI:
        hostfile.write_text("".join(f"{host} slots=1\n" for host in cluster.hosts))
        environment["PRTE_MCA_plm_ssh_agent"] = str(ssh)
        names = sorted(name for name in os.environ if name.startswith(_FORWARDED))
        forward = [word for name in names for word in ("-x", name)]
        words = ["--with-ft", "ulfm", "--hostfile", str(hostfile), *ranks, *forward]
    else:
        hostfile.write_text("".join(f"{host}:1\n" for host in cluster.hosts))
        environment |= {"HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": str(ssh)}
        words = ["-f", str(hostfile), *ranks]
    words = [str(mpi.mpiexec), *words, *command]
    process = subprocess.Popen(
        [*cluster.enter("server"), *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output if output is None else subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which hands it on
    )
    return Job(words, process)


def _find(program: str) -> str:
    """The absolute path of a program that is beside the running Python, or on the PATH."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(program, path=places)
    if found is None:
        raise ClusterError(f"there is no program {program!r}.")
    return os.path.abspath(found)


def _write_ssh(cluster: Cluster) -> Path:
    """Writes what mpiexec takes for ssh: `ssh [options] host command...`."""
    bare = shlex.join(["env", "-i", *_login(os.environ)])
    cases = [
        f'  {host}) exec {bare} {shlex.join(cluster.enter_from_server(host))} sh -c "$*" ;;'
        for host in cluster.hosts
    ]
    lines = [
        "#!/bin/sh",
        "while case $1 in -*) true ;; *) false ;; esac; do shift; done",
        "host=$1",
        "shift",
        "case $host in",
        *cases,
        '  *) echo "ssh: no host $host" >&2; exit 255 ;;',
        "esac",
    ]
    path = cluster.folder / "ssh"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def _login(environment: Mapping[str, str]) -> list[str]:
    own = [f"{name}={environment[name]}" for name in ("HOME", "USER") if name in environment]
    return [*own, f"PATH={_LOGIN_PATH}", f"TMPDIR={_TMPDIR}"]
