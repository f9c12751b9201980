"""Jobs side by side: each is done once, kept when it is done, and none outlives an error."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tqdm import tqdm

from experiments import jobs, units
from experiments.units import Units

pytestmark = pytest.mark.timeout(60)
CONFIG = {"flags": {}, "resolved": {}, "started": "today"}


class Job(NamedTuple):
    """What a job's rows depend on."""

    name: str
    size: int


JOBS = [Job("a", 2), Job("b", 3), Job("c", 1)]


@contextlib.contextmanager
def study(folder: Path) -> Iterator[tuple[Units, tqdm]]:
    with (
        units.kept(folder, "study", CONFIG) as kept,
        tqdm(total=0, file=io.StringIO()) as bar,
    ):
        yield kept, bar


def side_by_side(
    carry_out: Callable[[Job, Callable[[int], None]], list[Any]],
    num_threads: int,
    kept: Units,
    bar: tqdm,
    of: list[Job] = JOBS,
) -> list[list[Any]]:
    return jobs.side_by_side(
        carry_out, of, num_threads, bar, kept, cost=lambda job: float(job.size)
    )


def rows_of(job: Job) -> list[tuple[Any, ...]]:
    """Rows that JSON changes: a tuple becomes a list, a nan stays one."""
    return [(job.name, float("nan")), (job.name, job.size / 3)]


def test_rows_come_in_the_order_of_the_jobs_and_none_is_done_twice(tmp_path):
    done: list[str] = []

    def carry_out(job: Job, tick: Callable[[int], None]) -> list[Any]:
        done.append(job.name)
        for _ in range(job.size):
            tick(10)
        return rows_of(job)

    expected = repr([[list(row) for row in rows_of(job)] for job in JOBS])
    for ticked in (60, 0):
        with study(tmp_path) as (kept, bar):
            assert repr(side_by_side(carry_out, 2, kept, bar)) == expected
            assert bar.n == ticked
            assert [repr(jobs.outcome(kept, job)) for job in JOBS] == [
                repr([list(row) for row in rows_of(job)]) for job in JOBS
            ]
            assert jobs.outcome(kept, Job("a", 3)) is None
        assert sorted(done) == ["a", "b", "c"]
    # Another job of the same name is another job.
    with study(tmp_path) as (kept, bar):
        side_by_side(carry_out, 1, kept, bar, [*JOBS, Job("a", 3)])
    assert sorted(done) == ["a", "a", "b", "c"]


def test_the_longest_begins_first(tmp_path):
    done: list[str] = []

    def carry_out(job: Job, tick: Callable[[int], None]) -> list[Any]:
        done.append(job.name)
        return rows_of(job)

    with study(tmp_path) as (kept, bar):
        found = side_by_side(carry_out, 1, kept, bar)
    assert done == ["b", "a", "c"]
    assert [of_job[0][0] for of_job in found] == ["a", "b", "c"]


def test_after_a_signal_no_job_begins_and_those_that_end_are_kept(tmp_path, capfd):
    done: list[str] = []

    def carry_out(job: Job, tick: Callable[[int], None]) -> list[Any]:
        done.append(job.name)
        if job.name == "a":
            kept.stop(signal.SIGTERM, None)
        tick(1)
        return rows_of(job)

    with pytest.raises(KeyboardInterrupt), study(tmp_path) as (kept, bar):
        side_by_side(carry_out, 1, kept, bar)
    assert done == ["b", "a"]
    # How many there are in all is not known.
    ending = f"The same command with --out_dir={tmp_path} goes on after 2 units."
    assert ending in capfd.readouterr().err
    with study(tmp_path) as (again, bar):
        assert len(again) == 2
        side_by_side(carry_out, 1, again, bar)
    assert done == ["b", "a", "c"]
    assert "goes on after 2 units\n" in capfd.readouterr().err


def test_an_error_in_a_job_ends_the_others_where_they_tick(tmp_path):
    began, ended = threading.Event(), []

    def carry_out(job: Job, tick: Callable[[int], None]) -> list[Any]:
        if job.name == "bad":
            assert began.wait(20)
            raise ZeroDivisionError
        began.set()
        try:
            while True:
                tick(1)
                time.sleep(1e-3)
        except concurrent.futures.CancelledError:
            ended.append(job.name)
            raise

    endless = [Job("endless", 2), Job("bad", 1)]
    with pytest.raises(ZeroDivisionError), study(tmp_path) as (kept, bar):
        side_by_side(carry_out, 2, kept, bar, endless)
    assert ended == ["endless"]
    assert len(kept) == 0
