"""Writes the record of a run while it goes on; memory holds no epoch of it."""

from __future__ import annotations

import contextlib
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from asvrg import objectives
from asvrg.errors import InputError
from asvrg.types import Array, Data, EpochResult, Trace
from experiments import files, traces
from experiments.methods import Phase
from experiments.traces import Epoch, Header, storage


class TraceWriter:
    """Adds an epoch at a time to the folder `trace` of a run."""

    def __init__(
        self, folder: Path, config: dict[str, Any], train: Data, num_workers: int | None
    ) -> None:
        """Writes nothing yet.

        Args:
          folder: of the run.
          config: of the run, what its config.json holds.
          train: the training data.
          num_workers: K, if workers are numbered from 0 to K - 1.
        """
        self._folder = folder / traces.FOLDER
        self._config = config
        self._data_sha256 = storage.digest(train)
        self._num_samples = objectives.num_samples(train)
        self._num_workers = num_workers
        self._header: Header | None = None  # known with the first epoch's trace
        self._x0: Array = None
        self._before = ""  # digest of the x that the next epoch begins with

    def check(self, state: EpochResult) -> None:
        """Raises InputError unless the record has all of a run's epochs so far; writes nothing.

        Args:
          state: from which the run shall go on.

        Raises:
          InputError: an epoch is missing, damaged, or of another run.
        """
        if state.epoch == 0:
            return
        try:
            header = traces.read_header(self._folder)
            traces.check_data(self._folder, header, self._data_sha256)
            *_, last = traces.Epochs(self._folder, header, state.epoch)
            if last.after != storage.digest(state.x):
                path = traces.epoch_file(self._folder, state.epoch)
                raise InputError(f"{path} does not end with the x of the checkpoint.")
        except InputError as error:
            raise InputError(
                "--record needs a record of the epochs that are done, and --norecord goes on "
                f"without one: {error}"
            ) from error

    def resume(self, state: EpochResult) -> None:
        """Goes on after a state that `check` has accepted and `rewind` has gone back to."""
        if state.epoch > 0:
            header = traces.read_header(self._folder)
            # An MPI job may go on with fewer workers; the epochs so far had these.
            most = max(filter(None, (header.num_workers, self._num_workers)), default=None)
            self._header = header._replace(config=self._config, num_workers=most)
            write_header(self._folder, self._header)
        self._x0 = state.x if state.epoch == 0 else None
        self._before = storage.digest(state.x)

    def add(self, state: EpochResult, phase: Phase | None) -> None:
        """Writes down an epoch.

        Args:
          state: after the epoch; of epoch 0 before training.
          phase: that the epoch belongs to; None before training.

        Raises:
          OSError: it cannot be written.
        """
        if state.trace is None or phase is None:
            self.resume(state)
            return
        if self._header is None:
            self._header = self._describe(state.x, state.trace)
            start(self._folder, self._header, self._x0)
            self._x0 = None
        epoch = Epoch(
            number=state.epoch,
            estimator=phase.estimator,
            lr=float(phase.schedule(state.epoch - 1)),
            before=self._before,
            after=storage.digest(state.x),
            trace=state.trace,
        )
        write_epoch(self._folder, self._header, epoch)
        write_x(self._folder, self._header, state.epoch, state.x)
        self._before = epoch.after

    def _describe(self, x: Array, trace: Trace) -> Header:
        return Header(
            run_id=uuid.uuid4().hex,
            config=self._config,
            data_sha256=self._data_sha256,
            num_samples=self._num_samples,
            dtype=str(np.asarray(x).dtype),
            dim=np.size(x),
            inner_steps=len(trace.worker),
            num_workers=self._num_workers,
            num_groups=np.shape(trace.read_version)[1] if np.ndim(trace.read_version) == 2 else 1,
        )


def rewind(folder: Path, state: EpochResult) -> None:
    """Takes back what a run has recorded after a state from which it goes on.

    Args:
      folder: of the run, recorded or not.
      state: of its checkpoint.

    Raises:
      OSError: a file cannot be removed or written.
    """
    folder = folder / traces.FOLDER
    numbers = traces.recorded_epochs(folder)
    # In such an order that a reader finds a whole record at any moment.
    if state.epoch == 0:
        for name in (traces.HEADER, traces.LAST):
            (folder / name).unlink(missing_ok=True)
    elif state.epoch in numbers:
        with contextlib.suppress(InputError):  # A damaged header: there is no record to keep.
            write_x(folder, traces.read_header(folder), state.epoch, state.x)
    for number in sorted(numbers, reverse=True):
        if number > state.epoch:
            traces.epoch_file(folder, number).unlink()


def start(folder: Path, header: Header, x: Array) -> None:
    """Begins the record of a run.

    Args:
      folder: of the trace; made if it is not there.
      header: of the run.
      x: x^0, float [d].

    Raises:
      OSError: it cannot be written.
    """
    folder.mkdir(exist_ok=True)
    write_header(folder, header)
    write_x(folder, header, 0, x)


def write_header(folder: Path, header: Header) -> None:
    """Writes which run it is."""
    record = {"format": traces.FORMAT, "version": traces.VERSION, **header._asdict()}
    text = json.dumps(record | {"sha256": traces.seal(record)}, indent=2) + "\n"
    files.write_whole(folder / traces.HEADER, lambda file: file.write(text.encode()))


def write_epoch(folder: Path, header: Header, epoch: Epoch) -> None:
    """Writes the file of an epoch.

    Args:
      folder: of the trace.
      header: of the run.
      epoch: done last.

    Raises:
      OSError: it cannot be written.
    """
    trace = epoch.trace
    version = np.asarray(trace.read_version, np.int64)
    steps = np.arange(len(version)).reshape((-1,) + (1,) * (version.ndim - 1))
    # Delays, as versions need more bytes.
    arrays = {
        "worker": storage.smallest(trace.worker),
        "delay": storage.smallest(steps - version),
    }
    if trace.scale is not None:
        arrays["scale"] = np.asarray(trace.scale, np.float64)
    if trace.times is not None:
        arrays["ticks"] = storage.smallest(storage.ticks(trace.times))
    shards = None if trace.shards is None else storage.write_shards(folder, trace.shards)
    record = dict(zip(Epoch._fields[:-1], epoch[:-1], strict=True)) | {
        "run_id": header.run_id,
        "sees_own": trace.sees_own,
        "shards": shards,
    }
    storage.write(traces.epoch_file(folder, epoch.number), record, arrays)


def write_x(folder: Path, header: Header, epoch: int, x: Array) -> None:
    """Writes the x after an epoch, in place of that of an earlier one."""
    record = {"run_id": header.run_id, "epoch": epoch}
    storage.write(folder / traces.LAST, record, {"x": np.asarray(x)})
