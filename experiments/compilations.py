"""What jax compiled, kept for the next start of a binary on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_enable_xla_caches": None,  # they make the folder a part of the keys
}
# Settings of the user's own, which stay.
OWN = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
ENTRIES = "*-cache"  # as jax names its files
MOST_BYTES = 1 << 28
ABANDONED = 14 * 86_400  # seconds after which a folder belongs to no process any more


@contextlib.contextmanager
def kept(environment: Mapping[str, str]) -> Iterator[None]:
    """Has jax look for compiled code in the user's cache folder, and leave there what was not.

    jax writes in place, and reads whatever stands there. So a process has a folder of its own, with
    links to the entries that there are; its new entries become visible when they are whole, at the
    end of the block. A process that is interrupted or killed adds nothing.

    Args:
      environment: `os.environ`; with a setting of jax's for its cache nothing is done.
    """
    own = None
    if not any(name in environment for name in OWN):
        with contextlib.suppress(OSError):  # no room, no place to write: all is compiled again
            own = _linked(_folder())
    if own is None:
        yield
        return
    settings: dict[str, Any] = {"jax_compilation_cache_dir": str(own)}
    settings |= {name: value for name, value in SETTINGS.items() if name.upper() not in environment}
    before = {name: getattr(jax.config, name) for name in settings}
    _update(settings)
    try:
        yield
        with contextlib.suppress(OSError):
            _publish(own)
    finally:
        _update(before)
        compilation_cache.reset_cache()
        shutil.rmtree(own, ignore_errors=True)


def _update(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)


def _folder() -> Path:
    """The folder for compiled code that this machine's processor can run."""
    processor = hashlib.sha256()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kinds = ("vendor_id", "model", "flags", "Features", "CPU")  # of x86 and of Arm
        processor.update("\n".join(sorted({s for s in lines if s.startswith(kinds)})).encode())
    folder = platformdirs.user_cache_path("asvrg") / "compiled" / processor.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _linked(folder: Path) -> Path:
    for other in folder.glob("process-*"):
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > ABANDONED:
                shutil.rmtree(other, ignore_errors=True)
    own = Path(tempfile.mkdtemp(prefix="process-", dir=folder))
    for entry in folder.glob(ENTRIES):
        with contextlib.suppress(OSError):  # another process may have removed it
            os.link(entry, own / entry.name)
    return own


def _publish(own: Path) -> None:
    folder = own.parent
    for entry in own.glob(ENTRIES):
        if not (folder / entry.name).exists():
            entry.replace(folder / entry.name)
    entries = sorted(folder.glob(ENTRIES), key=lambda entry: entry.stat().st_mtime, reverse=True)
    held = 0
    for entry in entries:  # the newest stay
        held += entry.stat().st_size
        if held > MOST_BYTES:
            entry.unlink(missing_ok=True)
