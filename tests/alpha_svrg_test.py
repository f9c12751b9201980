"""The study of alpha-SVRG: what its runs are, what they cost, and the binary at a small size."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from asvrg import estimators, objectives, sampling, schedules, training
from asvrg.drivers import simulate
from asvrg.errors import DivergedError
from experiments import alpha_svrg, figures, problem
from experiments.deep import drawing, runs
from experiments.deep.runs import Method, Row, Setting
from tests.binaries import run

SMALL = (
    "--dataset=digits",
    "--num_train=60",
    "--num_test=20",
    "--batch_size=9",
    "--hidden=5",
    "--activation=tanh",
    "--dtype=float64",
    "--lr_schedule=constant",
)
B, M = 9, 6  # what these flags give
SGD = Method("sgd", None, False, B, 3)
SVRG = SGD._replace(name="svrg", alpha=1.0)
LR = 0.3


@functools.cache
def setting() -> Setting:
    values = flags.FlagValues()
    alpha_svrg.define_flags(values)
    values(["binary", *SMALL])
    return alpha_svrg.make_setting(values, problem.from_flags(values))


@functools.cache
def compiled(method: Method) -> runs.Epoch:
    return runs.make_epoch(setting(), method)


def rows_of(method: Method, lr: float = LR) -> list[Row]:
    return runs.run(setting(), method, compiled(method), lr, seed=3)


def column(rows: list[Row], name: str) -> np.ndarray:
    return np.array([getattr(row, name) for row in rows], float)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_alpha_1_is_the_simulators_svrg():
    here = setting()
    x = here.make_x0(3)
    spec = sampling.sampler(60, x.size, batch_size=B, seed=3)
    estimator = estimators.svrg(here.objective)
    driver = simulate.driver(estimator, here.train, spec, inner_steps=M)
    reached = training.run(
        driver, training.start(x), schedule=schedules.constant(LR), num_epochs=SVRG.num_epochs
    )
    rows = rows_of(SVRG)
    for row, state in zip(rows[1:], reached, strict=True):
        expected = objectives.evaluate(here.objective, state.x, here.train, with_grad=True)
        assert row.train_loss == pytest.approx(expected.loss, rel=1e-12)
        assert row.grad_norm_sq == pytest.approx(expected.grad_norm_sq, rel=1e-10)
        assert (row.updates, row.grad_evals) == (state.updates, state.grad_evals)
    assert rows[-1].train_loss < 0.9 * rows[0].train_loss


def test_alpha_0_is_sgd():
    zero, sgd = rows_of(SVRG._replace(alpha=0.0)), rows_of(SGD)
    for a, b in zip(zero, sgd, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-12)
        assert a.grad_norm_sq == pytest.approx(b.grad_norm_sq, rel=1e-10)
    np.testing.assert_allclose(column(zero, "variance_v"), column(sgd, "variance_g"), rtol=1e-6)


def test_alpha_falls_to_0_and_so_does_the_step():
    """From g = g_s = 2 and mu = 0, v = 2 - 2 alpha."""
    method = SVRG._replace(alpha=0.5, decays=True)
    chain = runs.optimiser(method, LR, M, "cosine")
    x = jnp.ones(1)
    args = {"grad_fn": lambda at: 2 * at, "full_grad_fn": lambda at: 0 * at}
    update = jax.jit(lambda state: chain.update(2 * x, state, x, **args))
    state, moves = chain.init(x), []
    for _ in range(3 * M):
        move, state = update(state)
        moves.append(float(move[0]))
    t = np.arange(3 * M) / (3 * M)
    step = LR * 0.5 * (1 + np.cos(math.pi * t))
    np.testing.assert_allclose(moves, -step * (2 - 2 * 0.5 * (1 - t)), rtol=1e-6)


def test_what_is_measured_at_the_snapshot_itself():
    """With a step of 0, x stays at its snapshot: v is the full gradient, and the best alpha 1."""
    rows = rows_of(SVRG, lr=0.0)[1:]
    variance = column(rows, "variance_g")
    np.testing.assert_allclose(column(rows, "best_alpha"), 1.0, rtol=1e-6)
    np.testing.assert_array_less(column(rows, "variance_v") / variance, 1e-10)
    here = setting()
    single = np.asarray(here.objective.per_sample_grads(here.make_x0(3), here.train))
    exact = np.mean(np.sum((single - single.mean(axis=0)) ** 2, axis=1)) / B
    assert variance.mean() == pytest.approx(exact, rel=0.3)  # the mean of 3 M random numbers


@pytest.mark.parametrize(("n", "b"), [(60, 9), (1_437, 100), (10_000, 100)])
def test_equal_budgets(n, b):
    m = n // b
    sgd, batch, epochs, *svrg = runs.of_equal_budgets(n, m, b, 20, [0.5, 1.0])
    total = {x.name: x.num_epochs * runs.grad_evals(x, n, m) for x in (sgd, batch, epochs, *svrg)}
    assert {total[x.name] for x in svrg} == {20 * (n + 2 * b * m)}
    assert total["sgd"] == 20 * b * m
    assert total["sgd_batch"] == pytest.approx(total["svrg"], rel=0.5 / batch.batch_size)
    assert total["sgd_epochs"] == pytest.approx(total["svrg"], rel=0.5 / epochs.num_epochs)
    assert (batch.num_epochs, epochs.batch_size) == (20, b)


def test_the_best_step_is_best_on_average():
    blank = Row("sgd", *[0] * (len(Row._fields) - 1))

    def end(lr: float, seed: int, loss: float) -> Row:
        return blank._replace(lr=lr, seed=seed, train_loss=loss)

    unstable = [end(0.4, 5, 0.1), end(0.4, 6, math.nan), end(0.8, 5, math.inf)]
    steady = [end(0.1, 5, 0.5), end(0.1, 6, 0.6), end(0.2, 5, 0.2), end(0.2, 6, 1.0)]
    assert alpha_svrg.best_step(SGD, [0.1, 0.2, 0.4, 0.8], unstable + steady) == 0.1
    with pytest.raises(DivergedError, match="sgd left the finite numbers"):
        alpha_svrg.best_step(SGD, [0.4, 0.8], unstable)


def test_writes_the_same_tables_twice(tmp_path, capsys, monkeypatch):
    flags_ = (*SMALL, "--num_epochs=2", "--lr=0.1,0.3", "--alpha=0.5", "--num_seeds=2")
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, threads in zip(folders, (1, 2), strict=True):
        assert run(alpha_svrg, *flags_, f"--num_threads={threads}", f"--out_dir={folder}") == 0
        out = capsys.readouterr().out
        assert str(folder) in out
        monkeypatch.setattr(drawing, "draw", lambda *args: None)  # once is enough
    for name in (alpha_svrg.CURVES, alpha_svrg.STEPS):
        one, two = ((folder / name).read_bytes() for folder in folders)
        assert one == two

    resolved = json.loads((folders[0] / "config.json").read_text())["resolved"]
    rows, steps = read(folders[0] / alpha_svrg.CURVES), read(folders[0] / alpha_svrg.STEPS)
    assert (resolved["layers"], resolved["inner_steps"]) == (2, M)
    assert {tuple(row) for row in rows + steps} == {Row._fields}
    assert not {row["seed"] for row in rows} & {row["seed"] for row in steps}
    assert {int(row["seed"]) for row in rows} == set(resolved["seeds"]) == {0, 1}
    for method, lr in resolved["lr"].items():
        tried = [row for row in steps if row["method"] == method]
        mean = {
            each: np.mean([float(row["train_loss"]) for row in tried if float(row["lr"]) == each])
            for each in (0.1, 0.3)
        }
        assert lr == min(mean, key=mean.__getitem__)
        own = [row for row in rows if row["method"] == method]
        assert {float(row["lr"]) for row in own} == {lr}
        begins = {row["seed"]: row["train_loss"] for row in own if row["epoch"] == "0"}
        assert len(set(begins.values())) == 2  # every seed has an x^0 of its own
    assert len(resolved["lr"]) == 5
    assert (folders[0] / alpha_svrg.FIGURE).read_bytes().startswith(b"\x89PNG")

    # The printed ratio is that of the csv.
    last = {(r["method"], r["seed"]): float(r["train_loss"]) for r in rows if r["epoch"] == "2"}
    ratios = [last["svrg", seed] / last["sgd", seed] for seed in "01"]
    (line,) = (line for line in out.splitlines() if line.split()[:3] == ["svrg", "of", "sgd"])
    assert f"{np.mean(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})" in line


@pytest.mark.timeout(120)
def test_a_stopped_study_goes_on(tmp_path, capsys, monkeypatch):
    """After SIGTERM in a run of the search, and after SIGINT in one of those of the curves."""
    monkeypatch.setattr(drawing, "draw", lambda *args: None)
    study = (*SMALL, "--num_epochs=1", "--lr=0.1,0.3", "--alpha=0.5", "--num_seeds=1")
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    assert run(alpha_svrg, *study, f"--out_dir={whole}") == 0
    done: list[tuple[str, float, int]] = []
    original, stops = runs.run, {3: signal.SIGTERM, 22: signal.SIGINT}

    def counted(setting_, method, epoch, lr, seed, **named):
        done.append((method.name, lr, seed))
        if len(done) in stops:
            os.kill(os.getpid(), stops[len(done)])
            # Until the main thread has it; while that writes a checkpoint, the handler is another.
            while not getattr(signal.getsignal(signal.SIGINT), "received", 0):
                time.sleep(1e-3)
        return original(setting_, method, epoch, lr, seed, **named)

    monkeypatch.setattr(runs, "run", counted)
    command = (*study, "--num_threads=1", f"--out_dir={folder}")
    for code, count in ((143, 3), (130, 22)):
        assert run(alpha_svrg, *command) == code
        said = capsys.readouterr().err
        sentence = f"The same command with --out_dir={folder} goes on after {count} of 25 units."
        assert sentence in said
        assert len(done) == count
        assert not (folder / alpha_svrg.CURVES).exists()

    assert run(alpha_svrg, *study, "--num_threads=2", f"--out_dir={folder}") == 0
    assert "goes on after 22 of 25 units" in capsys.readouterr().err
    assert len(done) == len(set(done)) == 25
    for name in (alpha_svrg.CURVES, alpha_svrg.STEPS):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    before, after = (json.loads((each / "config.json").read_text()) for each in (whole, folder))
    assert after["resolved"] == before["resolved"]
    assert [each["units"] for each in after["resumed"]] == [3, 22]

    # The same command once more computes nothing, and other flags are refused by name.
    assert run(alpha_svrg, *command, "--resume") == 0
    assert len(done) == 25
    capsys.readouterr()
    assert run(alpha_svrg, *command, "--num_epochs=2", "--alpha=1") == 2
    said = capsys.readouterr().err
    assert "with --alpha=['0.5'], --num_epochs=1, which goes on with the same flags only" in said
    assert run(alpha_svrg, *command, "--noresume") == 2
    assert "--noresume must be given a folder without a run" in capsys.readouterr().err


def test_labels_do_not_lie_over_each_other():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    ends = [(f"curve {i}", "black", (4.0, 1.0 + i / 1_000)) for i in range(5)]
    axes.plot([0, 4], [0, 1.004])
    figures.label_ends(axes, ends)
    heights = [text.get_position()[1] for text in axes.texts]
    assert len(heights) == 5
    assert np.all(np.diff(heights) > 0.99 * figures.GAP)
    assert max(heights) < 1


def test_a_curve_ends_where_a_seed_left_the_finite_numbers():
    from matplotlib.figure import Figure

    blank = Row("svrg", *[0] * (len(Row._fields) - 1))
    losses = {(0, 0): 3.0, (0, 1): 2.0, (0, 2): 1.0, (1, 0): 5.0, (1, 1): 4.0, (1, 2): math.nan}
    rows = [blank._replace(seed=s, epoch=e, train_loss=loss) for (s, e), loss in losses.items()]

    def end(of: list[Row]) -> tuple[float, float] | None:
        axes = Figure().subplots()
        look = {"color": "black"}
        return drawing._curve(axes, of, lambda r: r.epoch, lambda r: r.train_loss, look)

    assert end(rows) == (1, 3.0)
    assert end([rows[-1]]) is None


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--num_epochs=0", "--num_epochs must be a whole number of at least 1, got 0"),
        ("--num_seeds=0", "--num_seeds must be a whole number of at least 1, got 0"),
        ("--num_threads=0", "--num_threads must be a whole number of at least 1, got 0"),
        ("--lr=0.1,fast", "every entry of --lr must be a finite number above 0, got 'fast'"),
        ("--lr=", "--lr must be numbers with commas between, got none"),
        ("--alpha=0", "every entry of --alpha must be a finite number above 0, got 0"),
        ("--alpha=0.2,0.4,0.6,0.8", "--alpha must have at most 3 entries, got 4"),
        ("--batch_size=21", "--batch_size must be at most a third of the 60 samples"),
    ],
)
def test_bad_flags_are_refused(tmp_path, capsys, flag, sentence):
    assert run(alpha_svrg, *SMALL, flag, f"--out_dir={tmp_path / 'new'}") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
