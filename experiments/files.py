"""Folders that can be written to, and files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from asvrg.errors import InputError

PART = ".part"  # at the end of the name of a file that is being written


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

    Raises:
      OSError: it cannot be written; it names the file, and one that was there is as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)  # a signal may come right after it was renamed
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)
        raise


def remove_parts(folder: Path) -> None:
    """Removes what `write_whole` left in a folder and those below when its process was killed.

    Args:
      folder: to which no other process writes.
    """
    for path in folder.rglob(f".*{PART}"):
        path.unlink(missing_ok=True)


class Lines:
    """A text file that grows by whole lines, and is never there without those it began with."""

    def __init__(self, path: Path, begin: str) -> None:
        """Makes the file hold this text, and nothing else.

        Args:
          path: of the file.
          begin: what it shall hold: whole lines.

        Raises:
          OSError: it cannot be written.
        """
        self._path = path
        if not path.is_file() or path.read_bytes() != begin.encode():
            write_whole(path, lambda file: file.write(begin.encode()))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def add(self, line: str) -> None:
        """Adds a line, or nothing.

        Raises:
          OSError: it cannot be written.
        """
        size = os.fstat(self._file.fileno()).st_size
        raw = line.encode()
        try:
            # Of a full disk the first that is told may be that there was room for a part.
            while raw:
                raw = raw[self._file.write(raw) or 0 :]
        except BaseException as error:
            self._file.truncate(size)
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = str(self._path)
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a folder from other processes that ask for it in the same way.

    Args:
      folder: to hold.

    Raises:
      InputError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise InputError(
            f"--out_dir must be a folder that no other process writes to, got {folder}."
        ) from error
    except OSError:
        pass  # A file system without locks.
    try:
        yield
    finally:
        os.close(handle)
