"""Runs a program under MPI on an emulated cluster: a server and K workers with limited links.

    python -m experiments.cluster --num_workers=3 -- python -m experiments.train_distributed

Every rank has a host of its own: a set of Linux namespaces, with one link to the others. It takes
root, or a kernel on which users may make namespaces, and the programs `ip` and `tc`. What stands
after `--` runs as on a real cluster with a host file; the exit code is the one of mpiexec.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys

from absl import flags

from asvrg.errors import InputError, check_count
from experiments import launch
from experiments.cluster import launcher
from experiments.cluster.namespaces import MOST_WORKERS, RATE, Cluster, ClusterError

_UNLIMITED = "unlimited"
_SECONDS_TO_END = 10.0  # what rank 0 may take after mpiexec


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    flags.DEFINE_integer("num_workers", 3, "K, hosts beside the server.", flag_values=values)
    flags.DEFINE_string(
        "rate",
        "200mbit",
        f"Bandwidth of every link, each way: a number and kbit, mbit or gbit, or {_UNLIMITED}.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "server_rate",
        None,
        "The same of the server's link alone, where all messages meet. Default: --rate.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "mpiexec",
        None,
        "Path of mpiexec, Open MPI's or MPICH's. Default: beside this Python, or on the PATH.",
        flag_values=values,
    )


def main(values: flags.FlagValues, command: list[str]) -> int:
    """Runs the command on a cluster of its own, and takes the cluster down."""
    check_count("--num_workers", values.num_workers, most=MOST_WORKERS)
    rate = _rate("rate", values.rate)
    server_rate = rate if values.server_rate is None else _rate("server_rate", values.server_rate)
    if not command:
        raise InputError("give the program to run after ' -- '.")
    try:
        mpi = launcher.find_mpi(values.mpiexec)
        with Cluster(values.num_workers, rate, server_rate) as cluster:
            job = launcher.start(cluster, mpi, command)
            print(f"on {cluster.hosts[0]}: {shlex.join(job.command)}", file=sys.stderr)
            code = _wait(job)
            # Open MPI's mpiexec (5.0.11) ends at once, with code 0, when a host is lost; rank 0
            # then writes its checkpoint.
            if code == 0 and cluster.processes("server"):
                cluster.is_quiet(_SECONDS_TO_END)
                raise ClusterError("mpiexec ended before the program did: a host was lost.")
            return code
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return launch.FAILED


def _rate(name: str, given: str) -> str | None:
    """A flag's bandwidth as `tc` has it; None for no limit."""
    if given != _UNLIMITED and not re.fullmatch(RATE, given):
        raise InputError(
            f"--{name} must be a whole number and kbit, mbit or gbit, or {_UNLIMITED}, "
            f"got {given!r}."
        )
    return None if given == _UNLIMITED else given


def _wait(job: launcher.Job) -> int:
    """The exit code of a job; an interrupt is handed on to it."""
    try:
        code = job.process.wait()
    except KeyboardInterrupt:
        job.stop(signal.SIGINT)
        raise
    except BaseException:
        job.stop()
        raise
    return code if code >= 0 else 128 - code


def run(argv: list[str]) -> int:
    """Parses the command line; see `launch.run`.

    Args:
      argv: program name, flags, `--`, and the command.

    Returns:
      The exit code.
    """
    end = argv.index("--") if "--" in argv else len(argv)

    def run_command(values: flags.FlagValues) -> int:
        return main(values, argv[end + 1 :])

    return launch.run(run_command, define_flags, argv[:end])


if __name__ == "__main__":
    sys.exit(run(sys.argv))
