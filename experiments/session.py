"""A run from its first epoch to its summary, the same for every binary and every driver."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from asvrg import training
from asvrg.errors import DivergedError, InputError
from asvrg.types import Driver, EpochResult
from experiments import delay_counts, figures, launch, problem, recording
from experiments.methods import Phase
from experiments.problem import Problem
from experiments.recording import Recorder

WORKERS_SHOWN = 8  # lines of the summary


def train(
    problem_: Problem,
    phases: Sequence[Phase],
    make_driver: Callable[[Phase], Driver],
    recorder: Recorder,
    *,
    title: str,
) -> EpochResult:
    """Trains phase by phase, from the recorder's checkpoint on if it has one.

    Records every epoch; draws and summarises whatever was reached.

    Args:
      problem_: what is minimised.
      phases: of the method, in their order.
      make_driver: a phase -> the driver that runs it.
      recorder: open, not begun.
      title: of the figure.

    Returns:
      The state after the last epoch.

    Raises:
      InputError: the recorder's run has all these epochs already.
      DivergedError: the loss or x has an entry that is no finite number.
      DriverError: a worker of the driver failed.
      KeyboardInterrupt: the user interrupted the run.
    """
    num_epochs = phases[-1].num_epochs
    reached = recorder.begin(num_epochs, problem_.train)
    if reached is None:
        reached = training.start(problem_.x0)
        recorder.add(reached, problem.evaluate(problem_, reached.x))
    else:
        print(f"goes on after epoch {reached.epoch} of {num_epochs}", file=sys.stderr)
    try:
        with tqdm(
            total=num_epochs,
            initial=reached.epoch,
            unit="epoch",
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 5.0,
        ) as bar:
            for phase in phases:
                if phase.num_epochs <= reached.epoch:
                    continue
                driver = make_driver(phase)
                schedule = phase.schedule
                results = training.run(
                    driver, reached, schedule=schedule, num_epochs=phase.num_epochs
                )
                for reached in results:
                    launch.raise_if_interrupted()
                    row = recorder.add(reached, problem.evaluate(problem_, reached.x), phase)
                    if not math.isfinite(row.train_loss):
                        lr = schedule(reached.epoch - 1)
                        raise training.diverged("the training loss", reached.epoch, lr)
                    recorder.checkpoint()
                    bar.set_postfix(loss=f"{row.train_loss:.4f}", refresh=False)
                    bar.update()
    except (DivergedError, InputError):
        raise  # It would happen again.
    except BaseException:
        _keep(recorder)
        raise
    finally:
        figure = recorder.folder / recording.CURVES
        figures.draw_curves(figure, recorder.rows, recorder.delay_counts, title)
        print(summary(recorder, num_epochs))
    return reached


def summary(recorder: Recorder, num_epochs: int) -> str:
    """The table that ends a run, and where its results are.

    Args:
      recorder: with the run's rows and delays.
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
        entries += [
            ("optimisation time", f"{last.seconds:.2f} s"),
            ("updates/s", f"{last.updates / last.seconds:,.0f}"),
            ("delays (updates)", _distribution(counts.sum(axis=0))),
            *_workers(counts),
        ]
    entries += [
        ("results", str(recorder.folder / recording.METRICS)),
        ("figure", str(recorder.folder / recording.CURVES)),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in entries)


def _workers(counts: np.ndarray) -> Iterator[tuple[str, str]]:
    """A line for each worker, if there are several; no more than fit on a screen."""
    if len(counts) > 1:
        for worker, of_worker in enumerate(counts[:WORKERS_SHOWN]):
            if of_worker.any():
                updates = f"{of_worker.sum()} updates"
                yield f"  worker {worker}", f"{_distribution(of_worker)}, {updates}"
    if len(counts) > WORKERS_SHOWN:
        others = len(counts) - WORKERS_SHOWN
        yield "", f"and {others} workers more in {recording.DELAYS}"


def _distribution(counts: np.ndarray) -> str:
    tau = delay_counts.describe(counts)
    return f"mean {tau.mean:.1f}, median {tau.median}, 95 % {tau.percentile_95}, max {tau.largest}"


def _keep(recorder: Recorder) -> None:
    """Checkpoints a run that something stopped, and says how to go on with it."""
    with contextlib.suppress(OSError):  # What stopped the run is told; an older one serves as well.
        recorder.checkpoint(now=True)
    folder = shlex.quote(str(recorder.folder))
    print(
        f"The same command with --out_dir={folder} goes on after epoch {recorder.saved_epoch}.",
        file=sys.stderr,
    )
