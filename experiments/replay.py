"""Runs a recorded run again, in the simulator: the same updates, each at the x that it was made of.

    python -m experiments.train_shared --record --out_dir=RUN
    python -m experiments.replay --trace=RUN

Says of every epoch whether its x is the recorded one to the bit, and how far the last x is from the
recorded one. With --update=N it stops after the N-th update of the run, and says what f is there;
with --out_dir it leaves the x that it arrived at.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from asvrg import delays, objectives, sampling
from asvrg.drivers import simulate
from asvrg.drivers.mpi.protocol import Plan
from asvrg.errors import InputError, check_count
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.types import Array, Data, Snapshot
from experiments import files, folders, launch, methods, problem, traces
from experiments.problem import Problem
from experiments.traces import Epoch, Header, Recording, shard_order, storage

PROMISE = 1e-6  # the largest difference, relative to the largest entry of x
RESULT = "x.npz"


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    flags.DEFINE_string(
        "trace",
        None,
        "Folder of a run that was trained with --record.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder with the data set's files. Default: that of the run.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "update",
        None,
        "Stop after this update, counted over all epochs. Default: replay all of them.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "out_dir",
        None,
        "Folder for x.npz: x, and the network's parameters. Default: it is not kept.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> int:
    """Replays; 1 if x is farther from the recorded one than is promised."""
    if not values.trace:
        raise InputError("--trace must name the folder of a run that was trained with --record.")
    run = traces.load(values.trace)
    total = len(run.epochs) * run.header.inner_steps
    stop = total if values.update is None else values.update
    check_count("--update", stop, least=0, most=total)
    folder = None
    if values.out_dir is not None:
        folder = folders.claim_folder(values.out_dir, "replay", holds=RESULT)
    problem_ = problem.from_recorded(run.header.config["flags"], values.data_dir)
    data_sha256 = storage.digest(problem_.train)
    traces.check_data(values.trace, run.header, data_sha256)
    print(_describe(run))
    reached = replay(run, problem_, stop)
    if folder is not None:
        _write_x(folder / RESULT, problem_, reached.x, stop)
    if values.update is not None:
        print(_looked_at(run, problem_, reached, stop))
        return 0
    kept, lines = _compared(run, problem_, reached)
    print(lines)
    return 0 if kept else launch.FAILED


def make_sampler(header: Header) -> Sampler:
    """The draws of a recorded run."""
    resolved = header.config["resolved"]
    return sampling.sampler(
        header.num_samples,
        header.dim,
        batch_size=resolved["batch_size"],
        block_size=resolved.get("block_size"),
        seed=header.config["flags"]["seed"],
    )


class Replayed(NamedTuple):
    """Where a replay arrived.

    Attributes:
      x: float [d].
      equal: whether x was the recorded one to the bit, after every whole epoch.
      x_recorded_at: the replay's x after the epoch of which the recorded x is; None if it did not
        come that far.
      reordered: epochs of which the trace does not say in which order an MPI job summed grad f.
    """

    x: np.ndarray
    equal: list[bool]
    x_recorded_at: np.ndarray | None
    reordered: list[int]


def replay(run: Recording, problem_: Problem, stop: int) -> Replayed:
    """Runs the first updates of a recorded run again, from x^0; prints a line for every epoch.

    Args:
      run: recorded.
      problem_: the run's.
      stop: updates to do, at most all.

    Returns:
      A Replayed.

    Raises:
      InputError: an epoch's file is missing, damaged, or no trace of this run.
    """
    header, sampler = run.header, make_sampler(run.header)
    # All of them are read before anything is computed: a damaged one shall not be found in the end.
    longest = max(int(delays.lag(epoch.trace).max(initial=0)) for epoch in run.epochs)
    groups = None
    if header.num_groups > 1:
        groups = delays.contiguous_groups(header.dim, header.num_groups)
    made: dict[str, Estimator] = {}
    alpha = methods.recorded_alpha(header.config["flags"])
    data, plan = jax.device_put(problem_.train), shard_order.plan_of(header, sampler)
    x: Array = problem_.x0
    _tell_start(x, run.epochs[0])
    equal: list[bool] = []
    reordered: list[int] = []
    x_recorded_at = np.asarray(x) if run.last_epoch == 0 else None
    num_epochs = -(-stop // header.inner_steps)
    with tqdm(
        total=num_epochs,
        unit="epoch",
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 5.0,
    ) as bar:
        for epoch in run.epochs:
            count = min(header.inner_steps, stop - (epoch.number - 1) * header.inner_steps)
            if count <= 0:
                break
            launch.raise_if_interrupted()
            if epoch.estimator not in made:
                made[epoch.estimator] = methods.make_estimator(
                    epoch.estimator, problem_.objective, alpha
                )
            estimator = made[epoch.estimator]
            snapshot, same_order = _prepare(estimator, x, data, plan, epoch)
            if not same_order:
                reordered.append(epoch.number)
            x = simulate.replay(
                estimator,
                x,
                snapshot,
                data,
                sampler,
                delays.prefix(epoch.trace, count),
                epoch=epoch.number - 1,
                lr=epoch.lr,
                groups=groups,
                max_delay=longest,
            )
            if count == header.inner_steps:
                equal.append(storage.digest(x) == epoch.after)
                bar.write(_line(epoch, equal[-1]), file=sys.stdout)
                if epoch.number == run.last_epoch:
                    x_recorded_at = np.asarray(x)
            bar.update()
    return Replayed(np.asarray(x), equal, x_recorded_at, reordered)


def why_inexact(header: Header, reordered: Sequence[int] = ()) -> str | None:
    """Why the replay of a run need not give its x; None where it does, and that is promised.

    Args:
      header: of the run.
      reordered: epochs of which the trace does not say in which order an MPI job summed grad f.

    Returns:
      Sentences.
    """
    given = header.config["flags"]
    reasons = []
    if given.get("driver") == "threads" and header.num_workers != 1:
        if given["read"] != "consistent":
            how = "copied without the lock" if given["read"] == "inconsistent" else "read in place"
            reasons.append(
                f"--read={given['read']}: x was {how} while others wrote to it, so that what a "
                "thread read may mix several versions of x; the trace knows the oldest of them."
            )
        if given["write"] != "locked":
            reasons.append(
                f"--write={given['write']}: where two threads added to a coordinate at the same "
                "moment, one of the additions may be lost, and the order of the others is not "
                "certain."
            )
    if not given.get("sees_own", True) and given["read_period"] > 1:
        reasons.append(
            "--nosees_own: the iterations of a window were products of many mini-batches at once, "
            "which round otherwise than those of single ones."
        )
    if header.dtype == "float32" and (job := header.config.get("job")) is not None:
        if not job["fault_tolerant"] and given["method"] != "sgd":
            reasons.append(
                "MPI added the workers' sums up to grad f, in an order of its own, which float32 "
                "does not forgive; in a job of mpiexec --with-ft ulfm the server does."
            )
        if reordered:
            reasons.append(
                "The order in which grad f was summed is not known of epochs "
                f"{', '.join(map(str, reordered))}, where a worker died or made no update, and "
                "float32 does not forgive another one."
            )
    return " ".join(reasons) or None


def _prepare(
    estimator: Estimator, x: Array, data: Data, plan: Plan | None, epoch: Epoch
) -> tuple[Snapshot, bool]:
    """The Snapshot of an epoch, and whether grad f was summed in the order of the run."""
    if plan is None or estimator.grad_and_cache is None:
        return estimator.prepare(x, data, map), True
    units = shard_order.units_of(plan, epoch.trace.shards or ())
    if units is None:
        return estimator.prepare(x, data, map), False
    return shard_order.prepare(estimator, x, data, plan, units), True


def _describe(run: Recording) -> str:
    config = run.header.config
    workers = "" if run.header.num_workers is None else f", K = {run.header.num_workers}"
    return (
        f"{config['program']}, {config['flags']['dataset']}, {config['flags']['method']}{workers}: "
        f"{len(run.epochs)} epochs of {run.header.inner_steps} updates, {run.header.dtype}"
    )


def _tell_start(x: Array, first: Epoch) -> None:
    if storage.digest(x) != first.before:
        print("x^0 has other bits than the recorded one: another machine, or release of jax.")


def _line(epoch: Epoch, equal: bool) -> str:
    tau = delays.staleness(epoch.trace)
    bits = "equal to the bit" if equal else "not equal to the bit"
    return (
        f"epoch {epoch.number:>5}  {epoch.estimator}, step {epoch.lr:.4g}, delays mean "
        f"{tau.mean():.1f}, max {tau.max()}: {bits}"
    )


def _compared(run: Recording, problem_: Problem, reached: Replayed) -> tuple[bool, str]:
    """Whether the promise is kept, if there is one, and what is said about it."""
    x = reached.x_recorded_at
    assert x is not None
    distance = float(np.max(np.abs(x - run.last_x)))
    relative = distance / (float(np.max(np.abs(run.last_x))) or 1.0)
    reason = why_inexact(run.header, reached.reordered)
    kept = reason is not None or relative <= PROMISE
    if reason is not None:
        promise = f"none. {reason}"
    else:
        promise = f"{PROMISE:g} of the largest entry of x: {'kept' if kept else 'BROKEN'}"
    entries = [
        ("equal to the bit", f"{sum(reached.equal)} of {len(reached.equal)} epochs"),
        (
            "distance",
            f"{distance:.3g} at most in an entry, {relative:.3g} of the largest entry of x, after "
            f"epoch {run.last_epoch}",
        ),
        ("promise", promise),
    ]
    if distance > 0:
        here, there = (
            objectives.evaluate(problem_.objective, each, problem_.train).loss
            for each in (x, run.last_x)
        )
        entries.insert(2, ("training loss", f"{here:.6g}, recorded {there:.6g}"))
    return kept, _table(entries)


def _looked_at(run: Recording, problem_: Problem, reached: Replayed, stop: int) -> str:
    """Where an update is, and what f is after it."""
    where = "before the first update"
    if stop > 0:
        index, step = divmod(stop - 1, run.header.inner_steps)
        trace = run.epochs[index].trace
        where = (
            f"{stop}, the {step + 1}. of epoch {index + 1}, by worker {trace.worker[step]} with "
            f"delay {delays.staleness(trace)[step]}"
        )
    found = objectives.evaluate(problem_.objective, reached.x, problem_.train, with_grad=True)
    entries = [
        ("update", where),
        ("training loss", f"{found.loss:.9g}"),
        ("||grad f||^2", f"{found.grad_norm_sq:.9g}"),
    ]
    if (reason := why_inexact(run.header, reached.reordered)) is not None:
        entries.append(("not exact", reason))
    return _table(entries)


def _table(entries: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<18} {value}" for name, value in entries)


def _write_x(path: Path, problem_: Problem, x: np.ndarray, update: int) -> None:
    parameters = jax.tree_util.tree_leaves_with_path(problem_.objective.unravel(x))
    arrays: dict[str, Any] = {
        f"parameters{jax.tree_util.keystr(place)}": leaf for place, leaf in parameters
    }
    files.write_whole(path, lambda file: np.savez(file, x=x, update=update, **arrays))


if __name__ == "__main__":
    launch.start(main, define_flags)
