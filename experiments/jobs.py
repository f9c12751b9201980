"""Runs side by side on threads, each kept when it is done."""

from __future__ import annotations

import concurrent.futures
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from experiments.units import Units

Job = TypeVar("Job", bound=tuple)


def side_by_side(
    carry_out: Callable[[Job, Callable[[int], None]], list[Any]],
    jobs: Sequence[Job],
    num_threads: int,
    bar: tqdm,
    kept: Units,
    *,
    cost: Callable[[Job], float],
) -> list[list[Any]]:
    """Does jobs on threads, and keeps them; compiled code runs without the interpreter lock.

    Args:
      carry_out: a job, and a function to call with what shall be added to the bar -> rows.
      jobs: any number, each a named tuple of all that its rows depend on.
      num_threads: how many of them at once.
      bar: of the progress.
      kept: those that are done already, which are not done again.
      cost: how long a job takes, in any unit; the longest begin first.

    Returns:
      The rows of each job, in the order of the jobs, as JSON has them.

    Raises:
      KeyboardInterrupt: a signal came; the jobs that were under way are kept.
    """
    stop = threading.Event()
    found: list[Any] = [outcome(kept, job) for job in jobs]
    # The longest first, so that no thread is left with one of them in the end.
    order = sorted(range(len(jobs)), key=lambda i: -cost(jobs[i]))

    def tick(count: int) -> None:
        if stop.is_set():
            raise concurrent.futures.CancelledError
        bar.update(count)

    def begin(job: Job) -> list[Any] | None:
        return None if kept.stop.received else carry_out(job, tick)

    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        futures = {pool.submit(begin, jobs[i]): i for i in order if found[i] is None}
        try:
            for future in concurrent.futures.as_completed(futures):
                i, rows = futures[future], future.result()
                if rows is not None:
                    found[i] = kept.keep(_name(jobs[i]), rows)
            kept.stop.heed()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return found


def outcome(kept: Units, job: tuple) -> list[Any] | None:
    """The rows of a job that was done already, as JSON has them; None of another."""
    return kept.outcome(_name(job))


def _name(job: tuple) -> str:
    """The job's among the units, with all that its rows depend on."""
    return json.dumps(job)
