"""A long run under load: is memory flat, is an update lost, is a delay too long?

    python -m benchmarks.soak --num_threads=8
    mpiexec --oversubscribe --bind-to none -n 5 python -m benchmarks.soak --driver=mpi

Every mode does `--num_updates` twice. First it trains with SVRG: the loss must fall. Then it
counts: every update adds 1 to each coordinate of its block, so that what is missing in x in the end
is what was lost, to the last addition. A last run has the first mode with `--max_delay`. After each
epoch the resident memory of all processes is read from /proc, so all ranks must be on one machine.

Writes soak.csv, memory.csv and soak.png. The exit code is 1 if an update is missing where writes
are locked or a server owns x, if a delay is longer than asked, or if the loss did not fall. How
much memory grows is for a person to judge.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from asvrg import delays, estimators, objectives
from asvrg.drivers import mpi, threads
from asvrg.errors import DriverError, InputError, check_choice, check_count, check_real
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.types import Array, Data, Draws, Driver, Snapshot
from benchmarks import endurance
from benchmarks.endurance import Line, MemoryLine, Mode
from experiments import folders, iterations, launch, problem, provenance, recording, tables
from experiments.problem import Problem

RESULT, MEMORY, FIGURE = "soak.csv", "memory.csv", "soak.png"
DRIVERS = ("threads", "mpi")
THREADS = tuple(
    f"{read}/{write}"
    for write in threads.WRITES
    for read in threads.READS
    if (read, write) != ("consistent", "lock_free")
)
MPI_MODES = ("in_turn", "overlap")
OF_THREADS = ("num_threads", "read_period", "block_size")  # flags
EXACT = 1 << 24  # up to here float32 counts without a gap
LEAST_EPOCHS = 8  # three quarters of them give a slope, and how far to trust it


class Soak(NamedTuple):
    """What the runs of a driver have in common.

    Attributes:
      problem: what is minimised.
      sampler: of the draws.
      lr: eta of the training.
      num_epochs: of every run.
      workers: K.
      in_making: updates that are computed at once, at most, where no delay is longer than usual.
      processes: whose memory is looked at.
      make: a mode and 0 for training or 1 for counting -> Driver.
    """

    problem: Problem
    sampler: Sampler
    lr: float
    num_epochs: int
    workers: int
    in_making: int
    processes: Sequence[int]
    make: Callable[[Mode, int], Driver]


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this benchmark."""
    problem.define_flags(values)
    iterations.define_flags(values, inner_steps=5_000)
    flags.DEFINE_enum("driver", "threads", DRIVERS, "What owns x.", flag_values=values)
    flags.DEFINE_integer(
        "num_updates",
        1_000_000,
        "Of each mode, in training and in counting; rounded up to whole epochs.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "modes",
        None,
        f"Of threads: {', '.join(THREADS)}; of mpi: {', '.join(MPI_MODES)}. Default: all of them.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_delay",
        None,
        "Delta of the last run, in the first of the modes. Default: K r - 1 for threads and K - 1 "
        "for mpi, with which nobody need wait as long as all are equally fast.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "lr",
        0.05,
        "eta. All of x in each update, with the delays of 8 threads, wants a smaller one: 0.01.",
        flag_values=values,
    )
    flags.DEFINE_integer("num_threads", 8, "K, of threads.", flag_values=values)
    flags.DEFINE_integer("read_period", 16, "r, of threads.", flag_values=values)
    flags.DEFINE_integer(
        "block_size",
        None,
        "B, of threads; 0 for all of x. Default: 1000, or d.",
        flag_values=values,
    )
    folders.define_out_dir(values)


def main(values: flags.FlagValues) -> int:
    """Does all runs, and writes soak.csv, memory.csv and soak.png."""
    num_epochs = _check_flags(values)
    if values.driver == "threads":
        return _report(values, _on_threads(values, num_epochs), {})
    launch.configure_mpi(os.environ)
    job = mpi.connect()
    processes = _processes(job)
    problem_ = problem.from_flags(values)
    sampler = iterations.make_sampler(values, problem_)
    both = _estimators(problem_)
    if not job.is_server:
        with mpi.reporting(job):
            mpi.work(job, both, problem_.train, sampler, dtype=values.dtype)
        return 0
    with mpi.serve(job, sampler, dtype=values.dtype) as serving:

        def make(mode: Mode, index: int) -> Driver:
            return mpi.driver(
                serving,
                both[index],
                inner_steps=values.inner_steps,
                index=index,
                overlap=mode.name == "overlap",
                max_delay=mode.max_delay,
            )

        workers = job.num_workers
        soak = Soak(problem_, sampler, values.lr, num_epochs, workers, workers, processes, make)
        return _report(values, soak, {"fault_tolerant": job.fault_tolerant})


def _check_flags(values: flags.FlagValues) -> int:
    """The number of epochs."""
    for name in ("num_updates", "num_threads", "read_period"):
        check_count(f"--{name}", values[name].value)
    check_count("--inner_steps", values.inner_steps, most=EXACT)
    check_real("--lr", values.lr, above=True)
    if values.max_delay is not None:
        check_count("--max_delay", values.max_delay, least=0)
    if values.driver == "mpi":
        for name in OF_THREADS:
            if launch.given(values, name):
                raise InputError(f"--{name} belongs to --driver=threads, got --driver=mpi.")
    names = _names(values)
    if not names:
        raise InputError("--modes must be names with commas between, got none.")
    for name in names:
        check_choice("every entry of --modes", name, _of_driver(values))
    num_epochs = -(-values.num_updates // values.inner_steps)
    if num_epochs < LEAST_EPOCHS:
        raise InputError(
            f"--num_updates must make at least {LEAST_EPOCHS} epochs of --inner_steps = "
            f"{values.inner_steps}, got {values.num_updates}."
        )
    return num_epochs


def _of_driver(values: flags.FlagValues) -> tuple[str, ...]:
    return THREADS if values.driver == "threads" else MPI_MODES


def _names(values: flags.FlagValues) -> Sequence[str]:
    return _of_driver(values) if values.modes is None else values.modes


def _estimators(problem_: Problem) -> list[Estimator]:
    """Of training, and of counting: with a step of 1 every update adds 1."""

    def minus_one(x_hat: Array, snapshot: Snapshot, data: Data, draw: Draws) -> jax.Array:
        del snapshot, data
        return -jnp.ones_like(objectives.on_block(x_hat, draw.block))

    counting = Estimator(lambda x, data, map_fn: Snapshot(), minus_one, lambda n, b, m: 0)
    return [estimators.svrg(problem_.objective), counting]


def _on_threads(values: flags.FlagValues, num_epochs: int) -> Soak:
    problem_ = problem.from_flags(values)
    dim = problem_.objective.dim
    block_size = min(1_000, dim) if values.block_size is None else values.block_size
    check_count("--block_size", block_size, least=0, most=dim)
    sampler = iterations.make_sampler(values, problem_, block_size=block_size or None)
    both = _estimators(problem_)

    def make(mode: Mode, index: int) -> Driver:
        read, write = mode.name.split("/")
        return threads.driver(
            both[index],
            problem_.train,
            sampler,
            inner_steps=values.inner_steps,
            num_threads=values.num_threads,
            read=read,
            write=write,
            read_period=values.read_period,
            max_delay=mode.max_delay,
        )

    workers = values.num_threads
    in_making = workers * values.read_period
    return Soak(problem_, sampler, values.lr, num_epochs, workers, in_making, [os.getpid()], make)


def _processes(job: mpi.Job) -> list[int]:
    """The numbers of all ranks' processes."""
    ranks = job.world.packets.allgather((os.uname().nodename, os.getpid()))
    if len({node for node, _ in ranks}) > 1:
        raise InputError("mpiexec must start all ranks on one machine, whose memory is looked at.")
    return [number for _, number in ranks]


def _report(values: flags.FlagValues, soak: Soak, resolved: dict[str, object]) -> int:
    folder = folders.claim_folder(values.out_dir, f"soak-{values.driver}", holds=RESULT)
    names = _names(values)
    max_delay = soak.in_making - 1 if values.max_delay is None else values.max_delay
    modes = [*(Mode(name, None) for name in names), Mode(names[0], max_delay)]
    resolved = {"max_delay": max_delay, **resolved}
    recording.write_config(folder, provenance.describe(values, resolved))
    lines: list[Line] = []
    memory: list[MemoryLine] = []
    for mode in modes:
        for index in (0, 1):
            line, of_run = _run(soak, mode, index)
            lines.append(line)
            memory += of_run
            print(", ".join(f"{name} {_shown(cell)}" for name, cell in line._asdict().items()))
            # After every run: a soak is long, and what is known stays if it is interrupted.
            tables.write_csv(folder / RESULT, lines)
            tables.write_csv(folder / MEMORY, memory)
    endurance.draw(
        folder / FIGURE, memory, f"{values.driver}, {values.dataset}, K = {soak.workers}"
    )
    print(folder / FIGURE)
    wrong = [sentence for line in lines for sentence in endurance.complaints(line)]
    if wrong:
        raise DriverError(" ".join(wrong))
    return 0


def _shown(cell: object) -> object:
    return f"{cell:.6g}" if isinstance(cell, float) else cell


def _run(soak: Soak, mode: Mode, index: int) -> tuple[Line, list[MemoryLine]]:
    """All epochs of one run; a counting one starts every epoch from 0."""
    trains = index == 0
    half = "training" if trains else "counting"
    driver = soak.make(mode, index)
    x = np.asarray(soak.problem.x0) if trains else np.zeros_like(soak.problem.x0)
    zeros, first_loss = np.zeros_like(x), _loss(soak.problem, x) if trains else None
    driver.warm_up(x)
    m, block = driver.inner_steps, soak.sampler.block_size or soak.sampler.dim
    landed, lost, longest, seconds = 0, 0, 0, 0.0
    memory: list[MemoryLine] = []
    title = f"{mode.title}, {half}"
    progress = tqdm(total=m * soak.num_epochs, desc=title, unit="updates", mininterval=5.0)
    for epoch in range(soak.num_epochs):
        start = x if trains else zeros
        begin = time.perf_counter()
        snapshot = driver.prepare(start)
        x, trace = driver.inner_loop(start, snapshot, epoch, soak.lr if trains else 1.0)
        seconds += time.perf_counter() - begin
        assert trace.times is not None
        landed += int(np.count_nonzero(trace.times.landed))  # it is 0 where nothing was entered
        longest = max(longest, int(delays.staleness(trace).max()))
        lost += m * block - int(x.sum(dtype=np.float64)) if not trains else 0
        resident = sum(map(endurance.resident_mb, soak.processes))
        memory.append(MemoryLine(mode.title, half, (epoch + 1) * m, resident))
        progress.update(m)
    progress.close()
    updates = m * soak.num_epochs
    slope, error = endurance.growth(memory[len(memory) // 4 :])
    line = Line(
        mode=mode.name,
        half=half,
        workers=soak.workers,
        block=block,
        asked=updates,
        landed=landed,
        lost=None if trains else lost,
        lost_share=None if trains else lost / (updates * block),
        max_delay=mode.max_delay,
        longest_delay=longest,
        resident_mb=memory[len(memory) // 4].resident_mb,
        last_mb=memory[-1].resident_mb,
        slope_mb=slope,
        slope_error=error,
        updates_per_s=updates / seconds,
        first_loss=first_loss,
        last_loss=_loss(soak.problem, x) if trains else None,
    )
    return line, memory


def _loss(problem_: Problem, x: Array) -> float:
    return objectives.evaluate(problem_.objective, x, problem_.train).loss


if __name__ == "__main__":
    launch.start(main, define_flags, mpi.leave)
