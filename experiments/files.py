"""Folders that can be written to, and files that are there as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from asvrg.errors import InputError


def make_folder(must_be: str, folder: Path) -> None:
    """Makes a folder, and tries whether it can be written to.

    Args:
      must_be: the beginning of the sentence for one that cannot.
      folder: its path.

    Raises:
      InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{must_be} that can be made and written to, got {folder} ({error.strerror})."
        ) from error


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
