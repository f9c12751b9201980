"""Studies of many units of work, each of which is kept when it is done: one that stopped goes on.

A unit is a run, or a part of a study; its outcome is what JSON can say, such as rows of a table.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asvrg.checkpoints
from asvrg.checkpoints import Content
from asvrg.errors import DivergedError, InputError
from experiments import checkpoints, files, launch

# Flags that may differ from those of the study that goes on.
FREE_FLAGS = frozenset({"data_dir", "num_threads", "out_dir", "resume"})


class Units:
    """The units of a study that are done; for one thread.

    Attributes:
      config: of the study, for config.json.
      stop: what signals asked for; the study heeds it where no unit is under way.
    """

    def __init__(
        self,
        folder: Path,
        program: str,
        config: dict[str, Any],
        total: int | None,
        stop: launch.Stop,
        free: frozenset[str] = FREE_FLAGS,
    ) -> None:
        """Reads the newest checkpoint of the study in a folder, if there is one.

        Raises:
          InputError: the checkpoints are all damaged, or those of another study.
        """
        self.config = {"program": program, **config}
        self.stop = stop
        self._folder = folder
        self._total = total
        self._free = free
        self._done: dict[str, Any] = {}
        saved = asvrg.checkpoints.load(
            folder / checkpoints.UNITS, "--out_dir must name a folder", _decode
        )
        if saved is not None:
            self._take_up(*saved)

    def __len__(self) -> int:
        """How many are done."""
        return len(self._done)

    def outcome(self, name: str) -> Any:
        """What a unit gave, as JSON has it, which makes lists of tuples; None if it is not done."""
        return self._done.get(name)

    def outcomes(self) -> list[Any]:
        """What all units gave that are done, in the order in which they ended."""
        return list(self._done.values())

    def keep(self, name: str, outcome: Any) -> Any:
        """Writes a checkpoint with one more unit.

        Args:
          name: of the unit, no other one's.
          outcome: what it gave.

        Returns:
          The outcome as JSON has it, the same that a later process finds.

        Raises:
          OSError: it cannot be written; the checkpoints before are as they were.
        """
        restored = asvrg.checkpoints.as_restored(outcome)
        done = self._done | {name: restored}
        content = Content({"config": self.config, "units": done}, {})
        asvrg.checkpoints.save(self._folder / checkpoints.UNITS, content)
        self._done = done
        return restored

    def do(self, name: str, compute: Callable[[], Any]) -> Any:
        """The outcome of a unit, which is computed and kept if it is not done.

        Args:
          name: of the unit, no other one's.
          compute: gives what JSON can say.

        Returns:
          The outcome as JSON has it.

        Raises:
          OSError: it cannot be written.
          KeyboardInterrupt: a signal came; the unit is kept.
        """
        found = self.outcome(name)
        if found is None:
            found = self.keep(name, compute())
        self.stop.heed()
        return found

    def place(self) -> str:
        """How many units are done, in words."""
        return (
            f"{len(self)} units" if self._total is None else f"{len(self)} of {self._total} units"
        )

    def _take_up(self, config: dict[str, Any], done: dict[str, Any]) -> None:
        before, now = config["program"], self.config["program"]
        if before != now:
            raise InputError(
                f"--out_dir={self._folder} holds a study of experiments.{before}, got "
                f"experiments.{now}."
            )
        checkpoints.check_same_run(self._folder, config, self.config, free=self._free)
        self._done = done
        resumed = {"units": len(done), "started": self.config["started"]}
        self.config = self.config | {
            "started": config["started"],
            "resumed": [*config.get("resumed", []), resumed],
        }


@contextlib.contextmanager
def kept(
    folder: Path,
    program: str,
    config: dict[str, Any],
    total: int | None = None,
    free: frozenset[str] = FREE_FLAGS,
) -> Iterator[Units]:
    """Keeps the units of a study in its folder, and says how to go on if something stops it.

    Within the block a first SIGINT or SIGTERM waits for `Units.do`, or for who heeds `Units.stop`.

    Args:
      folder: of the study, claimed.
      program: the name of its binary.
      config: of the study, from `provenance.describe`; what goes on must have the same flags, but
        for the free ones, and the same `resolved`.
      total: how many units it has; None where that turns out on the way.
      free: flags that may differ, as no unit depends on them.

    Yields:
      Units.

    Raises:
      InputError: the folder is another study's, its checkpoints are all damaged, or another process
        is at it.
    """
    with files.held(folder), launch.stopping_where_it_can_go_on() as stop:
        files.remove_parts(folder)
        units = Units(folder, program, config, total, stop, free)
        if len(units):
            print(f"goes on after {units.place()}", file=sys.stderr)
        try:
            yield units
        except (DivergedError, InputError):
            raise  # It would happen again.
        except BaseException:
            if len(units):
                print(
                    f"The same command with --out_dir={shlex.quote(str(folder))} goes on after "
                    f"{units.place()}.",
                    file=sys.stderr,
                )
            raise


def _decode(content: Content) -> tuple[dict[str, Any], dict[str, Any]]:
    record = content.record
    config, done = dict(record["config"]), dict(record["units"])
    _ = config["program"], config["started"], config["flags"], config["resolved"]
    return config, done
