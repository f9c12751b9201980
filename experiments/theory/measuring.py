"""What a run did that the theorems speak of: a short one made here, or one that left a folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asvrg import delays, estimators, objectives, theory
from asvrg.drivers import simulate, threads
from asvrg.errors import InputError, diverged
from asvrg.sampling import Sampler
from asvrg.types import Array, Trace
from experiments import checkpoints, problem, recording
from experiments.problem import Problem
from experiments.theory import coverage, smooth_problems

# What a file that no run has written can make of its reader.
_FOREIGN = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)
MAX_POINTS = 3  # of an own run at which L is estimated


class EpochRow(NamedTuple):
    """An epoch of a run.

    Attributes:
      epoch: s, from 0.
      updates: m, those of the epoch.
      start: ||grad f||^2 at x^s.
      mean: of ||grad f(x_t)||^2 over all updates of the epoch; nan if nobody looked.
      max_delay: the largest delay of an update, in updates.
    """

    epoch: int
    updates: int
    start: float
    mean: float
    max_delay: int


class Measured(NamedTuple):
    """A run with a constant step.

    Attributes:
      source: where it comes from, in words.
      lr: eta.
      batch_size: b.
      blocks: d / B.
      num_samples: n.
      gap: f at the beginning, at least f(x^0) - f(x*) as f is nowhere below 0.
      rows: its epochs.
      points: x's at which L shall be estimated, by name.
      uncovered: why no theorem covers the run, as ends of a sentence; empty if one may.
    """

    source: str
    lr: float
    batch_size: int
    blocks: float
    num_samples: int
    gap: float
    rows: list[EpochRow]
    points: dict[str, Array]
    uncovered: list[str]


class Curvature(NamedTuple):
    """An estimate of L, from below.

    Attributes:
      point: the name of the x.
      of: f, or how many single f_i, the largest of which it is.
      value: L.
    """

    point: str
    of: str
    value: float


def own_run(
    problem_: Problem,
    sampler: Sampler,
    *,
    lr: float,
    inner_steps: int,
    num_epochs: int,
    delay: int | None,
    num_threads: int,
    read_period: int,
) -> Measured:
    """Runs SVRG for some epochs, and looks at ||grad f||^2 before every update.

    Args:
      problem_: what is minimised.
      sampler: of the draws.
      lr: eta.
      inner_steps: m.
      num_epochs: S.
      delay: of every simulated update; None for threads, whose trace is replayed.
      num_threads: K.
      read_period: iterations of a thread from one read of x to the next.

    Returns:
      A Measured.

    Raises:
      InputError: an argument is out of its range.
      DivergedError: x has an entry that is no finite number.
    """
    objective, data, x = problem_.objective, problem_.train, problem_.x0
    estimator = estimators.svrg(objective)
    observe = smooth_problems.grad_norm_sq(objective)
    if delay is None:
        driver = threads.driver(
            estimator,
            data,
            sampler,
            inner_steps=inner_steps,
            num_threads=num_threads,
            read_period=read_period,
        )
        source = f"{num_threads} threads, read period {read_period}"
    else:
        late = delays.constant(inner_steps, min(delay, inner_steps - 1))
        driver = simulate.driver(
            estimator, data, sampler, inner_steps=inner_steps, trace=lambda epoch: late
        )
        source = f"simulated, every update late by {min(delay, inner_steps - 1)}"
    driver.warm_up(x)
    rows = []
    looked_at = set(np.linspace(0, num_epochs, MAX_POINTS).astype(int).tolist())
    points = {"x^0": x}
    for epoch in range(num_epochs):
        snapshot = driver.prepare(x)
        after, trace = driver.inner_loop(x, snapshot, epoch, lr)
        _, norms = simulate.replay(
            estimator, x, snapshot, data, sampler, trace, epoch=epoch, lr=lr, observe=observe
        )
        x, norms = after, np.asarray(norms, np.float64)
        if not np.all(np.isfinite(x)):
            raise diverged("x", epoch + 1, lr)
        rows.append(_row(epoch, norms, trace))
        if epoch + 1 in looked_at:
            points[f"x^{epoch + 1}"] = x
    gap = objectives.evaluate(objective, problem_.x0, data).loss
    block_size = sampler.block_size or sampler.dim
    return Measured(
        source,
        lr,
        sampler.batch_size,
        sampler.dim / block_size,
        sampler.num_samples,
        gap,
        rows,
        points,
        [],
    )


def _row(epoch: int, norms: np.ndarray, trace: Trace) -> EpochRow:
    longest = int(delays.staleness(trace).max())
    return EpochRow(epoch, len(norms), float(norms[0]), float(norms.mean()), longest)


def recorded_run(folder: Path, data_dir: str | None) -> tuple[Problem, Measured, dict[str, Any]]:
    """The run that train_shared or train_distributed left in a folder.

    Its metrics.csv has ||grad f||^2 at the beginnings of the epochs only. Of sgd_svrg the epochs of
    SVRG are taken.

    Args:
      folder: with config.json and metrics.csv.
      data_dir: of the data set; None for where the run had it.

    Returns:
      The problem, the run, and the run's flags.

    Raises:
      InputError: the folder is no such run's, or its data are missing.
    """
    config, lines = _read(folder)
    problem_ = problem.from_recorded(config["flags"], data_dir)
    try:
        measured = _of_files(folder, problem_, config, lines)
    except InputError:
        raise
    except _FOREIGN as error:
        raise InputError(
            "--run_dir must be a folder with the config.json and metrics.csv of train_shared or "
            f"train_distributed, got {folder} ({type(error).__name__}: {error})."
        ) from error
    return problem_, measured, config["flags"]


def _of_files(
    folder: Path, problem_: Problem, config: dict[str, Any], lines: list[dict[str, str]]
) -> Measured:
    stored, resolved = config["flags"], config["resolved"]
    first = stored["pretrain_epochs"] if stored["method"] == "sgd_svrg" else 0
    steps, dim = resolved["steps"][-1], resolved["dim"]
    if len(lines) < first + 2:
        raise InputError(
            f"--run_dir must hold a run with an epoch of its method at least, got {folder} with "
            f"{len(lines) - 1} epochs."
        )
    rows = [
        EpochRow(
            int(before["epoch"]),
            int(after["updates"]) - int(before["updates"]),
            float(before["grad_norm_sq"]),
            float("nan"),
            int(after["max_delay"]),
        )
        for before, after in zip(lines[first:-1], lines[first + 1 :], strict=True)
    ]
    points = {"x^0": problem_.x0}
    if checkpoints.exist_in(folder) and (progress := checkpoints.load(folder)) is not None:
        points[f"x^{progress.state.epoch}"] = np.asarray(progress.state.x)
    # Where the binary has no such flag an iteration updates all of x.
    block_size = stored.get("block_size", 0)
    block_size = min(1_000, dim) if block_size is None else block_size or dim
    uncovered = coverage.uncovered(stored, steps["decay"])
    if "driver" not in stored:
        uncovered.append("its workers draw from shards, and the theorems draw from all samples")
    return Measured(
        f"recorded in {folder}",
        steps["lr"],
        resolved["batch_size"] if "batch_size" in resolved else stored["batch_size"],
        dim / block_size,
        resolved["num_train"],
        float(lines[first]["train_loss"]),
        rows,
        points,
        uncovered,
    )


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    try:
        config = json.loads((folder / recording.CONFIG).read_text(encoding="utf-8"))
        with open(folder / recording.METRICS, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        fits = {"grad_norm_sq", "max_delay", "train_loss"} <= lines[0].keys()
        fits = fits and {"dim", "num_train", "steps"} <= config["resolved"].keys()
        fits = fits and {"dataset", "method", "inner_steps"} <= config["flags"].keys()
    except (OSError, csv.Error, RecursionError, *_FOREIGN) as error:
        raise InputError(
            "--run_dir must be a folder with the config.json and metrics.csv of train_shared or "
            f"train_distributed, got {folder} ({type(error).__name__}: {error})."
        ) from error
    if not fits:
        raise InputError(
            "--run_dir must be a folder with the config.json and metrics.csv of train_shared or "
            f"train_distributed, got {folder}, whose files lack some of their entries."
        )
    return config, lines


def curvatures(
    problem_: Problem, points: dict[str, Array], num_singles: int, seed: int
) -> list[Curvature]:
    """Estimates of L at some points: of f, and the largest of some single f_i.

    Half of these samples are those with the longest inputs, the rest random ones.

    Args:
      problem_: what is minimised.
      points: x's by name.
      num_singles: how many f_i, at most n.
      seed: of the random ones.

    Returns:
      Two estimates for each point, both from below.
    """
    inputs = np.asarray(problem_.train[0])
    order = np.argsort(-np.linalg.norm(inputs, axis=1), kind="stable")
    longest, others = np.split(order, [num_singles // 2])
    rng = np.random.default_rng(seed)
    rows = np.concatenate([longest, rng.permutation(others)[: num_singles - len(longest)]])
    found = []
    for name, x in points.items():
        of_f = theory.estimate_smoothness(
            problem_.objective, x, problem_.train, tolerance=1e-2, max_iterations=50
        )
        single = smooth_problems.largest_of_singles(problem_.objective, x, problem_.train, rows)
        found += [
            Curvature(name, "f", of_f.value),
            Curvature(name, f"{len(rows)} f_i", single),
        ]
    return found
