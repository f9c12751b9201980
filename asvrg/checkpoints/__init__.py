"""Checkpoints of a run: a record and arrays, written as a whole or not at all; the last two stay.

They are files that orbax keeps, which must be installed: pip install 'asvrg[checkpoints]'.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from asvrg.errors import InputError
from asvrg.types import EpochResult, Halfway, Inside, Shard, Times, Trace

T = TypeVar("T")

KEPT = 2
VERSION = 3  # of the format
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that ask a process to end


class Content(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      record: what JSON can say.
      arrays: of numbers, by name.
    """

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Timer:
    """When the next checkpoint of a run is due.

    >>> Timer(3600.0).is_due(), Timer(0.0).is_due(), Timer(0.0).is_due_after_epoch()
    (False, False, True)
    """

    def __init__(self, seconds: float) -> None:
        """Starts it: `seconds` from one checkpoint to the next; 0: after every epoch alone."""
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """A checkpoint has been written now."""
        self._begin = time.monotonic()

    def is_due(self) -> bool:
        """Whether an epoch shall pause for a checkpoint."""
        return 0 < self._seconds <= time.monotonic() - self._begin

    def is_due_after_epoch(self) -> bool:
        """Whether one shall be written where an epoch has ended."""
        return self._seconds == 0 or self.is_due()


def exist_in(folder: Path) -> bool:
    """Whether a folder holds checkpoints, damaged ones included.

    Args:
      folder: of the checkpoints.

    Returns:
      False also of a folder that is not there.

    Raises:
      InputError: orbax is not installed.

    >>> exist_in(Path("no", "such", "folder"))
    False
    """
    return folder.is_dir() and bool(_orbax_files().steps(folder))


def save(folder: Path, content: Content) -> None:
    """Adds a checkpoint to a folder, in which the last two stay.

    Not asynchronously: a checkpoint of up to a megabyte takes some 20 ms, and what it holds may
    change right after.

    Args:
      folder: of the checkpoints; made if it is not there.
      content: to keep.

    Raises:
      InputError: orbax is not installed.
      OSError: it cannot be written; the checkpoints before are as they were.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     save(Path(name), Content({"epoch": 2}, {"x": np.zeros(3)}))
    ...     load(Path(name), "the folder must be one", lambda content: content.record["epoch"])
    2
    """
    with _signals_wait():
        _orbax_files().save(folder, _packed(content), keep=KEPT)


def load(folder: Path, must_be: str, decode: Callable[[Content], T]) -> T | None:
    """The newest checkpoint that is not damaged; one that is gets a line on the standard error.

    Args:
      folder: of the checkpoints.
      must_be: the beginning of the sentence for a folder whose checkpoints cannot be used, as in
        "--out_dir must name a folder".
      decode: Content -> what it stands for; whatever it raises is damage.

    Returns:
      What it stands for, or None if there is no checkpoint.

    Raises:
      InputError: all checkpoints are damaged, or of another version of the format; or orbax is not
        installed.

    >>> load(Path("no", "such", "folder"), "the folder must be one", lambda content: content)
    """
    if not folder.is_dir():
        return None
    files = _orbax_files()
    steps = files.steps(folder)
    for step in reversed(steps):
        try:
            content = _unpacked(files.load(folder, step))
            version = content.record["version"]
            if version == VERSION:
                return decode(content)
        except Exception as error:  # noqa: BLE001 - orbax, zipfile, numpy and json have many
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            print(f"The checkpoint {folder / str(step)} is damaged: {reason}.", file=sys.stderr)
            continue
        raise InputError(
            f"{must_be} with checkpoints of version {VERSION}, got {version}: go on with the "
            "release of this program that wrote them."
        )
    if steps:
        raise InputError(
            f"{must_be} with a run that can go on, or without one, got {folder}, whose checkpoints "
            "are all damaged; name another folder to start anew."
        )
    return None


def of_state(state: EpochResult) -> Content:
    """A run's state, also inside of an epoch, as content of a checkpoint.

    Args:
      state: with a trace or without, which is not kept.

    Returns:
      A Content.

    >>> state = EpochResult(2, np.zeros(3), 0.5, 10, 20, None)
    >>> to_state(of_state(state)).updates
    10
    """
    kept = {name: getattr(state, name) for name in ("epoch", "seconds", "updates", "grad_evals")}
    arrays = {"x": np.asarray(state.x)}
    if state.inside is not None:
        halfway, trace = state.inside.halfway, state.inside.halfway.trace
        kept["inside"] = {"seconds": state.inside.seconds, "sees_own": trace.sees_own}
        arrays |= {
            "inside/x": np.asarray(halfway.x),
            "inside/full_grad": np.asarray(state.inside.full_grad),
            "inside/worker": np.asarray(trace.worker),
            "inside/read_version": np.asarray(trace.read_version),
        }
        if trace.scale is not None:
            arrays["inside/scale"] = np.asarray(trace.scale)
        if trace.times is not None:
            arrays["inside/times"] = np.stack(trace.times)
        if trace.shards is not None:
            arrays |= {
                "inside/shards/sizes": np.array([len(each.samples) for each in trace.shards]),
                "inside/shards/weights": np.array([each.weight for each in trace.shards]),
                "inside/shards/samples": np.concatenate([each.samples for each in trace.shards]),
            }
        for number, each in enumerate(halfway.memory):
            arrays[f"inside/memory/{number}"] = np.asarray(each)
    return Content({"state": kept}, arrays)


def to_state(content: Content) -> EpochResult:
    """The state of a run that `of_state` made a content of.

    Args:
      content: with others' entries or without.

    Returns:
      An EpochResult without a trace.

    Raises:
      KeyError: an entry is missing.

    >>> halfway = Halfway(np.ones(3), Trace(np.zeros(4, np.int32), np.arange(4)))
    >>> state = EpochResult(2, np.zeros(3), 0.5, 10, 20, None, Inside(halfway, np.ones(3), 0.1))
    >>> len(to_state(of_state(state)).inside.halfway.trace.worker)
    4
    """
    kept, arrays = dict(content.record["state"]), content.arrays
    inside = kept.pop("inside", None)
    if inside is not None:
        times = arrays.get("inside/times")
        trace = Trace(
            arrays["inside/worker"],
            arrays["inside/read_version"],
            inside["sees_own"],
            shards=_shards(arrays),
            scale=arrays.get("inside/scale"),
            times=None if times is None else Times(*times),
        )
        number = sum(name.startswith("inside/memory/") for name in arrays)
        memory = tuple(arrays[f"inside/memory/{each}"] for each in range(number))
        full_grad = arrays["inside/full_grad"]
        inside = Inside(
            Halfway(arrays["inside/x"], trace, memory),
            full_grad if full_grad.size else (),
            inside["seconds"],
        )
    return EpochResult(**kept, x=arrays["x"], trace=None, inside=inside)


def _shards(arrays: dict[str, np.ndarray]) -> tuple[Shard, ...] | None:
    if "inside/shards/sizes" not in arrays:
        return None
    ends = np.cumsum(arrays["inside/shards/sizes"])
    pieces = np.split(arrays["inside/shards/samples"], ends[:-1])
    weights = arrays["inside/shards/weights"].tolist()
    return tuple(map(Shard._make, zip(pieces, weights, strict=True)))


def as_restored(record: Any) -> Any:
    """What a checkpoint will give back of a record: lists for tuples, numbers for numpy's.

    Args:
      record: of what JSON and numpy's scalars can say.

    Returns:
      The record.

    >>> as_restored({"sizes": (np.int64(3), 4.0)})
    {'sizes': [3, 4.0]}
    """
    return json.loads(_dumped(record))


def _dumped(record: Any) -> str:
    return json.dumps(record, default=lambda scalar: scalar.item())


def _packed(content: Content) -> bytes:
    record = _dumped(content.record | {"version": VERSION}).encode()
    arrays: dict[str, Any] = {"record": np.frombuffer(record, np.uint8), **content.arrays}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpacked(packed: bytes) -> Content:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        if sum(info.file_size for info in archive.infolist()) > len(packed):
            raise ValueError("it promises more than it holds")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        content = Content({}, {name: arrays[name] for name in arrays.files})
    record = json.loads(content.arrays.pop("record").tobytes())
    return content._replace(record=record)


def _orbax_files() -> ModuleType:
    """Imported when it is needed: it takes half a second."""
    try:
        from asvrg.checkpoints import orbax_files
    except ImportError as error:
        raise InputError(
            f"checkpoints must have orbax: pip install 'asvrg[checkpoints]' ({error})."
        ) from error
    return orbax_files


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Has signals take effect after the block: no import and no file is left half-way."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no other one is interrupted
        return
    received: list[int] = []
    # None is a handler that Python has not set, and cannot set again.
    before = {each: signal.getsignal(each) for each in SIGNALS}
    mine = [each for each in SIGNALS if before[each] not in (None, signal.SIG_IGN)]
    for each in mine:
        signal.signal(each, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, mine)
        for each in mine:
            signal.signal(each, before[each])
        for number in received:
            signal.raise_signal(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, mine)  # now they take effect
