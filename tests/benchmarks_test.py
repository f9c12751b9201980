"""The benchmarks: what they measure is what they say; the times are for a person to judge."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from asvrg import estimators, mlp, objectives, sampling
from asvrg.drivers import threads
from benchmarks import __main__ as benchmarks
from benchmarks import measure, results, runner
from benchmarks.contestants import C_FLOOR, CONTESTANTS, TORCH_SVRG, c_floor, optax_, ours
from benchmarks.measure import Point, Result, Setting, Task
from benchmarks.table import markdown
from tests.binaries import run

needs_compiler = pytest.mark.skipif(
    shutil.which(c_floor.COMPILER) is None, reason="there is no C compiler"
)


def problem(sizes: tuple[int, int, int], batch_size: int, block_size: int) -> measure.Problem:
    setting = Setting(sizes, 1e-2, batch_size, block_size, 64, 16, 8, 0.01, 3)
    rng = np.random.default_rng(5)
    inputs = rng.random((150, sizes[0]), np.float32)
    labels = rng.integers(sizes[2], size=150, dtype=np.int32)
    dim = mlp.mlp(sizes).dim
    x0 = (0.1 * rng.normal(size=dim)).astype(np.float32)
    return measure.Problem(setting, x0, inputs, labels)


@needs_compiler
@pytest.mark.parametrize(
    ("sizes", "batch_size", "block_size"),
    [((784, 100, 10), 10, 1_000), ((30, 37, 17), 7, 500), ((9, 64, 3), 5, 11)],
    ids=["paper", "nothing fits", "small"],
)
def test_c_code_does_the_iterations_of_asvrg(sizes, batch_size, block_size):
    given = problem(sizes, batch_size, block_size)
    # Larger steps bring a unit closer to 0 than rounding, where relu has a kink.
    data, lr = (given.inputs, given.labels), 0.05
    objective = mlp.mlp(sizes, l2=given.setting.l2)
    estimator = estimators.svrg(objective)
    away = given.x0 + np.float32(0.01)  # x_tilde, so that no difference is 0 from the start
    spec = sampling.sampler(150, objective.dim, batch_size=batch_size, block_size=block_size)
    driver = threads.driver(estimator, data, spec, inner_steps=64, num_threads=1, read_period=64)
    snapshot = estimator.prepare(away, data, map)
    expected, _ = driver.inner_loop(given.x0, snapshot, 0, lr)
    draws = sampling.Stream(spec, epoch=0, worker=0).take(64)

    x = np.zeros(objective.dim + c_floor.SLACK, np.float32)
    x[: objective.dim] = given.x0
    c_floor.Iterations(given.setting).run(
        x, *data, c_floor.snapshot(given, away), draws.batch, draws.block, lr
    )
    assert not x[objective.dim :].any()
    moved = expected - given.x0
    assert np.linalg.norm(x[: objective.dim] - expected) < 1e-5 * np.linalg.norm(moved)


CONTESTANTS_HERE = [
    (ours.Asvrg, Task("exact", 1, 0.05, 0.01), (64, 150 + 2 * 7 * 64)),
    (ours.Asvrg, Task("stale", 2, 0.05, 0.01), (64, 150 + 2 * 7 * 64)),
    (ours.Asvrg, Task("simulator", 1, 0.05, 0.01), (64, 150 + 2 * 7 * 64)),
    (ours.Drawn, Task("exact_drawn", 1, 0.05, 0.01), (64, 150 + 2 * 7 * 64)),
    (optax_.Optax, Task("sgd", 1, 0.05, 0.01), (8, 7 * 8)),
    (optax_.Optax, Task("adam", 1, 0.001, 0.01), (8, 7 * 8)),
    pytest.param(c_floor.C, Task("c", 1, 0.05, 0.01), (64, 150 + 2 * 7 * 64), marks=needs_compiler),
]


@pytest.mark.parametrize(("build", "task", "of_a_call"), CONTESTANTS_HERE)
def test_contestants_minimise_one_function(tmp_path, monkeypatch, capsys, build, task, of_a_call):
    given = problem((30, 37, 17), 7, 500)
    measure.save(given, tmp_path)
    monkeypatch.setattr(sys, "argv", ["binary", json.dumps(task), str(tmp_path)])
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        measure.main(build)
    found = measure.read(capsys.readouterr().out)
    objective = mlp.mlp(given.setting.layer_sizes, l2=given.setting.l2)
    at_start = objectives.evaluate(objective, given.x0, (given.inputs, given.labels)).loss
    assert results.check_start(found, at_start) is None
    assert found.curve[-1].loss < at_start - 0.01
    assert found.curve[1][1:3] == of_a_call
    assert found.us_per_update > 0
    assert found.state_mb >= given.inputs.nbytes / 1e6


class Halving:
    """Its loss is halved by every `advance`, from 4; the clock of a test says what that takes."""

    num_updates, grad_evals, nbytes = 10, 70, 0

    def __init__(self, clock: Clock, factor: float = 0.5) -> None:
        self.clock, self.factor = clock, factor
        self.reset()

    def reset(self) -> None:
        self.value = 4.0
        self.clock.now += 1_000.0

    def snapshot(self) -> None:
        self.clock.now += 0.5

    def advance(self) -> None:
        self.value *= self.factor
        self.clock.now += 2.0

    def loss(self) -> float:
        self.clock.now += 1_000.0
        return self.value

    def close(self) -> float:
        return 0.0


class Clock:
    """A clock that is moved by hand."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now)
    return clock


def test_clock_runs_for_updates_and_snapshots_alone(clock):
    assert measure.rate(Halving(clock), 5.0) == pytest.approx(0.2e6)
    points = measure.curve(Halving(clock), limit_seconds=60.0)
    assert points[0] == Point(0.0, 0, 0, 4.0)
    assert points[2] == Point(5.0, 20, 140, 1.0)
    assert [results.reached(points, target) for target in measure.TARGETS] == [
        Point(7.5, 30, 210, 0.5),
        Point(10.0, 40, 280, 0.25),
        Point(12.5, 50, 350, 0.125),
    ]
    assert points[-1].loss == 0.125


def test_a_curve_ends_at_its_limit_or_where_it_diverges(clock):
    points = measure.curve(Halving(clock), limit_seconds=6.0)
    assert [point.seconds for point in points] == [0.0, 2.5, 5.0, 7.5]
    assert results.reached(points, 0.3) is None
    assert len(measure.curve(Halving(clock, factor=np.inf), limit_seconds=6.0)) == 1


def test_memory_is_that_of_this_program_alone():
    now, most = measure.resident_mb("VmRSS"), measure.resident_mb("VmHWM")
    assert 50 < now <= most
    command = "from benchmarks import measure; print(measure.resident_mb('VmHWM'))"
    out = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    assert float(out.stdout) < most - 50  # no jax there, and nothing inherited from here


def result(us: float | None, seconds: list[float | None], mb: float = 100.0) -> Result:
    """A result that reaches the targets after so many seconds, or never."""
    points = [Point(0.0, 0, 0, 2.0)]
    for time_, target in zip(seconds, measure.TARGETS, strict=False):
        if time_ is not None:
            points.append(Point(time_, int(100 * time_), int(700 * time_), target))
    return Result(us, points, mb, 50.0, 40.0)


def test_ratios_are_medians_within_the_rounds():
    ours, adam = CONTESTANTS[0], next(c for c in CONTESTANTS if c.name == "PyTorch Adam")
    by_name = {each.name: each for each in CONTESTANTS}
    order = [ours, by_name[TORCH_SVRG], by_name[C_FLOOR], adam]
    # The machine is twice and four times as slow in the second and the third round.
    rounds = [
        {
            ours.name: result(60.0 * slow + extra, seconds, mb),
            TORCH_SVRG: result(600.0 * slow, [9.0]),
            C_FLOOR: result(30.0 * slow, [0.5, 0.7, 0.9]),
        }
        for slow, extra, seconds, mb in [
            (1, 0.0, [1.0, 2.0, None], 100.0),
            (2, 30.0, [4.0, None, None], 120.0),
            (4, 0.0, [2.0, 3.0, 8.0], 110.0),
        ]
    ]
    rounds[0][adam.name] = result(50.0, [])
    lines = results.summarise(order, rounds)
    assert [line.contestant for line in lines] == [each.name for each in order]
    first, torch_line, floor, adam_line = lines
    assert (first.us_per_update, first.us_min, first.us_max) == (150.0, 60.0, 240.0)
    assert first.updates_per_s == pytest.approx(1e6 / 150)
    assert first.times_c == 2.0
    assert first.times_as_fast_as_torch_svrg == 10.0
    assert (floor.times_c, torch_line.times_as_fast_as_torch_svrg) == (1.0, 1.0)
    # Most rounds came to 0.3, in 2 and in 3 seconds; to 0.2 only one did.
    assert results.seconds_to(first) == (2.0, 3.0, None)
    assert (first.updates_to_0_5, first.grad_evals_to_0_5) == (200, 1_400)
    assert (first.peak_mb, first.rounds) == (120.0, 3)
    assert (adam_line.rounds, adam_line.times_c) == (1, 50.0 / 30.0)
    assert results.seconds_to(adam_line) == (None, None, None)


def test_another_function_is_found_out():
    assert results.check_start(result(1.0, []), 2.0001) is None
    wrong = results.check_start(result(1.0, []), 2.1)
    assert wrong == "minimised another function: its loss at x^0 is 2, not 2.1"


@pytest.mark.parametrize(
    ("program", "timeout", "why", "output"),
    [
        ("raise ValueError('no luck')", 20, "ended with exit code 1", "ValueError: no luck"),
        ("print('hello')", 20, "printed no result", "hello"),
        ("import os; os.kill(os.getpid(), 9)", 20, "ended with exit code -9", ""),
        ("import time; time.sleep(60)", 0.5, "took more than 0 seconds", ""),
    ],
)
def test_a_contestant_that_fails_is_told_from_a_result(program, timeout, why, output):
    failure = runner.run_command([sys.executable, "-c", program], timeout)
    assert isinstance(failure, runner.Failure)
    assert failure.why == why
    assert failure.output.endswith(output)


def test_results_survive_the_pipe(capsys):
    sent = result(12.5, [1.0, None, None])._replace(gb_per_s=3.0)
    measure.report(sent)
    assert measure.read("a line before\n" + capsys.readouterr().out) == sent


# Has a process that has a process of its own, which tells its number.
STARTS_ANOTHER = """
import signal, sys
from benchmarks import runner
another = "import os, time; print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(60)"
parent = f"import os, sys, time; os.fork() or exec({another!r}); time.sleep(60)"
with runner.ending_on_terminate():
    runner.run_command([sys.executable, "-c", parent, sys.argv[1]], 60)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_an_interrupt(tmp_path, number):
    told = tmp_path / "pid"
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS_ANOTHER, told], cwd=runner.ROOT, stderr=subprocess.DEVNULL
    )
    while not (told.exists() and told.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() != 0
    deadline = time.monotonic() + 20
    while alive(int(told.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether it runs; who has ended and was not asked after yet does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


SMALL = (
    "--num_train=100",
    "--hidden=10",
    "--inner_steps=32",
    "--block_size=64",
    "--read_period=16",
    "--rate_seconds=0.01",
    "--limit_seconds=0.01",
)


@needs_compiler
@pytest.mark.timeout(120)
def test_one_command_runs_and_compares_contestants(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    arguments = (*SMALL, "--rounds=2", "--curve_rounds=1", f"--out_dir={tmp_path}")
    only = "--only=PyTorch SGD,iteration in C,mini-batch,memory"
    assert run(benchmarks, *arguments, only) == 0
    assert "PyTorch SGD is left out, as it needs PyTorch" in capsys.readouterr().out
    lines = {line["contestant"]: line for line in table(tmp_path / "benchmarks.csv")}
    assert [*lines] == [each.name for each in CONTESTANTS if each.module == "floor"][:-1]
    assert float(lines[C_FLOOR]["times_c"]) == 1.0
    order = [line["contestant"] for line in table(tmp_path / "rounds.csv")]
    assert order[4:] == order[3::-1]
    curves = table(tmp_path / "curves.csv")
    assert {line["round"] for line in curves} == {"1"}
    assert {line["contestant"] for line in curves} == {C_FLOOR}
    assert imread(tmp_path / "benchmarks.png").shape[2] == 4
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["resolved"]["environment"]["OPENBLAS_NUM_THREADS"] == "1"

    assert run(benchmarks, *arguments, only) == 2
    assert "without another run's results" in capsys.readouterr().err


def table(path: os.PathLike[str]) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_failure_leaves_the_results_of_the_others(tmp_path, capsys, monkeypatch):
    answers = {
        C_FLOOR: runner.Failure("ended with exit code 1", "no luck"),
        "floor: sgemm of one mini-batch": Result(20.0, [], 70.0, 40.0, 30.0),
    }
    monkeypatch.setattr(runner, "run", lambda contestant, *rest: answers[contestant.name])
    monkeypatch.setattr(runner, "missing", lambda contestant: None)
    names = "--only=iteration in C,one mini-batch"
    assert run(benchmarks, *SMALL, names, "--rounds=2", f"--out_dir={tmp_path}") == 1
    assert "floor: iteration in C ended with exit code 1:\nno luck" in capsys.readouterr().err
    (line,) = table(tmp_path / "benchmarks.csv")
    assert (line["contestant"], line["rounds"]) == ("floor: sgemm of one mini-batch", "2")


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--only=nobody", "--only must be parts of these names: asvrg exact (1 thread); "),
        ("--activation=tanh", "--activation must be relu here, got tanh."),
        ("--hidden=10,10", "--hidden must be one number here, got 10,10."),
        ("--rounds=0", "--rounds must be a whole number of at least 1, got 0."),
        ("--rate_seconds=0", "--rate_seconds must be a finite number above 0, got 0.0."),
        ("--block_size=0", "--block_size must be a whole number of at least 1, got 0."),
    ],
)
def test_bad_flags_give_a_sentence(tmp_path, capsys, flag, sentence):
    assert run(benchmarks, *SMALL, flag, f"--out_dir={tmp_path}/out") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_readme_has_the_table_of_the_committed_csv():
    root = Path(__file__).parent.parent
    text = markdown(root / "experiments" / "results" / "benchmarks")
    assert text in (root / "README.md").read_text(encoding="utf-8")
