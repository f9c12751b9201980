"""The prediction of speed and convergence: from traces whose times are known, and end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from asvrg import delays, sampling, simulate, virtual_clock
from asvrg.durations import constant, exponential
from asvrg.errors import InputError
from asvrg.types import Trace
from asvrg.virtual_clock import Cluster
from experiments import predict_speedup, train_shared
from experiments.methods import Phase, Step
from experiments.problem import Problem
from experiments.speedup import outputs, predictions, short_runs
from experiments.speedup.predictions import BEYOND, MEASURED, SIMULATED, Curve
from experiments.speedup.short_runs import Point, Run
from tests import problems
from tests.binaries import SMALL, run

pytestmark = pytest.mark.timeout(180)

PROBLEM = (*SMALL[:3], "--block_size=64", "--lr=0.2")  # of 100 images
QUICK = ("--num_epochs=2", "--rounds=2", "--inner_steps=50", "--read_period=5")


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_of(trace: Trace, num_workers: int = 1) -> Run:
    return Run(num_workers, [trace], [0.5], [(0.0, 2.0), (1.0, 1.0)])


# Calibration, on traces of the virtual clock itself.


@pytest.mark.parametrize("updates_per_read", [1, 4])
def test_calibration_finds_what_the_times_were_made_of(updates_per_read: int) -> None:
    place = Cluster(constant(3.0), constant(0.5), updates_per_read=updates_per_read)
    found = short_runs.calibrate(run_of(delays.event_driven(41, 1, place, seed=0)))
    assert found.updates_per_read == updates_per_read
    assert found.compute.mean == pytest.approx(3.0)
    assert found.service.mean == pytest.approx(0.5)
    assert (found.setup, found.outside) == (0.0, 0.5)
    # So the prediction for three workers is what three workers do.
    three = delays.event_driven(41, 3, place, seed=0)
    (again,) = predictions.epochs(predictions.cluster(found, cores=None), 3, 41, seed=0, count=1)
    np.testing.assert_array_equal(again.worker, three.worker)
    np.testing.assert_array_equal(again.read_version, three.read_version)
    np.testing.assert_allclose(again.times.landed, three.times.landed)


def test_calibration_takes_the_faster_half_of_the_epochs() -> None:
    slow, fast = (
        delays.event_driven(20, 1, Cluster(constant(seconds), constant(0.1)), seed=0)
        for seconds in (5.0, 1.0)
    )
    disturbed = Run(1, [slow, fast, slow, fast], [9.0, 0.5, 9.0, 0.7], [])
    found = short_runs.calibrate(disturbed)
    assert found.compute.mean == pytest.approx(1.0)
    assert found.outside == pytest.approx(0.6)
    assert short_runs.undisturbed(short_runs.speeds(disturbed)) == pytest.approx(1 / 1.1)


def test_calibration_starts_with_the_first_read() -> None:
    trace = delays.event_driven(9, 1, Cluster(constant(1.0), constant(0.1)), seed=0)
    late = trace._replace(times=trace.times._make(each + 0.25 for each in trace.times))
    assert short_runs.calibrate(run_of(late)).setup == 0.25


def test_a_calibration_with_two_workers_knows_their_service() -> None:
    """Two workers who never meet: each is the other's half a cycle behind."""
    trace = delays.event_driven(40, 2, Cluster(constant(1.0), constant(0.3)), seed=0)
    found = short_runs.calibrate(run_of(trace, 2))
    # But for the first window of worker 1, which waited for worker 0's to land.
    assert found.compute.mean == pytest.approx(1.0)
    assert found.service.mean == pytest.approx(0.3, abs=0.3 / 30)


def test_windows_are_told_apart_by_worker_and_read() -> None:
    place = Cluster(exponential(1.0), exponential(0.1), updates_per_read=3)
    trace = delays.event_driven(20, 4, place, seed=1)
    sizes = short_runs.window_sizes(trace)
    assert sorted(sizes.tolist()) == [2] + [3] * 6
    ends = np.cumsum(sizes) - 1
    assert np.all(trace.times.landed[ends] - trace.times.landed[ends - sizes + 1] == 0)


def test_processes_that_wait_take_their_share_of_the_cores() -> None:
    """Two workers and the server on two cores: each has two thirds of one."""
    one = short_runs.calibrate(
        run_of(delays.event_driven(30, 1, Cluster(constant(3.0), constant(0.5)), seed=0))
    )
    assert predictions.uncrowded(one, 2).compute.mean == pytest.approx(3.0)
    means = [predictions.crowded(one, k, 2).compute.mean for k in (1, 2, 3)]
    assert means == pytest.approx([3.0, 4.5, 6.0])
    assert predictions.crowded(one, 9, None).compute.mean == pytest.approx(3.0)
    measured = one._replace(num_workers=3)
    assert predictions.uncrowded(measured, 2).compute.mean == pytest.approx(1.5)


def test_one_window_is_not_enough() -> None:
    place = Cluster(constant(1.0), constant(0.1), updates_per_read=8)
    with pytest.raises(InputError, match="--inner_steps must be enough .* got 8, with 8"):
        short_runs.calibrate(run_of(delays.event_driven(8, 1, place, seed=0)))


# Convergence together with time.


def small_problem() -> tuple[Problem, sampling.Sampler, Phase]:
    small = problems.get("tanh_deep")
    problem_ = Problem(small.objective, small.x0, lambda seed: small.x0, small.data, small.data)
    sampler = sampling.sampler(problems.NUM_SAMPLES, small.objective.dim, batch_size=2, seed=3)
    return problem_, sampler, Phase("svrg", Step(0.1, 0.0), 3)


def test_the_curve_of_one_worker_is_that_of_the_serial_run() -> None:
    problem_, sampler, phase = small_problem()
    place = Cluster(constant(0.03), constant(0.01))
    calibration = short_runs.calibrate(run_of(delays.event_driven(10, 1, place, seed=0)))
    found = predictions.curve(
        SIMULATED,
        calibration,
        place,
        1,
        problem_,
        sampler,
        phase,
        inner_steps=10,
        cores=None,
        seed=0,
    )
    # An epoch: half a second outside of the inner loop, and 10 updates of 0.04 s.
    np.testing.assert_allclose([point.seconds for point in found.points], [0.0, 0.9, 1.8, 2.7])
    serial = simulate.driver(
        phase.make_estimator(problem_.objective), problem_.train, sampler, inner_steps=10
    )
    alone = [point for _, point in short_runs.train(serial, problem_, phase)]
    losses = [point.train_loss for point in alone]
    assert [point.train_loss for point in found.points] == losses
    np.testing.assert_equal(
        [point.test_error for point in found.points], [point.test_error for point in alone]
    )
    assert losses[3] < losses[0]


def test_the_full_gradient_is_shared_out_as_far_as_there_are_chunks_and_cores() -> None:
    problem_, _, phase = small_problem()
    place = Cluster(constant(0.0), constant(0.0))
    sampler = sampling.sampler(problems.NUM_SAMPLES, problem_.objective.dim, batch_size=2)
    calibration = short_runs.Calibration(1, 1, constant(0.0), constant(0.0), 0.0, 8.0)

    def pause(chunks: int, num_workers: int, cores: int | None) -> float:
        return predictions.outside(calibration, num_workers, cores, chunks)

    assert [pause(10, k, None) for k in (1, 2, 8, 10, 99)] == [8.0, 4.0, 1.0, 0.8, 0.8]
    assert [pause(10, k, 2) for k in (1, 2, 8)] == [8.0, 4.0, 4.0]
    # Twelve samples are one chunk.
    found = predictions.curve(
        SIMULATED,
        calibration,
        place,
        4,
        problem_,
        sampler,
        phase,
        inner_steps=2,
        cores=None,
        seed=0,
    )
    assert [point.seconds for point in found.points] == [0.0, 8.0, 16.0, 24.0]


def test_equation_22_by_hand() -> None:
    def points(*pairs: tuple[float, float]) -> list[Point]:
        return [Point(*pair, test_error=0.5) for pair in pairs]

    one = Curve(MEASURED, 1, 2, points((0.0, 1.0), (4.0, 0.1)))
    two = Curve(MEASURED, 2, 2, points((0.0, 1.0), (1.0, 0.5), (2.0, 0.05)))
    late = Curve(BEYOND, 9, None, points((0.0, 1.0), (0.1, 0.9)))
    lines = predictions.reached([one, two, late])
    assert {line.target_loss for line in lines} == {0.1}
    # log(0.5 / 0.1) / log(0.5 / 0.05) = log10(5) of the second epoch.
    seconds = 1 + np.log10(5)
    assert [line.seconds for line in lines] == [4.0, pytest.approx(seconds), None]
    assert [line.time_speedup for line in lines] == [1.0, pytest.approx(4 / seconds), None]


# End to end.


def test_predicts_and_says_what_is_simulated(tmp_path, capsys, monkeypatch) -> None:
    draw = outputs._draw

    def before_the_folder_is_known_as_used(path: Path, results: outputs.Results) -> None:
        assert not (path.parent / outputs.SPEEDS).exists()
        draw(path, results)

    monkeypatch.setattr(outputs, "_draw", before_the_folder_is_known_as_used)
    arguments = ("--workers=2,1", "--beyond=2,4", "--replay=1,4", f"--out_dir={tmp_path}")
    assert run(predict_speedup, *PROBLEM, *QUICK, *arguments) == 0

    speeds = read_csv(tmp_path / "speedup.csv")
    config = json.loads((tmp_path / "config.json").read_text())["resolved"]
    limit = config["saturation_workers"]
    lines = [(line["kind"], int(line["workers"])) for line in speeds]
    assert lines[:4] == [(MEASURED, 1), (MEASURED, 2), (SIMULATED, 1), (SIMULATED, 2)]
    beyond = sorted({1, 2, 4, int(np.ceil(limit))})
    assert lines[4:] == [(BEYOND, k) for k in beyond]
    for real, virtual in zip(speeds[:2], speeds[2:4], strict=True):
        ratio = float(virtual["updates_per_s"]) / float(real["updates_per_s"])
        assert float(virtual["error_percent"]) == pytest.approx(100 * (ratio - 1), abs=0.01)
    assert [line["mean_delay"] for line in speeds if line["workers"] == "1"] == ["0"] * 3
    times = config["calibration"]
    cycle = times["compute_seconds"] + times["service_seconds"]
    assert limit == pytest.approx(cycle / times["service_seconds"])
    assert float(speeds[4]["updates_per_s"]) == pytest.approx(5 / cycle, rel=0.1)

    curves = read_csv(tmp_path / "convergence.csv")
    assert {(line["kind"], line["workers"]) for line in curves} == {
        (kind, str(k)) for kind in (MEASURED, SIMULATED) for k in (1, 2)
    } | {(BEYOND, "1"), (BEYOND, "4")}
    one = {
        kind: [
            line["train_loss"] for line in curves if (line["kind"], line["workers"]) == (kind, "1")
        ]
        for kind in (MEASURED, SIMULATED, BEYOND)
    }
    # One thread equals the simulator without delays.
    assert one[MEASURED] == one[SIMULATED] == one[BEYOND]
    assert len(one[MEASURED]) == 3

    reached = read_csv(tmp_path / "time_speedup.csv")
    assert [line["time_speedup"] for line in reached if line["workers"] == "1"] == ["1"] * 3
    shares: dict[tuple[str, str], float] = {}
    for line in read_csv(tmp_path / "delays.csv"):
        key = line["kind"], line["workers"]
        shares[key] = shares.get(key, 0.0) + float(line["share"])
    assert shares == pytest.approx(dict.fromkeys(shares, 1.0), abs=1e-4)
    assert (tmp_path / "speedup.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "SIMULATED, a core for each worker" in printed
    assert f"saturated from K* = {limit:.1f} workers on (simulated)" in printed


def test_recorded_runs_are_predicted_as_well(tmp_path, capsys) -> None:
    for k in (1, 2):
        flags = (*PROBLEM, "--num_epochs=2", "--inner_steps=50", "--read_period=5", "--record")
        assert run(train_shared, *flags, f"--num_threads={k}", f"--out_dir={tmp_path}/{k}") == 0
    rows = [read_csv(tmp_path / str(k) / "metrics.csv") for k in (1, 2)]
    runs = f"--runs={tmp_path}/2,{tmp_path}/1"
    out = f"--out_dir={tmp_path}/out"
    assert run(predict_speedup, runs, "--beyond=3", "--replay=3", "--cores=0", out) == 0
    speeds = read_csv(tmp_path / "out" / "speedup.csv")
    assert [(line["kind"], line["workers"], line["cores"]) for line in speeds[:4]] == [
        (kind, k, "") for kind in (MEASURED, SIMULATED) for k in "12"
    ]
    curves = read_csv(tmp_path / "out" / "convergence.csv")
    for k, recorded in zip("12", rows, strict=True):
        found = [
            float(line["train_loss"])
            for line in curves
            if (line["kind"], line["workers"]) == (MEASURED, k)
        ]
        np.testing.assert_allclose(found, [float(row["train_loss"]) for row in recorded], rtol=1e-5)

    other = (*PROBLEM, "--num_epochs=1", "--inner_steps=40", "--record")
    assert run(train_shared, *other, "--num_threads=3", f"--out_dir={tmp_path}/3") == 0
    for bad, sentence in [
        (f"{tmp_path}/1,{tmp_path}/3", "--runs must differ in K alone"),
        (f"{tmp_path}/1,{tmp_path}/1", "--runs must have a different K each"),
        (f"{tmp_path}/nothing", "holds no recorded run"),
    ]:
        capsys.readouterr()
        assert run(predict_speedup, f"--runs={bad}", f"--out_dir={tmp_path}/new") == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers=0"], "every entry of --workers must be a whole number of at least 1, got 0."),
        (["--beyond=2,x"], "every entry of --beyond must be a whole number of at least 1, got 'x'"),
        (["--replay=1.5"], "every entry of --replay must be a whole number"),
        (["--rounds=0"], "--rounds must be a whole number of at least 1, got 0."),
        (["--cores=-1"], "--cores must be a whole number of at least 0, got -1."),
        (["--latency=-1"], "--latency must be a finite number of at least 0"),
        (["--bandwidth=0"], "--bandwidth must be a finite number above 0"),
        (["--method=sgd_svrg"], "--method must be sgd or svrg here"),
        (["--runs=a", "--workers=1"], "--workers belongs to runs with threads"),
        (["--read_period=50"], "--inner_steps must be enough for a worker to read x twice"),
    ],
)
def test_bad_flags_give_a_sentence(tmp_path, capsys, arguments, sentence) -> None:
    flags = (*PROBLEM, *QUICK, f"--out_dir={tmp_path}/out", *arguments)
    assert run(predict_speedup, *flags) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out" / "speedup.csv").exists()


def test_the_network_bounds_what_is_predicted(tmp_path) -> None:
    """4 x 760 bytes at 0.1 Mbit/s: a message, and so a window, takes 0.2432 s of the link."""
    arguments = ("--workers=1", "--beyond=20", "--replay=0", "--bandwidth=0.1")
    assert run(predict_speedup, *PROBLEM, *QUICK, *arguments, f"--out_dir={tmp_path}") == 0
    last = read_csv(tmp_path / "speedup.csv")[-1]
    assert (last["kind"], last["workers"]) == (BEYOND, "20")
    assert float(last["updates_per_s"]) == pytest.approx(5 / 0.2432, rel=1e-3)
    place = Cluster(
        constant(0.0), constant(0.0), virtual_clock.Network(0.0, 12_500.0, 3_040, 3_040)
    )
    assert virtual_clock.saturation(place) == pytest.approx(2.0)
