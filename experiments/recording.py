"""What a run leaves behind: metrics.csv, config.json, trace.npz and TensorBoard events."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
from absl import flags

from asvrg import delays
from asvrg.errors import InputError
from asvrg.types import EpochResult, Trace
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


def claim_folder(out_dir: str | None, name: str, *, holds: str = METRICS) -> Path:
    """Makes the folder for a run's results.

    Args:
      out_dir: as the user gave it; None for a new folder below runs/.
      name: of the run, the beginning of a new folder's name.
      holds: the file by which another run's results are known.

    Returns:
      The folder, which exists, can be written to, and holds no other run.

    Raises:
      InputError: it cannot be made or written to, or holds another run's results.
    """
    if out_dir is None:
        time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        folder = Path("runs") / f"{name}-{time}"
    else:
        folder = Path(out_dir)
    if out_dir is not None and not out_dir.strip():
        raise InputError("--out_dir must name a folder, got an empty name.")
    try:
        if (folder / holds).exists():
            raise InputError(
                "--out_dir must be a folder without another run's results, got "
                f"{folder}, which holds a {holds}."
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"--out_dir must be a folder that can be made and written to, got {folder} "
            f"({error.strerror})."
        ) from error
    return folder


class Recorder:
    """Writes a run's results to its folder; what was written stays whatever happens later."""

    def __init__(
        self, folder: Path, config: dict[str, Any], *, save_trace: bool, tensorboard: bool
    ) -> None:
        """Writes config.json and the header of metrics.csv."""
        self.folder = folder
        self.rows: list[Row] = []
        self.delay_counts = np.zeros(0, np.int64)  # updates with delay 0, 1, ...
        self._traces: list[Trace] = []
        self._config = config
        self._save_trace = save_trace
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(folder / "tensorboard"))
        write_config(folder, config)
        self._metrics = open(folder / METRICS, "x", newline="", encoding="utf-8")  # noqa: SIM115
        self._write_line(Row._fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._metrics.close()
        if self._events is not None:
            self._events.close()
        if self._traces:
            write_whole(self.folder / TRACE, self._write_traces)

    def add(self, row: Row, trace: Trace | None) -> None:
        """Writes a line of metrics.csv; counts the trace's delays, and keeps it if asked to."""
        # Nine digits give a float32 back exactly.
        self._write_line(f"{value:.9g}" if isinstance(value, float) else value for value in row)
        self.rows.append(row)
        if trace is not None:
            counts = np.bincount(delays.staleness(trace), minlength=len(self.delay_counts))
            counts[: len(self.delay_counts)] += self.delay_counts
            self.delay_counts = counts
            if self._save_trace:
                self._traces.append(trace)
        if self._events is not None:
            for name, value in zip(Row._fields[1:], row[1:], strict=True):
                self._events.add_scalar(name, value, row.epoch)

    def _write_line(self, values: Any) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        self._metrics.write(line.getvalue())
        self._metrics.flush()

    def _write_traces(self, file: IO[bytes]) -> None:
        np.savez_compressed(
            file,
            worker=np.stack([trace.worker for trace in self._traces]),
            read_version=np.stack([trace.read_version for trace in self._traces]),
            sees_own=np.array([trace.sees_own for trace in self._traces]),
            config=np.array(json.dumps(self._config)),
        )


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


def describe(values: flags.FlagValues, resolved: dict[str, Any]) -> dict[str, Any]:
    """What it takes to repeat a run: flags, versions, machine, commit.

    Args:
      values: parsed flags.
      resolved: what the run made of flags without a value, such as a tuned step.

    Returns:
      A dictionary for config.json.
    """
    packages = ("asvrg", "jax", "jaxlib", "numpy", "optax", "scikit-learn")
    return {
        "command": " ".join(["python -m", _module(), *map(shlex.quote, sys.argv[1:])]),
        "flags": {name: values[name].value for name in sorted(values) if name not in ("help", "h")},
        "resolved": resolved,
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in packages},
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": _processor(),
            "system": platform.platform(),
        },
        "environment": {
            name: os.environ.get(name) for name in ("NPROC", "XLA_FLAGS", "JAX_PLATFORMS")
        },
        "commit": _commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _module() -> str:
    """The binary as python -m takes it; sys.argv[0] is its path then."""
    path = Path(sys.argv[0])
    return f"{path.parent.name}.{path.stem}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this code, with "+changes" if files differ from it; None outside of git."""
    here = Path(__file__).parent
    try:
        revision = _git(here, "rev-parse", "HEAD")
        changes = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        check=True,
        text=True,
        timeout=10,
    )
    return done.stdout.strip()
