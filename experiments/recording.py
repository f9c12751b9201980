"""What a run leaves behind: csv, config.json, its trace, events and checkpoints."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from absl import flags

from asvrg import delays
from asvrg.checkpoints import Timer
from asvrg.errors import InputError, check_real
from asvrg.types import Data, EpochResult
from experiments import checkpoints, delay_counts, files, folders, tables
from experiments.methods import Phase
from experiments.problem import Evaluation
from experiments.traces import spill
from experiments.traces.spill import TraceWriter

METRICS, CONFIG, DELAYS, CURVES = "metrics.csv", "config.json", "delays.csv", "curves.png"


class Row(NamedTuple):
    """A line of metrics.csv: the state after an epoch; epoch 0 is the state before training.

    `seconds` counts optimisation alone, summed up; losses contain the l2 term; errors lie in
    [0, 1]; delays are those of the epoch's updates, counted in updates.
    """

    epoch: int
    seconds: float
    updates: int
    grad_evals: int
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    grad_norm_sq: float
    mean_delay: float
    max_delay: int


def row(state: EpochResult, evaluation: Evaluation) -> Row:
    """The line of metrics.csv for a state and its evaluation."""
    tau = np.zeros(1, int) if state.trace is None else delays.staleness(state.trace)
    return Row(
        state.epoch,
        state.seconds,
        state.updates,
        state.grad_evals,
        *evaluation,
        float(tau.mean()),
        int(tau.max()),
    )


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of what is written where."""
    folders.define_out_dir(values)
    flags.DEFINE_bool(
        "record",
        False,
        "Write down who computed which update from which x, an epoch to a file, in the folder "
        "trace/, for experiments.replay.",
        flag_values=values,
    )
    flags.DEFINE_bool("tensorboard", False, "Write TensorBoard events too.", flag_values=values)
    flags.DEFINE_float(
        "checkpoint_seconds",
        10.0,
        "Seconds between two checkpoints, inside of epochs too; 0: after every epoch, and nowhere "
        "else.",
        flag_values=values,
    )
    folders.define_resume(values)


def check_flags(values: flags.FlagValues) -> None:
    """Raises InputError unless the numbers among the flags are accepted; early, before the data."""
    check_real("--checkpoint_seconds", values.checkpoint_seconds)


def open_recorder(values: flags.FlagValues, name: str, config: dict[str, Any]) -> Recorder:
    """The Recorder that the flags describe.

    Args:
      values: parsed, with the flags of `define_flags`.
      name: of the run: its binary, its data set and its method, with hyphens between; the beginning
        of a new folder's name.
      config: of the run, from `provenance.describe`.

    Returns:
      A Recorder, not begun.

    Raises:
      InputError: the folder cannot be used, its checkpoints are damaged or another run's, or
        --resume or --noresume does not fit.
    """
    kind = checkpoints.FOLDER
    out_dir = folders.folder_to_resume(values, name, kind)
    return Recorder(
        folders.claim_folder(out_dir, name, holds=METRICS, kind=kind),
        {"program": name.partition("-")[0], **config},
        record=values.record,
        tensorboard=values.tensorboard,
        checkpoint_seconds=values.checkpoint_seconds,
    )


class Recorder:
    """Writes a run's results to its folder; what was written stays whatever happens later.

    In a folder with checkpoints of the same run it goes on with their newest.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        record: bool,
        tensorboard: bool,
        checkpoint_seconds: float = 0.0,
    ) -> None:
        """Holds the folder, and reads the checkpoint, if there is one; writes nothing yet.

        Raises:
          InputError: another process is at it, or the checkpoints are all damaged, or those of
            another run.
        """
        self.folder = folder
        self.rows: list[Row] = []
        self.delay_counts = delay_counts.none()  # [K, T], updates of worker k with delay tau
        self._config = config
        self._record = record
        self._traces: TraceWriter | None = None
        self._tensorboard = tensorboard
        self._timer = Timer(checkpoint_seconds)
        self._events: Any = None
        self._metrics: files.Lines | None = None
        self._reached: _Reached | None = None
        self._num_epochs: int | None = None  # in the end
        self._saved: EpochResult | None = None  # the state in the newest checkpoint
        with contextlib.ExitStack() as opened:
            # First of all: nobody changes the checkpoint between its being read and gone on with.
            opened.enter_context(files.held(folder))
            if checkpoints.exist_in(folder):
                self._restore()
            self._open = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What stopped the run is told, not that the disk is full now too.
        told = contextlib.nullcontext() if error is None else contextlib.suppress(OSError)
        with self._open, told:
            if self._metrics is not None:
                # An interrupt may have come between an epoch's being recorded and its line.
                self._open_metrics(
                    len(self.rows) if self._reached is None else self._reached.num_rows
                )
                if self.delay_counts.size:
                    self._write_delays()
            if error is None or isinstance(error, KeyboardInterrupt):
                # The last thing: a run whose checkpoint is that of its end has all its files.
                self._save_reached()

    def begin(self, num_epochs: int, train: Data = ()) -> EpochResult | None:
        """Writes config.json, and a metrics.csv with the rows up to the checkpoint.

        Args:
          num_epochs: that the run shall have in the end.
          train: the training data, of which a recorded run keeps the SHA-256.

        Returns:
          The state to go on from; None for a new run.

        Raises:
          InputError: more epochs are done already, or a run that shall be recorded has no record of
            its epochs so far.
        """
        if self._saved is not None and self._saved.epoch > num_epochs:
            raise InputError(
                f"--num_epochs must be at least {self._saved.epoch}, the epochs that the run in "
                f"--out_dir={self.folder} has done already, got {num_epochs}."
            )
        self._num_epochs = num_epochs
        if self._record:
            self._traces = TraceWriter(self.folder, self._config, train, num_workers(self._config))
        if self._saved is not None and self._traces is not None:
            self._traces.check(self._saved)
        files.remove_parts(self.folder)
        if self._saved is None:
            write_config(self.folder, self._config)
            self._open_events(0)
            return None
        self._open_metrics(len(self.rows))
        spill.rewind(self.folder, self._saved)
        if self._traces is not None:
            self._traces.resume(self._saved)
        write_config(self.folder, self._config)
        self._open_events(self._saved.epoch + 1)
        return self._saved

    def add(self, state: EpochResult, evaluation: Evaluation, phase: Phase | None = None) -> Row:
        """Records an epoch: a line of metrics.csv, its delays, and its trace if asked to.

        Args:
          state: after the epoch; of epoch 0 before training.
          evaluation: of its x.
          phase: of the method, that the epoch belongs to; None before training.

        Returns:
          The line.
        """
        line = row(state, evaluation)
        counts = self.delay_counts
        if state.trace is not None:
            counts = delay_counts.add(counts, state.trace, num_workers(self._config))
        if self._traces is not None:
            self._traces.add(state, phase)
        self.rows.append(line)
        self.delay_counts = counts
        # At once, so that Ctrl-C finds either all of an epoch there or nothing of it.
        self._reached = _Reached(state, len(self.rows), counts)
        if self._metrics is None:
            # The checkpoint first: without one, a folder with results is another run's.
            self.checkpoint(now=True)
            self._open_metrics(len(self.rows))
        else:
            self._metrics.add(tables.as_text([line]))
        if self._events is not None:
            for name, value in zip(Row._fields[1:], line[1:], strict=True):
                self._events.add_scalar(name, value, line.epoch)
        return line

    def keep(self, state: EpochResult) -> None:
        """Takes the state inside of an epoch that follows the last recorded one for `checkpoint`.

        Args:
          state: with that epoch's `inside`.
        """
        self._reached = _Reached(state, len(self.rows), self.delay_counts)

    def is_due(self) -> bool:
        """Whether an epoch shall pause for a checkpoint."""
        return self._timer.is_due()

    def checkpoint(self, *, now: bool = False) -> None:
        """Writes a checkpoint of the last recorded state, if the one before is old enough.

        Args:
          now: whatever the age of the one before.

        Raises:
          OSError: it cannot be written.
        """
        if self._reached is not None and self._reached.state.epoch == self._num_epochs:
            return  # That of the end is for `__exit__`.
        if now or self._timer.is_due_after_epoch():
            self._save_reached()

    def _save_reached(self) -> None:
        reached = self._reached
        if reached is not None and reached.state is not self._saved:
            progress = checkpoints.Progress(
                reached.state,
                self.rows[: reached.num_rows],
                reached.delay_counts,
                self._config,
            )
            if self._events is not None:
                self._events.flush()  # what the checkpoint holds is not written again
            checkpoints.save(self.folder, progress)
            self._saved = reached.state
            self._timer.restart()

    @property
    def saved(self) -> EpochResult | None:
        """The state in the newest checkpoint; None without one."""
        return self._saved

    def _restore(self) -> None:
        progress = checkpoints.load(self.folder)
        if progress is None:
            return
        checkpoints.check_same_run(self.folder, progress.config, self._config)
        self.rows = [Row._make(values) for values in progress.rows]
        self.delay_counts = progress.delay_counts
        self._saved = self._with_same_workers(progress)
        resumed = {"epoch": progress.state.epoch, "started": self._config["started"]}
        self._config = self._config | {
            "started": progress.config["started"],
            "resumed": [*progress.config.get("resumed", []), resumed],
        }

    def _with_same_workers(self, progress: checkpoints.Progress) -> EpochResult:
        """The state of a checkpoint; between epochs if the workers are others now."""
        state = progress.state
        if state.inside is None:
            return state
        before, now = num_workers(progress.config), num_workers(self._config)
        if before == now:
            return state
        print(
            f"epoch {state.epoch + 1} begins anew, as it had {before} workers, not {now}",
            file=sys.stderr,
        )
        return state._replace(inside=None)

    def _open_events(self, first_epoch: int) -> None:
        if self._tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=first_epoch or None
            )
            self._open.callback(self._events.close)

    def _open_metrics(self, num_rows: int) -> None:
        """Makes metrics.csv that of the first rows, to which others are added."""
        if self._metrics is not None:
            self._metrics.close()
        text = tables.as_text([Row._fields, *self.rows[:num_rows]])
        self._metrics = files.Lines(self.folder / METRICS, text)
        self._open.callback(self._metrics.close)

    def _write_delays(self) -> None:
        lines = delay_counts.lines(self.delay_counts)
        tables.write_lines(self.folder / DELAYS, [("worker", "delay", "updates"), *lines])


class _Reached(NamedTuple):
    """A recorded state, and how much of the records is its and of those before."""

    state: EpochResult
    num_rows: int
    delay_counts: np.ndarray


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes config.json, from `describe`, to a run's folder."""
    text = json.dumps(config, indent=2) + "\n"
    files.write_whole(folder / CONFIG, lambda file: file.write(text.encode()))


def num_workers(config: dict[str, Any]) -> int | None:
    """K of a run, from its config; None if that does not say."""
    of_job: int | None = config.get("job", {}).get("num_workers")
    return of_job or config["resolved"].get("num_threads")
