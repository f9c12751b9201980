"""Starts a binary: its flags, the threads of XLA, and how errors reach the user."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import FrameType
from typing import NoReturn

import jax
from absl import flags

from asvrg.checkpoints import SIGNALS
from asvrg.errors import DivergedError, DriverError, InputError, check_count, check_real
from experiments import compilations, flag_errors

# Exit codes, beside 0: done.
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# Where Open MPI's and MPICH's mpiexec leave a process's rank; srun sets its own without MPI too.
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def run(
    main: Callable[[flags.FlagValues], int],
    define_flags: Callable[[flags.FlagValues], None],
    argv: list[str] | None = None,
) -> int:
    """Runs a binary's `main` with its flags; errors become one sentence on the standard error.

    Args:
      main: flag values -> exit code.
      define_flags: adds the binary's flags to the values.
      argv: the command line, program name first; None for the process's own.

    Returns:
      The exit code: 0, 1 (the run failed), 2 (bad input), or 128 and the number of the signal that
      stopped it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """
    argv = sys.argv if argv is None else argv
    values = flags.FlagValues()
    flags.DEFINE_bool(
        "help", False, "Print the flags and exit.", short_name="h", flag_values=values
    )
    define_flags(values)
    values.mark_as_parsed()
    try:
        with _handling_signals():
            return _run(main, values, argv)
    except KeyboardInterrupt as error:
        if isinstance(error, Stopped):
            return _report(f"{error}.", 128 + error.number)
        return _report("interrupted.", INTERRUPTED)


def _run(main: Callable[[flags.FlagValues], int], values: flags.FlagValues, argv: list[str]) -> int:
    """The exit code of a binary; of errors it prints their sentence."""
    try:
        rest = values(argv, known_only=False)[1:]
        if values.help:
            if is_first_rank(os.environ):
                listing = values.get_help(include_special_flags=False)
                print(f"{main.__globals__['__doc__']}\nFlags:\n{listing}")
            return 0
        if rest:
            raise InputError(f"flags must have the form --name=value, got {' '.join(rest)!r}.")
        configure_jax(os.environ)
        with compilations.kept(os.environ):
            return main(values)
    except (flags.Error, InputError) as error:
        return _report(flag_errors.told(error), BAD_INPUT)
    except UnicodeDecodeError:
        return _report("--flagfile must name a text file with a flag on each line.", BAD_INPUT)
    except (DivergedError, DriverError) as error:
        return _report(error, FAILED)
    except OSError as error:
        return _report(sentence(error), FAILED)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _report("the network or the data set is too large for this machine.", FAILED)


def sentence(error: OSError) -> str:
    """What the system refused, as a sentence that names the file.

    >>> sentence(OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.csv"))
    'runs/a/metrics.csv: no space left on device; make room, then the same command goes on.'
    """
    if error.strerror is None:
        return f"{error}"
    where = "a file" if error.filename is None else error.filename
    reason = error.strerror[:1].lower() + error.strerror[1:]
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += "; make room, then the same command goes on"
    return f"{where}: {reason}."


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Stop:
    """What signals do that ask the process to end: at once, or where the run can go on later.

    Attributes:
      received: the first such signal, 0 if there was none.
      waits: whether the first one shall wait for `heed`; the second one never does.
    """

    def __init__(self) -> None:
        self.received = 0
        self.waits = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        is_first, self.received = not self.received, self.received or number
        if not (self.waits and is_first):
            raise Stopped(number)
        # Not print, in whose midst the signal may have come.
        os.write(2, b"\nstopping where the run can go on later; once more to stop at once\n")

    def heed(self) -> None:
        """Raises Stopped if a signal came.

        Also where its exception did not get through: Python prints and ignores what is raised in a
        callback of its garbage collector, and jax has some.
        """
        if self.received:
            raise Stopped(self.received)


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt if a signal came but its exception did not get through."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, Stop):
        handler.heed()


@contextlib.contextmanager
def stopping_where_it_can_go_on() -> Iterator[Stop]:
    """Has the first signal wait until the block calls `heed`; a second one ends it at once.

    Yields:
      The Stop.
    """
    handler = signal.getsignal(signal.SIGINT)
    stop = handler if isinstance(handler, Stop) else Stop()
    stop.waits = True
    try:
        yield stop
        stop.heed()
    finally:
        stop.waits = False


@contextlib.contextmanager
def _handling_signals() -> Iterator[None]:
    stop = Stop()
    # A program that was started by nohup shall outlive its terminal.
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in {signal.SIGINT, *numbers}}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # as one is that Python has not set
                signal.signal(number, handler)


def start(
    main: Callable[[flags.FlagValues], int],
    define_flags: Callable[[flags.FlagValues], None],
    leave: Callable[[int], NoReturn] | None = None,
) -> NoReturn:
    """Runs a binary and ends the process with its exit code.

    Args:
      main: flag values -> exit code.
      define_flags: adds the binary's flags to the values.
      leave: ends the process with an exit code; None for the usual way.
    """
    try:
        code = run(main, define_flags)
    except Exception:  # noqa: BLE001, other ranks wait for `leave`
        traceback.print_exc()
        code = FAILED
    (leave or _leave)(code)


def _leave(code: int) -> NoReturn:
    """Ends the process.

    Args:
      code: the exit code.
    """
    if code > 128:
        # An orderly exit after an interrupted compilation crashes in XLA (jaxlib 0.10.2).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def configure_jax(environment: MutableMapping[str, str]) -> None:
    """Has jax run each computation on the thread that asks for it, on one core of the CPU.

    Several workers on few cores: a product of one of them shall not spread over the cores of the
    others. The size of XLA's pools comes from NPROC alone; the settings of XLA_FLAGS that once did
    this (xla_cpu_multi_thread_eigen, intra_op_parallelism_threads) have no effect in jaxlib 0.10.
    A setting of the user's own stays. It takes effect only before jax does its first computation.

    Args:
      environment: `os.environ`.
    """
    environment.setdefault("NPROC", "1")
    environment.setdefault("JAX_PLATFORMS", "cpu")
    # Both were read when jax was imported.
    jax.config.update("jax_platforms", environment["JAX_PLATFORMS"])
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in environment:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def configure_mpi(environment: MutableMapping[str, str]) -> None:
    """Has MPI let go of the core while it waits, and send an x in one go over TCP.

    A rank that spins takes the core from those that compute, where there are more ranks than cores,
    or other programs. And a sender that asks first whether the receiver is ready waits while that
    one computes. Settings of the user's own stay. It takes effect only before MPI starts.

    Args:
      environment: `os.environ`.
    """
    environment.setdefault("MPIR_CVAR_POLLS_BEFORE_YIELD", "0")  # MPICH
    environment.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")  # Open MPI
    # Bytes, for Open MPI 5.0.11. With its 65536 a server with 3 workers did 166 updates/s of
    # 2 x 79 KB over links of 200 Mbit/s; with this some 280, where the links allow for 306.
    environment.setdefault("OMPI_MCA_btl_tcp_eager_limit", "524288")


def counts(values: flags.FlagValues, name: str) -> list[int]:
    """The whole numbers in a flag that is a list.

    Args:
      values: parsed.
      name: of the flag, without dashes.

    Returns:
      A list of numbers of at least 1.

    Raises:
      InputError: it is empty, or an entry is no whole number of at least 1.
    """
    entries = values[name].value
    if not entries:
        raise InputError(f"--{name} must be whole numbers with commas between, got none.")
    return [
        check_count(f"every entry of --{name}", int(entry) if entry.strip().isdecimal() else entry)
        for entry in entries
    ]


def reals(values: flags.FlagValues, name: str, *, above: bool = True) -> list[float]:
    """The numbers in a flag that is a list.

    Args:
      values: parsed.
      name: of the flag, without dashes.
      above: whether 0 is not accepted.

    Returns:
      A list of numbers above 0, or of at least 0.

    Raises:
      InputError: it is empty, or an entry is no such finite number.
    """
    entries = values[name].value
    if not entries:
        raise InputError(f"--{name} must be numbers with commas between, got none.")
    return [
        check_real(f"every entry of --{name}", _number(entry), above=above) for entry in entries
    ]


def _number(entry: str) -> float | str:
    """The number that a text says, or the text for the sentence that refuses it."""
    try:
        return float(entry)
    except ValueError:
        return entry


def given(values: flags.FlagValues, name: str) -> bool:
    """Whether the user set the flag on the command line or in a flagfile."""
    return bool(values[name].present)


def started_by_mpiexec(environment: Mapping[str, str]) -> bool:
    """Whether Open MPI's or MPICH's mpiexec, or Slurm's srun --mpi, started this process."""
    return any(name in environment for name in RANKS)


def is_first_rank(environment: Mapping[str, str]) -> bool:
    """Whether this process is the first of those that mpiexec started, or was started without it.

    Args:
      environment: `os.environ`, where the launchers of Open MPI, MPICH and Slurm leave the rank.

    Returns:
      Whether it may print.
    """
    names = (*RANKS, "SLURM_PROCID")
    return next((environment[name] for name in names if name in environment), "0") == "0"


def _report(what: object, code: int) -> int:
    if is_first_rank(os.environ):
        print(f"{os.path.basename(sys.argv[0])}: {what}", file=sys.stderr)
    return code
