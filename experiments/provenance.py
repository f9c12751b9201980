"""Where results come from: flags, versions, machine and commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags


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
