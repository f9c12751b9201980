"""The record of a whole run: what its updates were made of, an epoch to a file.

A run's folder holds it as `trace/`: run.json says which run it is, epoch-00001.npz and so on have
its Traces, shards-*.npz the shards of workers that have some, and x.npz the x after the newest
epoch. Draws are not written down: they follow from the seed, which is among the flags in run.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asvrg import delays
from asvrg.errors import INT32, InputError, check_choice, check_count, check_kind
from asvrg.types import Shard, Trace
from experiments.traces import storage

FOLDER, HEADER, LAST = "trace", "run.json", "x.npz"
FORMAT, VERSION = "asvrg trace", 1


class Header(NamedTuple):
    """Which run it is.

    Attributes:
      run_id: drawn when the run began; the other files repeat it.
      config: of the run, what its config.json holds.
      data_sha256: of the training data, from `digest`.
      num_samples: n.
      dtype: of x.
      dim: d.
      inner_steps: m.
      num_workers: K; None if the workers are not numbered from 0 to K - 1, and after deaths beyond.
      num_groups: G, groups of coordinates that are read at different times.
    """

    run_id: str
    config: dict[str, Any]
    data_sha256: str
    num_samples: int
    dtype: str
    dim: int
    inner_steps: int
    num_workers: int | None
    num_groups: int


class Epoch(NamedTuple):
    """What an epoch did.

    Attributes:
      number: from 1.
      estimator: name of a function of asvrg.estimators.
      lr: eta.
      before: digest of x when it began.
      after: digest of x when it ended.
      trace: of its updates; times are kept to 0.1 microseconds.
    """

    number: int
    estimator: str
    lr: float
    before: str
    after: str
    trace: Trace


class Recording(NamedTuple):
    """A recorded run; make one with `load`.

    Attributes:
      header: which run it is.
      epochs: of the run, read and checked when they are asked for.
      last_epoch: after which `last_x` was written: the newest one, or the one before it if the run
        was killed between the two files.
      last_x: float [d].
    """

    header: Header
    epochs: Epochs
    last_epoch: int
    last_x: np.ndarray


def epoch_file(folder: Path, number: int) -> Path:
    """The path of an epoch's file."""
    return folder / f"epoch-{number:05d}.npz"


def recorded_epochs(folder: Path) -> list[int]:
    """The numbers of the epochs that there are files of, rising."""
    found = [re.fullmatch(r"epoch-(\d{5,})\.npz", path.name) for path in folder.glob("epoch-*")]
    return sorted(int(match[1]) for match in found if match)


def load(path: str | Path) -> Recording:
    """Opens the record of a run; epochs are read as they are asked for.

    Args:
      path: the run's folder, or the folder `trace` in it.

    Returns:
      A Recording.

    Raises:
      InputError: there is none, or run.json or x.npz is damaged, or the file of an epoch is missing
        or of another run; the sentence names the file.
    """
    folder = Path(path)
    if not (folder / HEADER).is_file():
        folder = folder / FOLDER
    header = read_header(folder)
    numbers = recorded_epochs(folder)
    missing = sorted(set(range(1, (numbers or [1])[-1] + 1)) - set(numbers))
    if missing:
        raise InputError(f"{epoch_file(folder, missing[0])} is missing: the trace has a gap there.")
    epochs = Epochs(folder, header, len(numbers))
    last, x = _read_x(folder, header)
    if last not in (len(epochs), len(epochs) - 1):
        raise InputError(
            f"{folder / LAST} must hold the x after epoch {len(epochs)}, the newest of the trace, "
            f"got that after epoch {last}."
        )
    wanted = epochs[last - 1].after if last else epochs[0].before
    if storage.digest(x) != wanted:
        raise InputError(f"{folder / LAST} does not hold the x that epoch {last} ended with.")
    return Recording(header, epochs, last, x)


def read_header(folder: Path) -> Header:
    """Which run it is.

    Args:
      folder: of the trace.

    Returns:
      A Header.

    Raises:
      InputError: there is none, it is damaged, or of another format.
    """
    path = folder / HEADER
    content = storage.content(path, "holds no recorded run", limit=1 << 24)
    try:
        record = json.loads(content)
        if record["format"] != FORMAT:
            raise ValueError("another format")
        version, found = record["version"], record.pop("sha256")
    except Exception as error:  # whatever is wrong with foreign bytes
        raise InputError(f"{path} is damaged, or no record of a run ({error}).") from error
    if version != VERSION:
        raise InputError(
            f"{path} must be of version {VERSION} of the format, got {version!r}: read it with "
            "the release of this program that wrote it."
        )
    try:
        if found != seal(record):
            raise ValueError("its checksum is another one")
        header = Header(**{name: record[name] for name in Header._fields})
        _check_header(header)
    except Exception as error:
        raise InputError(f"{path} is damaged ({error}).") from error
    return header


def _check_header(header: Header) -> None:
    """Raises InputError where a field is none that a run could have written."""
    for name in ("num_samples", "dim", "inner_steps", "num_groups"):
        check_count(name, getattr(header, name), most=INT32)
    if header.num_workers is not None:
        check_count("num_workers", header.num_workers, most=INT32)
    check_choice("dtype", header.dtype, ("float32", "float64"))
    check_kind("run_id", header.run_id, str)
    check_kind("config", header.config, dict)
    for name in ("flags", "resolved"):
        check_kind(f"config[{name!r}]", header.config.get(name), dict)


def seal(record: Mapping[str, Any]) -> str:
    """SHA-256 of what run.json says."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def check_data(folder: str | Path, header: Header, data_sha256: str) -> None:
    """Raises InputError unless these are the data that the run was trained on.

    Args:
      folder: of the run, for the sentence.
      header: of the run.
      data_sha256: of the training data.

    Raises:
      InputError: they differ.
    """
    if data_sha256 != header.data_sha256:
        raise InputError(
            f"{folder} was recorded on other training data than those of --data_dir: their "
            f"SHA-256 is not {header.data_sha256[:12]}...."
        )


class Epochs:
    """The epochs of a recorded run: `epochs[0]` is the first; iterating also checks how they join.

    An epoch that cannot be what the run did raises InputError, with a sentence that names the file.
    """

    def __init__(self, folder: Path, header: Header, count: int) -> None:
        """Reads nothing yet."""
        self._folder = folder
        self._header = header
        self._count = count
        self._shards: tuple[str, tuple[Shard, ...]] | None = None  # those read last, and their name

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Epoch:
        number = range(1, self._count + 1)[index]
        path, header = epoch_file(self._folder, number), self._header
        limit = storage.SLACK + 8 * header.inner_steps * (header.num_groups + 5)
        record, arrays = storage.read(path, limit=limit)
        try:
            trace = self._trace(record, arrays)
            epoch = Epoch(**{name: record[name] for name in Epoch._fields[:-1]}, trace=trace)
            run_id = record["run_id"]
            usable = isinstance(epoch.estimator, str) and math.isfinite(epoch.lr)
        except InputError as error:
            raise InputError(f"{path} is no trace of this run: {error}") from error
        except Exception as error:  # whatever is wrong with foreign bytes
            raise InputError(f"{path} is no trace of a run ({error}).") from error
        if run_id != header.run_id or epoch.number != number or not usable:
            raise InputError(
                f"{path} must be of epoch {number} of run {header.run_id}, got epoch "
                f"{epoch.number} of run {run_id}."
            )
        return epoch

    def __iter__(self) -> Iterator[Epoch]:
        before = None
        for index in range(self._count):
            epoch = self[index]
            if before is not None and epoch.before != before:
                raise InputError(
                    f"{epoch_file(self._folder, epoch.number)} does not begin where the epoch "
                    "before it ended."
                )
            before = epoch.after
            yield epoch

    def _trace(self, record: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Trace:
        header = self._header
        m, worker, delay = header.inner_steps, arrays["worker"], arrays["delay"].astype(np.int64)
        groups = (m,) if header.num_groups == 1 else (m, header.num_groups)
        whole = worker.dtype.kind in "iu" and arrays["delay"].dtype.kind in "iu"
        if worker.shape != (m,) or delay.shape != groups or not whole:
            raise InputError(
                f"worker and delay must be whole numbers [{m}] and {list(groups)}, got "
                f"{worker.dtype} {list(worker.shape)} and {arrays['delay'].dtype} "
                f"{list(delay.shape)}."
            )
        version = np.arange(m).reshape((-1,) + (1,) * (delay.ndim - 1)) - delay
        shards = None if record["shards"] is None else self._read_shards(record["shards"])
        trace = Trace(
            worker.astype(np.int32),
            version.astype(np.int32),
            bool(record["sees_own"]),
            shards,
            arrays.get("scale"),
            storage.times(arrays["ticks"]) if "ticks" in arrays else None,
        )
        delays.check(trace)
        most = header.num_workers
        if shards is None and most is not None and np.any(trace.worker >= most):
            raise InputError(f"workers must have numbers below {most}, got {trace.worker.max()}.")
        if shards is not None and not all(len(shards[k].samples) for k in np.unique(trace.worker)):
            raise InputError("a worker must have samples to draw from, got one without.")
        return trace

    def _read_shards(self, name: str) -> tuple[Shard, ...]:
        if self._shards is None or self._shards[0] != name:
            shards = storage.read_shards(
                self._folder,
                name,
                num_samples=self._header.num_samples,
                num_workers=self._header.num_workers or 1,
            )
            self._shards = name, shards
        return self._shards[1]


def _read_x(folder: Path, header: Header) -> tuple[int, np.ndarray]:
    path = folder / LAST
    limit = storage.SLACK + 8 * header.dim
    record, arrays = storage.read(path, limit=limit)
    x, epoch = arrays.get("x", np.zeros(0)), record.get("epoch")
    of_run = record.get("run_id") == header.run_id
    if not of_run or x.shape != (header.dim,) or str(x.dtype) != header.dtype:
        raise InputError(
            f"{path} must hold an x of run {header.run_id}, {header.dtype} [{header.dim}], got "
            f"{x.dtype} {list(x.shape)} of run {record.get('run_id')}."
        )
    if not isinstance(epoch, int):
        raise InputError(f"{path} must say after which epoch x was this, got {epoch!r}.")
    return epoch, x
