"""Checkpoints of `asvrg.fit`: where a run is, and whether another call is of the same run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import checkpoints
from asvrg.checkpoints import Content
from asvrg.errors import InputError
from asvrg.fitting.automatic import Step
from asvrg.objectives import Metrics
from asvrg.types import EpochResult, PyTree

MAY_GROW = ("lr", "alpha")  # lists with an entry for every epoch, of which a run may have more


class Position(NamedTuple):
    """Where a run is: after an epoch, or inside of the next one.

    Attributes:
      state: of the run.
      start: the metrics before training.
      metrics: those after the last whole epoch.
      step: of the last epoch, or of the one under way.
      halvings: how often that one was done again.
      rows: the numbers of all epochs so far, one by one.
    """

    state: EpochResult
    start: Metrics
    metrics: Metrics
    step: Step
    halvings: int
    rows: Sequence[Sequence[float]]


class Keeper:
    """Keeps the positions of a run in a folder, and takes the last one up again."""

    def __init__(self, folder: Path, seconds: float, run: dict[str, Any]) -> None:
        """Reads the newest checkpoint of the folder, if it has one.

        Args:
          folder: of the checkpoints.
          seconds: from one checkpoint to the next; 0 for one after every epoch and none inside.
          run: what must be the same in a run that goes on; JSON can say it.

        Raises:
          InputError: the checkpoints are of another run, or all damaged, or orbax is missing.
        """
        self._folder = folder
        self._timer = checkpoints.Timer(seconds)
        self._run = checkpoints.as_restored(run)
        self._unsaved: Position | None = None
        kept = checkpoints.load(folder, "checkpoint_dir must be a folder", _decode)
        self.position: Position | None = None
        if kept is not None:
            before, self.position = kept
            self._check_same(before)

    def is_due(self) -> bool:
        """Whether an epoch shall pause for a checkpoint."""
        return self._timer.is_due()

    def take(self, position: Position) -> None:
        """Takes where the run is now, and writes a checkpoint if one is due.

        Args:
          position: of the run.

        Raises:
          OSError: it cannot be written.
        """
        self._unsaved = position
        if self._timer.is_due_after_epoch():
            self.save()

    def save(self) -> None:
        """Writes a checkpoint of the position that was taken last, if there is none yet.

        Raises:
          OSError: it cannot be written.
        """
        if self._unsaved is not None:
            checkpoints.save(self._folder, _encode(self._unsaved, self._run))
            self._unsaved = None
            self._timer.restart()

    def _check_same(self, before: dict[str, Any]) -> None:
        names = [
            name for name in self._run if not _is_same(name, before.get(name), self._run[name])
        ]
        if names:
            raise InputError(
                f"checkpoint_dir must be the folder of the same run, or a new one, got "
                f"{self._folder}, of a run with {_listed(names, before)}, and not with "
                f"{_listed(names, self._run)}."
            )


def digest(tree: PyTree) -> str:
    """The SHA-256 of all arrays of a pytree, keys of `jax.random` among them.

    Args:
      tree: of arrays.

    Returns:
      64 hexadecimal digits.

    >>> digest({"x": np.zeros(2)}) == digest({"x": np.zeros(3)})
    False
    """
    found = hashlib.sha256(str(jax.tree.structure(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _is_same(name: str, before: Any, now: Any) -> bool:
    if name in MAY_GROW and isinstance(before, list) and isinstance(now, list):
        both = min(len(before), len(now))
        return before[:both] == now[:both]
    return bool(before == now)


def _listed(names: Sequence[str], run: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_short(run.get(name))}" for name in names)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 30 else f"{text[:12]}..."


def _encode(position: Position, run: dict[str, Any]) -> Content:
    content = checkpoints.of_state(position.state)
    record = {
        "run": run,
        "start": list(position.start),
        "metrics": list(position.metrics),
        "step": list(position.step),
        "halvings": position.halvings,
        "rows": [list(row) for row in position.rows],
    }
    return content._replace(record=content.record | record)


def _decode(content: Content) -> tuple[dict[str, Any], Position]:
    record = content.record
    position = Position(
        state=checkpoints.to_state(content),
        start=Metrics(*record["start"]),
        metrics=Metrics(*record["metrics"]),
        step=Step(*record["step"]),
        halvings=record["halvings"],
        rows=[list(row) for row in record["rows"]],
    )
    return record["run"], position
