"""Distributed-AsySVRG, Algorithms 2 and 3: rank 0 the server, ranks 1, ..., K the workers.

All ranks run the same program, started together by mpiexec, with the same arguments:

    job = mpi.connect()
    if job.is_server:
        with mpi.serve(job, sampler) as serving:
            driver = mpi.driver(serving, estimator, inner_steps=2_000)
            ...                           # training.run, as with every other driver
    else:
        with mpi.reporting(job):
            mpi.work(job, [estimator], data, sampler)
    mpi.leave(0)

Importing this package starts no MPI; `connect` does.

Under Open MPI's `mpiexec --with-ft ulfm` the job goes on when workers die, at any moment once all
have started: their samples go to the others and exactly m updates land in every epoch. Under other
launchers the death of a rank ends the job.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np
from absl import logging

from asvrg import objectives, sampling
from asvrg.drivers import arguments, pausing
from asvrg.drivers.mpi.inner_loop import InnerLoop
from asvrg.drivers.mpi.protocol import SERVER, TEXT, Plan, RankError, make_plan, vector
from asvrg.drivers.mpi.server import Server
from asvrg.drivers.mpi.worker import Worker
from asvrg.errors import InputError, check_switch
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.types import Array, Data, Driver, Halfway, Pause, Snapshot

if TYPE_CHECKING:
    from asvrg.drivers.mpi.exchange import Exchange
    from asvrg.drivers.mpi.transport import World

__all__ = [
    "Job",
    "RankError",
    "Serving",
    "connect",
    "driver",
    "leave",
    "reporting",
    "serve",
    "work",
]


class Job(NamedTuple):
    """The processes that mpiexec started.

    Attributes:
      rank: of this process; 0 is the server.
      num_workers: K.
      fault_tolerant: whether the job goes on when a worker dies.
      world: the communicators.
    """

    rank: int
    num_workers: int
    fault_tolerant: bool
    world: World

    @property
    def is_server(self) -> bool:
        """Whether this process owns x."""
        return self.rank == SERVER


class Serving(NamedTuple):
    """A server whose workers are there; make one with `serve`.

    Attributes:
      job: the processes.
      server: its books.
      exchange: the functions of mpi4jax; None where messages carry the snapshot.
      seconds: of the inner loops so far: receive, update, send.
    """

    job: Job
    server: Server
    exchange: Exchange | None
    seconds: dict[str, float]


def connect() -> Job:
    """Starts MPI.

    Returns:
      The Job of this process.

    Raises:
      InputError: mpi4py is missing or finds no MPI, or there is one process only.
    """
    try:
        from asvrg.drivers.mpi import transport
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"MPI must be installed, with mpi4py: pip install 'asvrg[mpi]' ({error})."
        ) from error
    world = transport.world()
    if world.size == 1:
        raise InputError(
            "mpiexec must start one server and at least one worker, got a single process: run "
            "mpiexec -n 3 python -m ... for two workers, with the mpiexec of the MPI that mpi4py "
            "loads."
        )
    return Job(world.rank, world.size - 1, world.fault_tolerant, world)


@contextmanager
def serve(
    job: Job,
    sampler: Sampler,
    *,
    dtype: np.dtype | str = "float32",
    shard_sizes: Sequence[int] | None = None,
    chunk_size: int = objectives.CHUNK_SIZE,
) -> Iterator[Serving]:
    """The server, from the first word of all workers to their end, whatever happens in between.

    Args:
      job: from `connect`, of rank 0.
      sampler: of the draws, over all n samples, without blocks.
      dtype: of x.
      shard_sizes: n_k of each worker, with the sum n; None for nearly equal ones.
      chunk_size: samples at once in the pass for grad f(x_tilde), and what a takeover moves.

    Yields:
      A Serving, for `driver`.

    Raises:
      InputError: an argument is not accepted.
      RankError: a worker raised, or all have died; its text tells what it raised.
    """
    from asvrg.drivers.mpi import transport

    plan = make_plan(
        sampler, np.dtype(dtype), job.num_workers, shard_sizes=shard_sizes, chunk_size=chunk_size
    )
    star = transport.Star(job.world, plan)
    server = Server(star, plan)
    try:
        have_mpi4jax = server.greet()
        exchange = _exchange(job, plan)
        collective = have_mpi4jax and exchange is not None and not job.fault_tolerant
        yield Serving(
            job,
            server,
            exchange if collective else None,
            dict.fromkeys(("receive", "update", "send"), 0.0),
        )
    finally:
        cause, stopped = sys.exception(), False
        try:
            stopped = server.stop()
        finally:
            if not stopped:
                logging.error("Not all workers ended in time; the job is aborted. %s", cause or "")
                _abort(job)
        star.close()


def driver(
    serving: Serving,
    estimator: Estimator,
    *,
    inner_steps: int,
    index: int = 0,
    overlap: bool = False,
    max_delay: int | None = None,
    delay_adaptive: bool = False,
) -> Driver:
    """Algorithm 2: x <- x - eta v for the v of whichever worker is ready, m times an epoch.

    Args:
      serving: the server.
      estimator: gives v_t; the same that the workers have.
      inner_steps: m; exactly so many updates land, whoever dies.
      index: of the estimator in what the workers were given.
      overlap: whether a worker is sent its next x_hat before its v has landed: the way of messages
        is hidden, for one more unit of delay.
      max_delay: Delta, the largest delay of an update; a worker that is too far ahead waits. None
        for no limit.
      delay_adaptive: whether the steps of late updates are scaled down as they land, by
        `delays.adaptive_scale` with the concurrency K at the epoch's start, or 2 K with overlap.

    Returns:
      A Driver whose x is a numpy array.

    Raises:
      InputError: `inner_steps` or `max_delay` is out of its range; in the driver's functions, an x
        that is not the sampler's [d] or has another dtype than the server.
      RankError: in the driver's functions, a worker raised, or all have died.
      DivergedError: in the inner loop, an update was not finite.

    Source: Huo and Huang (2016), Algorithm 2; the delay-adaptive steps as for
    `delays.adaptive_scale`.
    """
    arguments.check(estimator, inner_steps, max_delay)
    check_switch("overlap", overlap)
    check_switch("delay_adaptive", delay_adaptive)
    server, exchange = serving.server, serving.exchange
    plan = server.plan
    sums = estimator.grad_and_cache is not None
    collective = exchange if sums else None  # None: messages carry the snapshot, if there is one

    def own(x: Array) -> np.ndarray:
        """A copy of x."""
        sampling.check_dim(plan.sampler, x)
        if x.dtype != plan.dtype:
            raise InputError(f"x must be {plan.dtype}, as the server was told, got {x.dtype}.")
        own_x = vector(plan)
        np.copyto(own_x, x)
        return own_x

    def prepare(x: Array) -> Snapshot:
        x_tilde = own(x)
        if collective is not None:
            server.collect(index)
            _, gradient, _ = collective.snapshot(estimator, jnp.asarray(x_tilde), (), (), {})
            return Snapshot(x_tilde, np.asarray(gradient))
        full_grad = server.prepare(index, x_tilde, sums=sums)
        return Snapshot(x_tilde, full_grad) if sums else Snapshot()

    def advance(
        reached: Array | Halfway, snapshot: Snapshot, epoch: int, lr: float, pause: Pause | None
    ) -> Halfway:
        del snapshot  # the workers have it
        x, before = pausing.begin(reached)
        buffer = own(x)
        loop = InnerLoop(
            server,
            buffer,
            epoch=epoch,
            lr=lr,
            inner_steps=inner_steps,
            overlap=overlap,
            max_delay=max_delay,
            delay_adaptive=delay_adaptive,
            clock=serving.seconds,
            before=before,
            pause=pause,
        )
        server.abandon = loop.abandon
        with np.errstate(over="ignore", invalid="ignore"):  # an error says so, with the cause
            trace = loop.run()
        server.abandon = None
        return Halfway(buffer, trace)

    def warm_up(x: Array) -> None:
        if collective is not None:
            collective.trace_snapshot(estimator, jnp.asarray(own(x)), (), (), {})
        server.warm_up(index, collective=collective is not None)
        prepare(x)  # compiles the collectives, and has the first epoch find all in place

    evals = estimator.grad_evals(plan.sampler.num_samples, plan.sampler.batch_size, inner_steps)
    return Driver(prepare, pausing.inner_loop(advance), warm_up, inner_steps, evals, advance)


def work(
    job: Job,
    estimators: Sequence[Estimator],
    data: Data,
    sampler: Sampler,
    *,
    dtype: np.dtype | str = "float32",
    shard_sizes: Sequence[int] | None = None,
    chunk_size: int = objectives.CHUNK_SIZE,
) -> None:
    """Algorithm 3: a worker, until the server ends the job.

    Args:
      job: from `connect`, of a rank above 0.
      estimators: those that the server will name by their index.
      data: all n samples, a pytree of arrays [n, ...]; the worker draws from its shard.
      sampler: the same as the server's, as are dtype, shard_sizes and chunk_size.
      dtype: of x.
      shard_sizes: n_k of each worker.
      chunk_size: samples at once in the pass for grad f(x_tilde).

    Raises:
      InputError: an argument is not accepted.
      RankError: the server is gone.

    Source: Huo and Huang (2016), Algorithm 3.
    """
    from asvrg.drivers.mpi import transport

    plan = make_plan(
        sampler, np.dtype(dtype), job.num_workers, shard_sizes=shard_sizes, chunk_size=chunk_size
    )
    line = transport.Line(job.world, plan.room)
    Worker(line, plan, estimators, data, job.rank, _exchange(job, plan)).run()


@contextmanager
def reporting(job: Job) -> Iterator[None]:
    """Tells the server what is raised inside, and ends quietly with it: the server has the say.

    Args:
      job: from `connect`, of a rank above 0.

    Raises:
      RankError: the server is gone.
    """
    from asvrg.drivers.mpi import transport

    try:
        yield
    except RankError:
        raise
    except Exception as error:  # noqa: BLE001
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, InputError):
            text += "\n" + traceback.format_exc()
        transport.Line(job.world, TEXT).report(text)


def leave(code: int) -> NoReturn:
    """Ends the process; a server that fails before it served ends the job with it.

    Args:
      code: the exit code.

    >>> leave(0)
    Traceback (most recent call last):
      ...
    SystemExit: 0
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if "asvrg.drivers.mpi.transport" in sys.modules:
        from asvrg.drivers.mpi import transport

        world = transport.world()
        if world.rank == SERVER and code:
            transport.dismiss(world)
        if world.fault_tolerant:
            # MPI_Finalize hangs after some deaths (Open MPI 5.0.11).
            os._exit(code)
    sys.exit(code)


def _abort(job: Job) -> NoReturn:
    """Ends all processes at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    if job.fault_tolerant:
        # MPI_Abort spins for ever there (Open MPI 5.0.11); a dead server is noticed by all workers.
        os.kill(os.getpid(), signal.SIGKILL)
    job.world.packets.Abort(1)
    raise AssertionError("MPI_Abort returned.")


def _exchange(job: Job, plan: Plan) -> Exchange | None:
    """The functions of mpi4jax; None where that is not installed, or was built with another MPI."""
    try:
        from asvrg.drivers.mpi.exchange import Exchange
    except (ImportError, RuntimeError) as error:
        logging.log_first_n(logging.INFO, "Without mpi4jax: %s", 1, error)
        return None
    return Exchange(job.world, plan.sampler.num_samples)
