"""Checkpoints in a run's folder: what is in them, and which runs go on from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asvrg import checkpoints
from asvrg.checkpoints import Content
from asvrg.errors import InputError
from asvrg.types import EpochResult

FOLDER = "checkpoint"
UNITS = "units"  # the folder of a study's, which `units` keeps
# Flags that may differ from those of the run that a checkpoint goes on with.
FREE_FLAGS = frozenset(
    {"checkpoint_seconds", "data_dir", "num_epochs", "out_dir", "record", "resume"}
)


class Progress(NamedTuple):
    """A run between two epochs or inside of one: all that it takes to go on, and its records.

    Attributes:
      state: after the last epoch; a restored one has no trace.
      rows: of metrics.csv.
      delay_counts: int64 [K, T], the updates of worker k with delay tau, of whole epochs.
      config: of the run, what config.json holds.
    """

    state: EpochResult
    rows: Sequence[tuple[float, ...]]
    delay_counts: np.ndarray
    config: dict[str, Any]


def exist_in(folder: Path, kind: str = FOLDER) -> bool:
    """Whether a run's folder holds a checkpoint of a kind, damaged ones included."""
    return checkpoints.exist_in(folder / kind)


def save(folder: Path, progress: Progress) -> None:
    """Adds a checkpoint to a run's folder; the last two stay there.

    Args:
      folder: of the run.
      progress: of the run.

    Raises:
      OSError: it cannot be written; the checkpoints before are as they were.
    """
    content = checkpoints.of_state(progress.state)
    rows = [list(row) for row in progress.rows]
    content = Content(
        content.record | {"config": progress.config, "rows": rows},
        content.arrays | {"delay_counts": progress.delay_counts},
    )
    checkpoints.save(folder / FOLDER, content)


def load(folder: Path) -> Progress | None:
    """The newest checkpoint that is not damaged; one that is gets a line on the standard error.

    Args:
      folder: of the run.

    Returns:
      The Progress, or None if there is no checkpoint.

    Raises:
      InputError: all checkpoints are damaged, or of another version of the format.
    """
    return checkpoints.load(folder / FOLDER, "--out_dir must name a folder", _decode)


def _decode(content: Content) -> Progress:
    return Progress(
        state=checkpoints.to_state(content),
        rows=[tuple(row) for row in content.record["rows"]],
        delay_counts=content.arrays["delay_counts"],
        config=content.record["config"],
    )


def check_same_run(
    folder: Path,
    saved: dict[str, Any],
    config: dict[str, Any],
    *,
    free: frozenset[str] = FREE_FLAGS,
) -> None:
    """Raises InputError unless a checkpoint's run and the one that is asked for are the same.

    Args:
      folder: of the run.
      saved: config of the checkpoint.
      config: of the run that is asked for.
      free: names of flags that may differ.

    Raises:
      InputError: a flag or what became of it differs; the sentence names those that do.
    """
    for before, now in (
        (_flags(saved, free), _flags(config, free)),
        (_resolved(saved), _resolved(config)),
    ):
        names = [name for name in sorted(before.keys() | now.keys()) if _differ(name, before, now)]
        if names:
            raise InputError(
                f"--out_dir={folder} holds a run with {_listed(names, before)}, which goes on with "
                f"the same flags only, got {_listed(names, now)}."
            )


def _flags(config: dict[str, Any], free: frozenset[str]) -> dict[str, Any]:
    """The flags that must not change."""
    flags = {f"--{name}": config["flags"][name] for name in config["flags"].keys() - free}
    return checkpoints.as_restored(flags)


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """What became of flags without a value: other releases may have other defaults."""
    return checkpoints.as_restored(config["resolved"])


def _differ(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    return name not in before or name not in now or before[name] != now[name]


def _listed(names: list[str], settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={settings[name]}" if name in settings else f"no {name}" for name in names
    )
