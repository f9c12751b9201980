"""The search for steps from flags to csv files, on a hundred digits."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from absl import flags

import asvrg.checkpoints
from asvrg import delays, estimators, mlp, objectives, sampling, schedules, training
from asvrg.drivers import simulate
from asvrg.drivers.simulate import Run, SweepResult
from asvrg.types import EpochResult, Trace
from experiments import methods, tune
from experiments.methods import Step
from experiments.paper import evidence
from experiments.tune import Job, Setting
from tests.binaries import SMALL, run

pytestmark = pytest.mark.timeout(120)

M, S, PRETRAIN, DELAY, B = 20, 3, 1, 5, 10
SEEDS = (100, 101)
LR, DECAYS = (0.5, 2.0), (0.0, 0.5)
# The problem of other tests, for which much is compiled already.
STUDY = (
    "--dataset=digits",
    *SMALL[:3],
    "--block_size=64",
    f"--inner_steps={M}",
    f"--num_epochs={S}",
    f"--pretrain_epochs={PRETRAIN}",
    "--lr=2,0.5",
    "--lr_decay=0,0.5",
    f"--delay={DELAY}",
    "--seed=100",
    "--num_seeds=2",
)


MAKE_SETTING = tune.make_setting


@functools.cache
def setting() -> Setting:
    values = flags.FlagValues()
    tune.define_flags(values)
    values(["binary", *STUDY])
    return MAKE_SETTING(values)


@pytest.fixture(autouse=True, scope="module")
def _compile_once() -> Iterator[None]:
    """Every search of this file has one problem, so that what is compiled serves all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "make_setting", lambda values: setting())
        patch.setattr(methods, "make_estimator", functools.cache(methods.make_estimator))
        patch.setattr(tune, "AT_ONCE", 1)
        yield


class Line(NamedTuple):
    """A line of steps.csv."""

    method: str
    step: Step
    seed: int
    row: dict[str, str]

    @property
    def loss(self) -> float:
        return float(self.row["train_loss"])


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines(folder: Path) -> list[Line]:
    return [
        Line(r["method"], Step(float(r["lr"]), float(r["lr_decay"])), int(r["seed"]), r)
        for r in read(folder / evidence.STEPS)
    ]


def undisturbed(folder: Path, *study: str) -> Path:
    """Searches without a stop, for which there are no checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asvrg.checkpoints, "save", lambda *args: None)
        assert run(tune, *study, "--num_threads=1", f"--out_dir={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a search."""
    return undisturbed(tmp_path_factory.mktemp("tune"), *STUDY)


def test_every_step_is_there_once_with_every_seed(whole):
    found = lines(whole)
    assert set(Counter((each.method, each.step, each.seed) for each in found).values()) == {1}
    assert {int(each.row["epoch"]) for each in found} == {S}
    for method, decays in (("sgd", DECAYS), ("svrg", (0.0,)), ("sgd_svrg", (0.0,))):
        mine = [each for each in found if each.method == method]
        alphas = sorted({each.step.lr for each in mine})
        assert set(LR) <= set(alphas)
        every = [(Step(lr, decay), seed) for lr in alphas for decay in decays for seed in SEEDS]
        assert [(each.step, each.seed) for each in mine] == every
    resolved = json.loads((whole / "config.json").read_text())["resolved"]
    assert resolved["seeds"] == list(SEEDS)
    assert (resolved["num_train"], resolved["batch_size"], resolved["block_size"]) == (100, B, 64)
    assert resolved["dim"] == setting().problem.objective.dim == 65 * 10 + 11 * 10


def test_the_best_has_the_smallest_mean_loss(whole):
    best = read(whole / evidence.BEST)
    assert [(row["method"], row["among"]) for row in best] == [
        (method, among) for method in methods.METHODS for among in ("all", "grid")
    ]
    for row in best:
        of_method = [each for each in lines(whole) if each.method == row["method"]]
        tried = [each for each in of_method if row["among"] == "all" or each.step.lr in LR]
        losses: dict[Step, list[float]] = {}
        for each in tried:
            losses.setdefault(each.step, []).append(each.loss)
        step = min(losses, key=lambda step: np.mean(losses[step]))
        assert Step(float(row["lr"]), float(row["lr_decay"])) == step
        assert int(row["num_tried"]) == len(losses)
        expected = (np.mean(losses[step]), min(losses[step]), max(losses[step]))
        found = [float(row[name]) for name in ("train_loss", "smallest", "largest")]
        np.testing.assert_allclose(found, expected, rtol=1e-8)
        # The search went on until the best of all lay inside.
        if row["among"] == "all":
            assert step.lr < max(each.step.lr for each in tried)


def state_after(
    num_epochs: int, estimator: Any, step: Step, seed: int, state: EpochResult
) -> EpochResult:
    """Training goes on by itself alone: by the simulated driver, with the delays of the seed."""
    problem = setting().problem
    dim = problem.objective.dim

    def trace(epoch: int) -> Trace:
        of_epoch = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(1)[0]
        return delays.uniform(M, DELAY, seed=int(of_epoch))

    driver = simulate.driver(
        estimator,
        problem.train,
        sampling.sampler(100, dim, batch_size=B, block_size=64, seed=seed),
        inner_steps=M,
        trace=trace,
        max_delay=DELAY,
    )
    schedule = schedules.polynomial(*step)
    *_, last = training.run(driver, state, schedule=schedule, num_epochs=num_epochs)
    return last


def best_step(folder: Path, method: str) -> Step:
    (row,) = [
        row
        for row in read(folder / evidence.BEST)
        if (row["method"], row["among"]) == (method, "all")
    ]
    return Step(float(row["lr"]), float(row["lr_decay"]))


def test_a_line_is_what_a_run_of_its_own_ends_with(whole):
    """Of sgd_svrg, which begins with the best step of sgd; by a seed that has its own x^0."""
    seed, problem = SEEDS[1], setting().problem
    of_sgd = best_step(whole, "sgd")
    sgd, svrg = estimators.sgd(problem.objective), estimators.svrg(problem.objective)
    begin = training.start(mlp.init(jax.random.key(seed), (64, 10, 10)))
    middle = state_after(PRETRAIN, sgd, of_sgd, seed, begin)
    ends = {
        # Of sgd the same epochs go on.
        ("sgd", of_sgd): state_after(S, sgd, of_sgd, seed, middle),
        ("sgd_svrg", Step(LR[0], 0.0)): state_after(S, svrg, Step(LR[0], 0.0), seed, middle),
        ("svrg", Step(LR[1], 0.0)): state_after(S, svrg, Step(LR[1], 0.0), seed, begin),
    }
    rows = {(each.method, each.step, each.seed): each.row for each in lines(whole)}
    for (method, step), end in ends.items():
        row = rows[method, step, seed]
        train = objectives.evaluate(problem.objective, end.x, problem.train, with_grad=True)
        test = objectives.evaluate(problem.objective, end.x, problem.test)
        expected = (train.loss, train.error, test.loss, test.error, train.grad_norm_sq)
        names = ("train_loss", "train_error", "test_loss", "test_error", "grad_norm_sq")
        found = [float(row[name]) for name in names]
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=method)


@pytest.mark.parametrize("pretraining", [None, Step(0.2, 0.5)])
def test_the_updates_of_a_job_are_counted_in_advance(pretraining, monkeypatch):
    """Several steps share the epochs of SGD that they begin with."""

    def sweep(
        estimator: Any,
        data: Any,
        runs: Sequence[Run],
        *,
        first_epoch: int,
        num_epochs: int,
        **_: Any,
    ) -> Iterator[SweepResult]:
        x = np.stack([each.x0 for each in runs])
        for epoch in range(first_epoch, num_epochs):
            yield SweepResult(epoch + 1, x, ())

    monkeypatch.setattr(simulate, "sweep", sweep)
    ticks: list[int] = []
    steps = [Step(0.2, 0.0), Step(0.5, 0.0), Step(1.0, 0.0)]
    job = Job("svrg" if pretraining is None else "sgd_svrg", steps, 100, pretraining)
    rows = tune.carry_out(setting(), job, ticks.append)
    assert [Step(row.lr, row.lr_decay) for row in rows] == steps
    assert sum(ticks) == tune.num_updates(setting(), job)
    assert len(ticks) == S


def test_a_step_that_diverges_has_a_line_of_its_own():
    job = Job("svrg", [Step(1e30, 0.0)], 100, None)
    (row,) = tune.carry_out(setting(), job, lambda count: None)
    assert (row.lr, row.seed, row.epoch) == (1e30, 100, S)
    assert not math.isfinite(row.train_loss)


def stopping(
    stops: dict[int, int], begun: list[Job]
) -> Callable[[Setting, Job, Callable[[int], None]], list[Any]]:
    """Carries jobs out; the process gets a signal when so many have begun."""
    original = tune.carry_out

    def carry_out(of: Setting, job: Job, tick: Callable[[int], None]) -> list[Any]:
        begun.append(job)
        if len(begun) in stops:
            os.kill(os.getpid(), stops[len(begun)])
            # Until the main thread has it; while that writes a checkpoint, the handler is another.
            while not getattr(signal.getsignal(signal.SIGINT), "received", 0):
                time.sleep(1e-3)
        return original(of, job, tick)

    return carry_out


def test_a_stopped_search_goes_on(tmp_path, capsys, monkeypatch):
    """After SIGTERM in the search for sgd, and after SIGINT in that for sgd_svrg."""
    study = (*STUDY, "--num_seeds=1", "--lr_decay=0.5")
    whole = undisturbed(tmp_path / "whole", *study)
    folder, begun = tmp_path / "folder", list[Job]()
    monkeypatch.setattr(tune, "carry_out", stopping({2: signal.SIGTERM, 12: signal.SIGINT}, begun))
    command = (*study, f"--out_dir={folder}")
    for code, count in ((143, 2), (130, 12)):
        assert run(tune, *command, "--num_threads=1") == code
        sentence = f"The same command with --out_dir={folder} goes on after {count} units."
        assert sentence in capsys.readouterr().err
        assert len(begun) == count
        assert begun[-1].method == ("sgd" if code == 143 else "sgd_svrg")
        assert not (folder / evidence.STEPS).exists()
    assert run(tune, *command, "--num_threads=2") == 0
    said = capsys.readouterr()
    assert "goes on after 12 units\n" in said.err
    assert f"results  {folder}" in said.out
    assert len({repr(job) for job in begun}) == len(begun)
    for name in (evidence.STEPS, evidence.BEST):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()

    # The same command once more computes nothing, and other flags are refused by name.
    count = len(begun)
    assert run(tune, *command, "--resume") == 0
    assert len(begun) == count
    capsys.readouterr()
    assert run(tune, *command, "--delay=4") == 2
    assert "with --delay=5, which goes on with the same flags only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--methods=sgd,svgr", "--methods must be some of sgd, svrg, sgd_svrg, with commas"),
        ("--methods=", "with commas between, got ''"),
        ("--methods=svrg,sgd_svrg", "--methods must hold sgd where it holds sgd_svrg"),
        ("--pretrain_epochs=3", "--pretrain_epochs must be a whole number from 1 to 2, got 3"),
        ("--num_seeds=0", "--num_seeds must be a whole number of at least 1, got 0"),
        ("--num_threads=0", "--num_threads must be a whole number of at least 1, got 0"),
        ("--delay=21", "--delay must be a whole number from 0 to 20, got 21"),
        ("--lr=0.1,0", "every entry of --lr must be a finite number above 0, got 0"),
        ("--lr_decay=-1", "every entry of --lr_decay must be a finite number of at least 0"),
        ("--lr_decay=0,fast", "every entry of --lr_decay must be a finite number of at least 0"),
        # Whose step is 0 after the first epoch, or infinite: hours later there would be an error.
        ("--lr_decay=1e300", "--lr_decay must leave a step above 0 in every epoch"),
    ],
)
def test_bad_flags_are_refused(tmp_path, capsys, flag, sentence):
    assert run(tune, *STUDY, flag, f"--out_dir={tmp_path / 'new'}") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_methods_that_are_left_out_are_not_searched_for(tmp_path, monkeypatch):
    """And without sgd_svrg nobody asks for epochs of SGD."""
    tried: list[tuple[str, float]] = []

    def carry_out(of: Setting, job: Job, tick: Callable[[int], None]) -> list[tune.Row]:
        tried.extend((job.method, step.lr) for step in job.steps)
        loss = [(math.log(step.lr / 0.5)) ** 2 for step in job.steps]
        return [
            tune.Row(job.method, *step, job.seed, S, each, 0.0, 0.0, 0.0, 0.0)
            for step, each in zip(job.steps, loss, strict=True)
        ]

    monkeypatch.setattr(tune, "carry_out", carry_out)
    command = (*STUDY, "--methods=svrg", "--pretrain_epochs=3", "--num_seeds=1")
    assert run(tune, *command, "--num_threads=1", f"--out_dir={tmp_path}") == 0
    assert tried == [("svrg", lr) for lr in (0.5, 2.0, 1.0)]
    assert {row["method"] for row in read(tmp_path / evidence.BEST)} == {"svrg"}
