"""Server and workers in real MPI jobs: they agree with the simulator, and outlive each other."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
from typing import Any

import numpy as np
import pytest

from asvrg import delays
from asvrg.drivers import simulate
from asvrg.types import Shard, Snapshot, Trace
from tests import mpi_jobs, mpi_program
from tests.mpi_program import LR, NUM_SAMPLES, Spec

pytestmark = pytest.mark.timeout(150)

PROGRAM = str(pathlib.Path(__file__).parent / "mpi_program.py")
LAUNCHES = {
    "openmpi": {},  # the snapshot by collectives
    "ulfm": {"fault_tolerant": True},  # the snapshot by messages
    "mpich": {"mpi": "mpich"},  # without mpi4jax
}


def run(
    folder: pathlib.Path, specs: list[dict[str, Any]], ranks: int, **launch: Any
) -> subprocess.CompletedProcess[str]:
    """Runs specs in one job."""
    return mpi_jobs.mpiexec([PROGRAM, str(folder), json.dumps(specs)], ranks, **launch)


def read(folder: pathlib.Path, index: int) -> tuple[np.ndarray, list[Trace], list[int]]:
    """The x of all epochs, x^0 first, their traces, and the ranks that live at the end."""
    with np.load(folder / f"{index}.npz") as saved:
        traces = []
        for epoch in range(1, len(saved["x"])):
            weights = saved[f"epoch{epoch}/weights"]
            shards = tuple(
                Shard(saved[f"epoch{epoch}/samples{k}"], float(weight))
                for k, weight in enumerate(weights)
            )
            worker, version = saved[f"epoch{epoch}/worker"], saved[f"epoch{epoch}/version"]
            scale = saved.get(f"epoch{epoch}/scale")
            traces.append(Trace(worker, version, shards=shards, scale=scale))
        return saved["x"], traces, saved["alive"].tolist()


def distance_to_replay(spec: Spec, x: np.ndarray, traces: list[Trace]) -> float:
    """The largest difference between an epoch's x and what the simulator makes of its trace."""
    objective, data, _, sampler = mpi_program.problem()
    estimator = mpi_program.estimator(spec.method, objective)
    found = 0.0
    for epoch, trace in enumerate(traces):
        snapshot = estimator.prepare(x[epoch], data, map)
        again = simulate.replay(
            estimator, x[epoch], snapshot, data, sampler, trace, epoch=epoch, lr=LR
        )
        found = max(found, float(np.max(np.abs(again - x[epoch + 1]))))
    return found


def kill(folder: pathlib.Path, rank: int, after: str, number: int = signal.SIGKILL) -> None:
    """Sends a signal to a rank as soon as a file is there."""
    until = time.monotonic() + 60
    while not (folder / after).exists() and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(int((folder / f"pid.{rank}").read_text()), number)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_one_worker_equals_the_simulator_without_delays(
    launch: str, tmp_path: pathlib.Path
) -> None:
    methods = ["svrg", "sgd"]
    job = run(tmp_path, [{"method": method} for method in methods], 2, **LAUNCHES[launch])
    assert job.returncode == 0, job.stderr
    objective, data, x0, sampler = mpi_program.problem()
    for i, method in enumerate(methods):
        estimator = mpi_program.estimator(method, objective)
        x, traces, _ = read(tmp_path, i)
        expected = x0
        for epoch in range(len(traces)):
            snapshot: Snapshot = estimator.prepare(expected, data, map)
            serial = delays.none(len(traces[epoch].worker))
            expected = simulate.replay(
                estimator, expected, snapshot, data, sampler, serial, epoch=epoch, lr=LR
            )
        np.testing.assert_allclose(x[-1], expected, rtol=0, atol=1e-12)
        assert np.max(np.abs(x[-1] - x0)) > 0.1


@pytest.mark.parametrize("launch", LAUNCHES)
def test_three_workers_replay_in_the_simulator(launch: str, tmp_path: pathlib.Path) -> None:
    specs = [
        Spec(),
        Spec(overlap=True),
        Spec(max_delay=1),
        Spec(shard_sizes=[60, 3, 40]),
        Spec(method="sgd", shard_sizes=[3, 60, 40], overlap=True, max_delay=4),
        Spec(delay_adaptive=True),
    ]
    job = run(tmp_path, [spec._asdict() for spec in specs], 4, **LAUNCHES[launch])
    assert job.returncode == 0, job.stderr
    for i, spec in enumerate(specs):
        x, traces, alive = read(tmp_path, i)
        assert alive == [1, 2, 3]
        assert distance_to_replay(spec, x, traces) < 1e-12
        for trace in traces:
            assert len(trace.worker) == spec.inner_steps
            assert delays.staleness(trace).max() <= (spec.max_delay or spec.inner_steps)
            sizes = [len(shard.samples) for shard in trace.shards or ()]
            wanted = spec.shard_sizes or [35, 34, 34]
            assert all(size in (wanted[k], 0) for k, size in enumerate(sizes))
            assert trace.worker.max() < 3
            if spec.delay_adaptive:
                scale = delays.adaptive_scale(delays.staleness(trace), 3)
                np.testing.assert_array_equal(trace.scale, scale)


def test_a_wrong_trace_does_not_replay(tmp_path: pathlib.Path) -> None:
    """The distance of the tests above would show a delay or a shard that is recorded wrongly."""
    assert run(tmp_path, [Spec()._asdict()], 4).returncode == 0
    x, traces, _ = read(tmp_path, 0)
    late = [trace._replace(read_version=np.maximum(trace.read_version - 1, 0)) for trace in traces]
    assert distance_to_replay(Spec(), x, late) > 1e-6
    assert traces[0].shards is not None
    turned = [trace._replace(shards=trace.shards[1:] + trace.shards[:1]) for trace in traces]
    assert distance_to_replay(Spec(), x, turned) > 1e-6


@pytest.mark.parametrize("victims", [[2], [1, 3]])
def test_a_job_outlives_killed_workers(victims: list[int], tmp_path: pathlib.Path) -> None:
    spec = Spec(inner_steps=400, num_epochs=8)

    def on_start(job: subprocess.Popen) -> None:
        def kill_all() -> None:
            for rank in victims:
                kill(tmp_path, rank, "0.2")

        threading.Thread(target=kill_all, daemon=True).start()

    job = run(tmp_path, [spec._asdict()], 4, fault_tolerant=True, on_start=on_start)
    assert job.returncode == 0, job.stderr
    x, traces, alive = read(tmp_path, 0)
    assert alive == [rank for rank in (1, 2, 3) if rank not in victims]
    assert [len(trace.worker) for trace in traces] == [400] * 8
    # Also the epochs of the deaths, as a trace names the shards before and after.
    assert distance_to_replay(spec, x, traces) < 1e-12
    assert traces[-1].shards is not None
    last = [traces[-1].shards[k] for k in np.unique(traces[-1].worker)]
    assert sum(len(shard.samples) for shard in last) == NUM_SAMPLES
    objective, data, _, _ = mpi_program.problem()
    assert "died" in job.stderr
    assert objective.loss(x[-1], data) < 0.7 * objective.loss(x[0], data)


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_rank_that_stands_still_for_a_while_goes_on(stopped: int, tmp_path: pathlib.Path) -> None:
    # So long an epoch that the worker is not stopped when few of its updates are left; and stopped
    # again, as all wait for one that stands still in the full gradient, and nothing is late.
    spec = Spec(inner_steps=3_200, num_epochs=2)

    def on_start(job: subprocess.Popen) -> None:
        def stop_for_a_while() -> None:
            with contextlib.suppress(ProcessLookupError):  # all was done after the first time
                for _ in range(3):
                    kill(tmp_path, stopped, "0.1", signal.SIGSTOP)
                    time.sleep(1.0)
                    kill(tmp_path, stopped, "0.1", signal.SIGCONT)
                    time.sleep(0.1)

        threading.Thread(target=stop_for_a_while, daemon=True).start()

    job = run(tmp_path, [spec._asdict()], 4, fault_tolerant=True, on_start=on_start)
    assert job.returncode == 0, job.stderr
    assert "died" not in job.stderr
    x, traces, alive = read(tmp_path, 0)
    assert alive == [1, 2, 3]
    assert [len(trace.worker) for trace in traces] == [3_200] * 2
    assert distance_to_replay(spec, x, traces) < 1e-12
    if stopped:
        # Its update landed last of those of an epoch which the others have done meanwhile.
        assert max(delays.staleness(trace).max() for trace in traces) > 50


@pytest.mark.parametrize("launch", ["ulfm", "openmpi", "mpich"])
def test_a_killed_server_leaves_no_worker_behind(launch: str, tmp_path: pathlib.Path) -> None:
    spec = Spec(inner_steps=400, num_epochs=10_000)

    def on_start(job: subprocess.Popen) -> None:
        threading.Thread(target=kill, args=(tmp_path, 0, "0.1"), daemon=True).start()

    # mpi_jobs.mpiexec fails if a process of the job is left.
    job = run(tmp_path, [spec._asdict()], 3, on_start=on_start, **LAUNCHES[launch])
    assert job.returncode != 0


@pytest.mark.parametrize("launch", LAUNCHES)
def test_the_server_tells_what_a_worker_raised(launch: str, tmp_path: pathlib.Path) -> None:
    job = run(tmp_path, [Spec(raise_at=2)._asdict()], 3, **LAUNCHES[launch])
    assert job.returncode != 0
    assert "rank 0: Rank 2 failed with InputError: sampler must draw from the 7" in job.stderr
