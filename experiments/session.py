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
from asvrg.errors import DivergedError, InputError, diverged
from asvrg.types import Driver, EpochResult
from experiments import delay_counts, figures, launch, problem, recording
from experiments.methods import Phase
from experiments.problem import Problem
from experiments.recording import Recorder, Row

WORKERS_SHOWN = 8  # lines of the summary
EXPLODED = 1e4  # times the loss before training: no step that has gone there has come back


def train(
    problem_: Problem,
    phases: Sequence[Phase],
    make_driver: Callable[[Phase], Driver],
    recorder: Recorder,
    *,
    title: str,
) -> EpochResult:
    """Trains phase by phase, from the recorder's checkpoint on if it has one.

    Records every epoch; draws and summarises whatever was reached. A finished run is left as it is.

    Args:
      problem_: what is minimised.
      phases: of the method, in their order.
      make_driver: a phase -> the driver that runs it.
      recorder: open, not begun.
      title: of the figure.

    Returns:
      The state after the last epoch.

    Raises:
      InputError: the recorder's run has more epochs already, or another process is at it.
      DivergedError: the loss, x or an update has an entry that is no finite number, or the loss is
        10,000 times that before training.
      DriverError: a worker of the driver failed.
      OSError: a result cannot be written.
      KeyboardInterrupt: a signal stopped the run.
    """
    num_epochs = phases[-1].num_epochs
    if recorder.saved is not None and recorder.saved.epoch == num_epochs:
        print(
            f"the run is finished: it has done {num_epochs} epochs, and a larger --num_epochs "
            "extends it",
            file=sys.stderr,
        )
        print(summary(recorder, num_epochs))
        return recorder.saved
    with launch.stopping_where_it_can_go_on() as stop:
        reached = recorder.begin(num_epochs, problem_.train)
        try:
            if reached is None:
                reached = training.start(problem_.x0)
                recorder.add(reached, problem.evaluate(problem_, reached.x))
            else:
                print(f"goes on {_place(reached, num_epochs)}", file=sys.stderr)
            reached = _epochs(problem_, phases, make_driver, recorder, reached, stop)
        except (DivergedError, InputError):
            raise  # It would happen again.
        except BaseException:
            _keep(recorder, num_epochs)
            raise
        finally:
            with _told():
                _draw(recorder, title)
            print(summary(recorder, num_epochs))
    return reached


def _draw(recorder: Recorder, title: str) -> None:
    if recorder.rows:
        figure = recorder.folder / recording.CURVES
        figures.draw_curves(figure, recorder.rows, recorder.delay_counts, title)


def _epochs(
    problem_: Problem,
    phases: Sequence[Phase],
    make_driver: Callable[[Phase], Driver],
    recorder: Recorder,
    reached: EpochResult,
    stop: launch.Stop,
) -> EpochResult:
    """The epochs from a state on, each recorded; a pause for every checkpoint that is due."""
    num_epochs, first_loss = phases[-1].num_epochs, recorder.rows[0].train_loss

    def pause() -> bool:
        return stop.received != 0 or recorder.is_due()

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
            stop.heed()
            results = training.run(
                make_driver(phase),
                reached,
                schedule=phase.schedule,
                num_epochs=phase.num_epochs,
                pause=pause,
            )
            for reached in results:
                if reached.inside is not None:
                    recorder.keep(reached)
                else:
                    row = recorder.add(reached, problem.evaluate(problem_, reached.x), phase)
                    _check_loss(row, first_loss, phase.schedule(reached.epoch - 1))
                    bar.set_postfix(loss=f"{row.train_loss:.4f}", refresh=False)
                    bar.update()
                stop.heed()
                recorder.checkpoint()
    return reached


def _check_loss(row: Row, first_loss: float, lr: float) -> None:
    if not math.isfinite(row.train_loss):
        raise diverged("the training loss", row.epoch, lr)
    if row.train_loss > EXPLODED * max(first_loss, 1.0):
        raise DivergedError(
            f"the training loss has grown from {first_loss:.3g} to {row.train_loss:.3g} by epoch "
            f"{row.epoch} with step {lr:g}; the step (--lr) is too large for this problem."
        )


def _place(state: EpochResult, num_epochs: int) -> str:
    if state.inside is None:
        return f"after epoch {state.epoch} of {num_epochs}"
    updates = len(state.inside.halfway.trace.worker)
    return f"after {updates} updates of epoch {state.epoch + 1} of {num_epochs}"


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Prints what the system refuses instead of raising it, where another error is on its way."""
    other = sys.exception()
    try:
        yield
    except OSError as error:
        if other is None:
            raise
        print(launch.sentence(error), file=sys.stderr)


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


def _keep(recorder: Recorder, num_epochs: int) -> None:
    """Checkpoints a run that something stopped, and says how to go on with it."""
    with _told():  # What stopped the run is told; an older checkpoint serves as well.
        recorder.checkpoint(now=True)
    if recorder.saved is not None and len(recorder.rows) <= num_epochs:
        print(
            f"The same command with --out_dir={shlex.quote(str(recorder.folder))} goes on "
            f"{_place(recorder.saved, num_epochs)}.",
            file=sys.stderr,
        )
