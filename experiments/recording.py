"""What a run leaves behind: metrics.csv, config.json, trace.npz, events and checkpoints."""

from __future__ import annotations

import csv
import datetime
import fcntl
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
from absl import flags

from asvrg import delays
from asvrg.errors import InputError
from asvrg.types import EpochResult, Trace
from experiments import checkpoints
from experiments.problem import Evaluation

METRICS, CONFIG, TRACE, CURVES = "metrics.csv", "config.json", "trace.npz", "curves.png"


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
    flags.DEFINE_string(
        "out_dir",
        None,
        "Folder for the results. Default: a new one under runs/.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "save_trace",
        False,
        "Write trace.npz: who computed which update from which x.",
        flag_values=values,
    )
    flags.DEFINE_bool("tensorboard", False, "Write TensorBoard events too.", flag_values=values)
    flags.DEFINE_integer(
        "checkpoint_seconds",
        10,
        "Seconds between two checkpoints, which are written between epochs; 0: after every epoch.",
        lower_bound=0,
        flag_values=values,
    )


def claim_folder(out_dir: str | None, name: str, *, holds: str = METRICS) -> Path:
    """Makes the folder for a run's results.

    Args:
      out_dir: as the user gave it; None for a new folder below runs/.
      name: of the run, the beginning of a new folder's name.
      holds: the file by which another run's results are known.

    Returns:
      The folder, which exists, can be written to, and holds no results, or those of a run that has
      checkpoints to go on from.

    Raises:
      InputError: it cannot be made or written to, or holds another run's results.
    """
    if out_dir is None:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        folder = Path("runs") / f"{name}-{now}"
    else:
        folder = Path(out_dir)
    if out_dir is not None and not out_dir.strip():
        raise InputError("--out_dir must name a folder, got an empty name.")
    # os.path: what cannot be looked at cannot be written to either, which is told below.
    if os.path.exists(folder / holds) and not (holds == METRICS and checkpoints.exist_in(folder)):
        raise InputError(
            "--out_dir must be a folder without another run's results, got "
            f"{folder}, which holds a {holds}."
        )
    make_folder("--out_dir must be a folder", folder)
    return folder


def make_folder(must_be: str, folder: Path) -> None:
    """Makes a folder, and tries whether it can be written to.

    Args:
      must_be: the beginning of the sentence for one that cannot.
      folder: its path.

    Raises:
      InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{must_be} that can be made and written to, got {folder} ({error.strerror})."
        ) from error


def open_recorder(values: flags.FlagValues, name: str, config: dict[str, Any]) -> Recorder:
    """The Recorder that the flags describe.

    Args:
      values: parsed, with the flags of `define_flags`.
      name: of the run, the beginning of a new folder's name.
      config: of the run, from `provenance.describe`.

    Returns:
      A Recorder, not begun.

    Raises:
      InputError: the folder cannot be used, or its checkpoints are damaged or another run's.
    """
    return Recorder(
        claim_folder(values.out_dir, name),
        config,
        save_trace=values.save_trace,
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
        save_trace: bool,
        tensorboard: bool,
        checkpoint_seconds: float = 0.0,
    ) -> None:
        """Reads the checkpoint, if there is one; writes nothing before `begin`.

        Raises:
          InputError: the checkpoints are all damaged, or those of another run.
        """
        self.folder = folder
        self.rows: list[Row] = []
        self.delay_counts = np.zeros(0, np.int64)  # updates with delay 0, 1, ...
        self._traces: list[Trace] = []
        self._config = config
        self._save_trace = save_trace
        self._tensorboard = tensorboard
        self._checkpoint_seconds = checkpoint_seconds
        self._events: Any = None
        self._metrics: IO[str] | None = None
        self._reached: _Reached | None = None
        self._saved: EpochResult | None = None  # the state in the newest checkpoint
        self._saved_at = 0.0
        if checkpoints.exist_in(folder):
            self._restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._metrics is not None and self._traces:
                write_whole(self.folder / TRACE, self._write_traces)
            if error is None:
                # The last thing: a run whose checkpoint is that of its end has all its files.
                self.checkpoint(now=True)
        finally:
            for file in (self._events, self._metrics):
                if file is not None:
                    file.close()

    def begin(self, num_epochs: int) -> EpochResult | None:
        """Writes config.json, and a metrics.csv with the rows up to the checkpoint.

        Args:
          num_epochs: that the run shall have in the end.

        Returns:
          The state to go on from; None for a new run.

        Raises:
          InputError: all epochs are done, or another process is at it.
        """
        if self._saved is None:
            write_config(self.folder, self._config)
            self._open_events(0)
            return None
        if self._saved.epoch >= num_epochs:
            raise InputError(
                f"the run in --out_dir={self.folder} is finished: it has done {self._saved.epoch} "
                f"epochs, and --num_epochs must be more to go on with it, got {num_epochs}."
            )
        self._open_metrics("a")
        write_config(self.folder, self._config)
        self._open_events(self._saved.epoch + 1)
        return self._saved

    def add(self, state: EpochResult, evaluation: Evaluation) -> Row:
        """Records an epoch: a line of metrics.csv, its delays, and its trace if asked to.

        Args:
          state: after the epoch; of epoch 0 before training.
          evaluation: of its x.

        Returns:
          The line.
        """
        line = row(state, evaluation)
        counts = self.delay_counts
        if state.trace is not None:
            counts = np.bincount(delays.staleness(state.trace), minlength=len(counts))
            counts[: len(self.delay_counts)] += self.delay_counts
            if self._save_trace:
                self._traces.append(state.trace)
        self.rows.append(line)
        self.delay_counts = counts
        # At once, so that Ctrl-C finds either all of an epoch there or nothing of it.
        self._reached = _Reached(state, len(self.rows), counts, len(self._traces))
        if self._metrics is None:
            # The checkpoint first: without one, a folder with results is another run's.
            self.checkpoint(now=True)
            self._open_metrics("x")
        else:
            self._write_line(line)
        if self._events is not None:
            for name, value in zip(Row._fields[1:], line[1:], strict=True):
                self._events.add_scalar(name, value, line.epoch)
        return line

    def checkpoint(self, *, now: bool = False) -> None:
        """Writes a checkpoint of the last recorded state, if the one before is old enough.

        Args:
          now: whatever the age of the one before.

        Raises:
          OSError: it cannot be written.
        """
        reached = self._reached
        due = now or time.monotonic() - self._saved_at >= self._checkpoint_seconds
        if due and reached is not None and reached.state is not self._saved:
            progress = checkpoints.Progress(
                reached.state,
                self.rows[: reached.num_rows],
                reached.delay_counts,
                self._traces[: reached.num_traces],
                self._config,
            )
            checkpoints.save(self.folder, progress)
            self._saved, self._saved_at = reached.state, time.monotonic()

    @property
    def saved_epoch(self) -> int | None:
        """The epochs done in the newest checkpoint; None without one."""
        return None if self._saved is None else self._saved.epoch

    def _restore(self) -> None:
        progress = checkpoints.load(self.folder)
        if progress is None:
            return
        checkpoints.check_same_run(self.folder, progress.config, self._config)
        self.rows = [Row._make(values) for values in progress.rows]
        self.delay_counts = progress.delay_counts
        self._traces = list(progress.traces)
        self._saved, self._saved_at = progress.state, time.monotonic()
        resumed = {"epoch": progress.state.epoch, "started": self._config["started"]}
        self._config = self._config | {
            "started": progress.config["started"],
            "resumed": [*progress.config.get("resumed", []), resumed],
        }

    def _open_events(self, first_epoch: int) -> None:
        if self._tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=first_epoch or None
            )

    def _open_metrics(self, mode: str) -> None:
        """Makes metrics.csv that of the rows so far, unless another process holds it."""
        metrics = open(self.folder / METRICS, mode, newline="", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            metrics.close()
            raise InputError(
                f"--out_dir must be a folder that no other process writes to, got {self.folder}."
            ) from error
        except OSError:
            pass  # A file system without locks.
        self._metrics = metrics
        metrics.truncate(0)
        for line in [Row._fields, *self.rows]:
            self._write_line(line)

    def _write_line(self, values: Any) -> None:
        # Nine digits give a float32 back exactly.
        cells = [f"{value:.9g}" if isinstance(value, float) else value for value in values]
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        assert self._metrics is not None
        self._metrics.write(line.getvalue())
        self._metrics.flush()

    def _write_traces(self, file: IO[bytes]) -> None:
        arrays: dict[str, Any] = dict(checkpoints.pack_traces(self._traces))
        arrays["config"] = np.array(json.dumps(self._config))
        np.savez_compressed(file, **arrays)


class _Reached(NamedTuple):
    """A recorded state, and how much of the records is its and of those before."""

    state: EpochResult
    num_rows: int
    delay_counts: np.ndarray
    num_traces: int


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes config.json, from `describe`, to a run's folder."""
    text = json.dumps(config, indent=2) + "\n"
    write_whole(folder / CONFIG, lambda file: file.write(text.encode()))


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file under another name first, so that it is there as a whole or not at all.

    Args:
      path: of the file.
      write: receives the open binary file.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
