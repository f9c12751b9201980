"""Runs side by side on threads, each kept when it is done."""

from __future__ import annotations

import concurrent.futures
import json
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tqdm import tqdm

from experiments.deep.runs import Method, Row
from experiments.units import Units


class Job(NamedTuple):
    """One run: a method with a step and a seed, evaluated every so many epochs."""

    method: Method
    lr: float
    seed: int
    every: int


def side_by_side(
    carry_out: Callable[[Job, Callable[[int], None]], list[Row]],
    jobs: Sequence[Job],
    num_threads: int,
    bar: tqdm,
    kept: Units,
) -> list[list[Row]]:
    """Does jobs on threads, and keeps them; compiled code runs without the interpreter lock.

    Args:
      carry_out: a job, and a function to call with the gradients computed -> rows.
      jobs: any number.
      num_threads: how many of them at once.
      bar: of the progress.
      kept: those that are done already, which are not done again.

    Returns:
      The rows of each job, in the order of the jobs.

    Raises:
      KeyboardInterrupt: a signal came; the jobs that were under way are kept.
    """
    stop = threading.Event()
    found = [kept.outcome(_name(job)) for job in jobs]
    # The longest first, so that no thread is left with one of them in the end.
    order = sorted(range(len(jobs)), key=lambda i: -jobs[i].method.num_epochs)

    def tick(count: int) -> None:
        if stop.is_set():
            raise concurrent.futures.CancelledError
        bar.update(count)

    def begin(job: Job) -> list[Row] | None:
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
    return [[Row._make(row) for row in of_job] for of_job in found]


def _name(job: Job) -> str:
    """The job's among the units, with all that its rows depend on."""
    return json.dumps(job)
