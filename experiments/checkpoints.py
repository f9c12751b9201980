"""Checkpoints in a run's folder: what is in them, and which runs go on from them."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asvrg.errors import InputError
from asvrg.types import EpochResult

FOLDER = "checkpoint"
KEPT = 2
VERSION = 2  # of the format
# Flags that may differ from those of the run that a checkpoint goes on with.
FREE_FLAGS = frozenset({"checkpoint_seconds", "data_dir", "num_epochs", "out_dir", "record"})


class Progress(NamedTuple):
    """A run between two epochs: all that it takes to go on, and what it has recorded.

    Attributes:
      state: after the last epoch; a restored one has no trace.
      rows: of metrics.csv.
      delay_counts: int64 [K, T], the updates of worker k with delay tau.
      config: of the run, what config.json holds.
    """

    state: EpochResult
    rows: Sequence[tuple[float, ...]]
    delay_counts: np.ndarray
    config: dict[str, Any]


def exist_in(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint, damaged ones included."""
    return bool(_steps(folder))


def save(folder: Path, progress: Progress) -> None:
    """Adds a checkpoint to a run's folder; the last two stay there.

    Args:
      folder: of the run.
      progress: of the run.

    Raises:
      OSError: it cannot be written; the checkpoints before are as they were.
    """
    with _ctrl_c_waits():
        from experiments import orbax_files

        # Not the epoch: updates also tell two states inside of an epoch apart.
        step = progress.state.updates
        orbax_files.save(folder / FOLDER, step, _encode(progress), keep=KEPT)


def load(folder: Path) -> Progress | None:
    """The newest checkpoint that is not damaged; one that is gets a line on the standard error.

    Args:
      folder: of the run.

    Returns:
      The Progress, or None if there is no checkpoint.

    Raises:
      InputError: all checkpoints are damaged, or of another version of the format.
    """
    steps = _steps(folder)
    if not steps:
        return None
    from experiments import orbax_files

    for step in reversed(steps):
        try:
            return _decode(orbax_files.load(folder / FOLDER, step))
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - orbax, zipfile, numpy and json have many
            path = folder / FOLDER / str(step)
            print(f"The checkpoint {path} is damaged: {error}.", file=sys.stderr)
    raise InputError(
        f"--out_dir={folder} holds a run whose checkpoints are all damaged; name another folder to "
        "start anew."
    )


def check_same_run(folder: Path, saved: dict[str, Any], config: dict[str, Any]) -> None:
    """Raises InputError unless a checkpoint's run and the one that is asked for are the same.

    Args:
      folder: of the run.
      saved: config of the checkpoint.
      config: of the run that is asked for.

    Raises:
      InputError: a flag or what became of it differs; the sentence names those that do.
    """
    for settings in (_flags, _resolved):
        before, now = settings(saved), settings(config)
        names = [name for name in sorted(before.keys() | now.keys()) if _differ(name, before, now)]
        if names:
            raise InputError(
                f"--out_dir={folder} holds a run with {_listed(names, before)}, which goes on with "
                f"the same flags only, got {_listed(names, now)}."
            )


def _steps(folder: Path) -> list[int]:
    """The checkpoints by the updates that their run had applied, rising."""
    if not (folder / FOLDER).is_dir():
        return []
    from experiments import orbax_files

    return orbax_files.steps(folder / FOLDER)


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Has SIGINT take effect after the block: no import and no file is left half-way."""
    received = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)


def _encode(progress: Progress) -> bytes:
    state = progress.state
    record = {
        "version": VERSION,
        "config": progress.config,
        "state": state._replace(x=None, trace=None)._asdict(),
        "rows": [list(row) for row in progress.rows],
    }
    arrays: dict[str, Any] = {
        "record": np.frombuffer(json.dumps(record).encode(), np.uint8),
        "x": np.asarray(state.x),
        "delay_counts": progress.delay_counts,
    }
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _decode(content: bytes) -> Progress:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        record = json.loads(arrays["record"].tobytes())
        if record["version"] != VERSION:
            raise InputError(
                f"--out_dir must hold checkpoints of version {VERSION}, got {record['version']}: "
                "go on with the release of this program that wrote them."
            )
        return Progress(
            state=EpochResult(**record["state"])._replace(x=arrays["x"]),
            rows=[tuple(row) for row in record["rows"]],
            delay_counts=arrays["delay_counts"],
            config=record["config"],
        )


def _flags(config: dict[str, Any]) -> dict[str, Any]:
    """The flags that must not change."""
    flags = {f"--{name}": config["flags"][name] for name in config["flags"].keys() - FREE_FLAGS}
    return _as_restored(flags)


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """What became of flags without a value: other releases may have other defaults."""
    return _as_restored(config["resolved"])


def _as_restored(values: dict[str, Any]) -> dict[str, Any]:
    restored: dict[str, Any] = json.loads(json.dumps(values))
    return restored


def _differ(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    return name not in before or name not in now or before[name] != now[name]


def _listed(names: list[str], settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={settings[name]}" if name in settings else f"no {name}" for name in names
    )
