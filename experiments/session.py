"""A run from its first epoch to its summary, the same for every binary and every driver."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from asvrg import training
from asvrg.types import Driver, EpochResult
from experiments import figures, launch, problem, recording
from experiments.methods import Phase
from experiments.problem import Problem
from experiments.recording import Recorder


def train(
    problem_: Problem,
    phases: Sequence[Phase],
    make_driver: Callable[[Phase], Driver],
    recorder: Recorder,
    *,
    title: str,
) -> None:
    """Trains phase by phase; records every epoch; draws and summarises whatever was reached.

    Args:
      problem_: what is minimised.
      phases: of the method, in their order.
      make_driver: a phase -> the driver that runs it.
      recorder: open, of a new run.
      title: of the figure.

    Raises:
      DivergedError: the loss or x has an entry that is no finite number.
      WorkerError: a thread raised.
      KeyboardInterrupt: the user interrupted the run.
    """
    reached = training.start(problem_.x0)
    _record(recorder, problem_, reached)
    try:
        with tqdm(
            total=phases[-1].num_epochs,
            unit="epoch",
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 5.0,
        ) as bar:
            for phase in phases:
                driver = make_driver(phase)
                schedule = phase.schedule
                results = training.run(
                    driver, reached, schedule=schedule, num_epochs=phase.num_epochs
                )
                for reached in results:
                    launch.raise_if_interrupted()
                    row = _record(recorder, problem_, reached)
                    if not math.isfinite(row.train_loss):
                        lr = schedule(reached.epoch - 1)
                        raise training.diverged("the training loss", reached.epoch, lr)
                    bar.set_postfix(loss=f"{row.train_loss:.4f}", refresh=False)
                    bar.update()
    finally:
        figure = recorder.folder / recording.CURVES
        figures.draw_curves(figure, recorder.rows, title)
        print(summary(recorder, phases[-1].num_epochs))


def summary(recorder: Recorder, num_epochs: int) -> str:
    """The table that ends a run, and where its results are.

    Args:
      recorder: with the run's rows and traces.
      num_epochs: that the run was asked for.

    Returns:
      Lines of text.
    """
    last = recorder.rows[-1]
    entries = [
        ("epochs", f"{last.epoch} of {num_epochs}"),
        ("training loss", f"{last.train_loss:.4f}"),
        ("training error", f"{last.train_error:.2%}"),
        ("test loss", f"{last.test_loss:.4f}"),
        ("test error", f"{last.test_error:.2%}"),
        ("||grad f||^2", f"{last.grad_norm_sq:.3e}"),
        ("updates", f"{last.updates}"),
    ]
    counts = recorder.delay_counts
    if counts.size:
        mean = counts @ np.arange(counts.size) / counts.sum()
        median, most = np.searchsorted(counts.cumsum(), [0.5 * counts.sum(), 0.95 * counts.sum()])
        entries += [
            ("optimisation time", f"{last.seconds:.2f} s"),
            ("updates/s", f"{last.updates / last.seconds:,.0f}"),
            (
                "delays (updates)",
                f"mean {mean:.1f}, median {median}, 95 % {most}, max {counts.size - 1}",
            ),
        ]
    entries += [
        ("results", str(recorder.folder / recording.METRICS)),
        ("figure", str(recorder.folder / recording.CURVES)),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in entries)


def _record(recorder: Recorder, problem_: Problem, state: EpochResult) -> recording.Row:
    row = recording.row(state, problem.evaluate(problem_, state.x))
    recorder.add(row, state.trace)
    return row
